"""Flatten the sphere by an autoencoder S² → R²: without the loss, with it for a flat metric, and for the sphere's own.

Equal discs show what a map does: an isometry would keep them equal discs. There is none (Gauss), so that the normalised loss
stays above 1. For G = I in stereographic coordinates it does reach 1, by stereographic projection, whose discs are round and
grow towards the rim. The cap around the chart's pole is left out. Over seeds: `georeg-diffusion reproduce fig2`.
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from rich.progress import track
from torch import nn

import georeg
from georeg import diagnostics


def point(theta, phi):  # at an angle from the south pole and a longitude, in degrees
    theta, phi = torch.broadcast_tensors(*(torch.deg2rad(torch.as_tensor(a, dtype=torch.float)) for a in (theta, phi)))
    return torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), -theta.cos()], dim=-1)


def sample(n):  # uniform by area on the sphere without its cap
    return point((1 - 1.5 * torch.rand(n)).acos().rad2deg(), 360 * torch.rand(n))


def draw(panel, f, title):  # a third coordinate is depth: what lies behind is pale
    for theta, number in [(0, 1), (37.5, 6), (75, 12), (105, 12)]:
        for phi in 360 * (torch.arange(number) + 0.5) / number:
            c, e = point(theta, phi), point(theta + 90, phi)
            disc = f(math.cos(0.122) * c + math.sin(0.122) * (turn.cos() * e + turn.sin() * torch.linalg.cross(c, e)))
            if disc.shape[1] == 2 or disc[:, 2].min() > 0:
                panel.fill(*disc[:, :2].T, color="#D55E00", alpha=0.8, lw=0)
    lines = [(point(t, turn[:, 0].rad2deg()), {"color": plt.cm.viridis(t / 130), "lw": 2}) for t in range(15, 121, 15)]
    lines += [(point(torch.linspace(1, 120, 90), p), {"color": "#8A8A8A", "lw": 0.6}) for p in range(0, 360, 30)]
    for line, style in ((f(p), style) for p, style in lines):
        behind = line[:, 2:] < 0 if line.shape[1] == 3 else torch.zeros(len(line), 1, dtype=torch.bool)
        for hidden, alpha in [(behind, 1), (~behind, 0.13)]:
            panel.plot(*line[:, :2].masked_fill(hidden, math.nan).T, **style, alpha=alpha)
    panel.set(aspect="equal", xticks=[], yticks=[], frame_on=False)
    panel.set_title(title, size=11)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output-dir", type=Path, default=Path("outputs/sphere"))
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--quick", action="store_true", help="few steps: a check that everything runs")
options = parser.parse_args()
torch.set_num_threads(1)  # the networks are too small for more
turn, exact = torch.linspace(0, math.tau, 181)[:, None], georeg.Exact()
sphere, flat = (georeg.IsometryLoss(domain=m, estimator=exact, normalize=True) for m in (georeg.Sphere(radius=1.0), None))
chart, steps = georeg.SphereStereographic(radius=1.0), 250 if options.quick else 1500
losses = {
    "Reconstruction only": lambda f, x: 0.0,
    "Isometry, G = I in chart": lambda f, x: flat(lambda z: f(chart.to_ambient(z)), chart.from_ambient(x)).loss,
    "Isometry, sphere's metric": lambda f, x: sphere(f, x).loss,
}
figure, axes = plt.subplots(1, 4, figsize=(12, 3.7), layout="constrained")
view = torch.tensor([[1, 0, 0], [0, -0.574, -0.819], [0, 0.819, -0.574]])  # from 35° below the equator
draw(axes[0], lambda p: p @ view, "Input: S² without a 60° cap\nequal discs, parallels every 15°")
for panel, (name, loss_of) in zip(axes[1:], losses.items(), strict=True):
    torch.manual_seed(options.seed)
    encoder = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    decoder = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=5e-3)
    for x in track([sample(256) for _ in range(steps)], name):
        optimiser.zero_grad()
        ((decoder(encoder(x)) - x).square().sum(1).mean() + 0.03 * loss_of(encoder, x)).backward()
        optimiser.step()
    x, place = sample(4096), options.output_dir / "sphere.png"
    error, loss = (decoder(encoder(x)) - x).square().sum(1).mean(), sphere(encoder, x).estimate()
    mcn = diagnostics.mean_condition_number(encoder, x, domain=georeg.Sphere())
    print(f"{name}: reconstruction error {error:.1e}, normalised loss {loss}, mean condition number {mcn}")
    draw(panel, torch.no_grad()(encoder), f"{name}\nloss {float(loss):.2f} · condition {float(mcn):.2f}")
options.output_dir.mkdir(parents=True, exist_ok=True)
figure.savefig(place, dpi=62, bbox_inches="tight")
