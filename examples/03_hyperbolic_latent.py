"""A hierarchy in the hyperbolic plane: an autoencoder whose latent space is the Poincaré disc.

The data are humps on a line, √N(μ, σ²) sampled at 128 places. A wide one covers two of half its width, each of these
two narrower ones: a binary tree, whose number of nodes grows exponentially, like hyperbolic area and unlike a flat
one. (The distance of such humps is Fisher's, and that *is* hyperbolic in μ and σ: Rao 1945.) A decoder that is asked
to be a scaled isometry can become one on the disc; on the plane it cannot, by Gauss.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from rich.progress import track
from torch import nn

import georeg

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output-dir", type=Path, default=Path("outputs/hyperbolic_latent"))
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--quick", action="store_true", help="few steps: a check that everything runs")
options = parser.parse_args()
torch.set_num_threads(1)  # the networks are too small for more
line = torch.linspace(-2, 2, 128)


def humps(mean, width):
    return nn.functional.normalize(torch.exp(-((line - mean[:, None]) ** 2) / (4 * width[:, None] ** 2)))


def to_disc(u):
    """exp₀ of the Poincaré disc: any vector to a point within the unit circle."""
    norm = u.norm(dim=1, keepdim=True).clamp_min(1e-6)
    return norm.tanh() * u / norm


def hyperbolic_distance(z):
    height = 1 - z.square().sum(1)
    return torch.acosh(1 + 2 * torch.cdist(z, z).square() / (height[:, None] * height))


level = torch.tensor([i.bit_length() - 1 for i in range(1, 32)])  # node i has the children 2i and 2i + 1
width = 0.5 * 0.5**level
mean = torch.tensor([-1 + (2 * (i - 2**k) + 1) / 2**k for i, k in enumerate(level.tolist(), 1)])
apart = torch.cdist(*[torch.stack([mean / 2**0.5, width], 1)] * 2).square()
fisher = torch.acosh(1 + apart / (2 * width[:, None] * width))
nodes = humps(mean, width)
spaces = {  # georeg.from_geoopt(geoopt.PoincareBall()) is the same disc
    "Flat plane": (georeg.Euclidean(), nn.Identity(), lambda z: torch.cdist(z, z)),
    "Poincaré disc": (georeg.SphereStereographic(curvature=-1.0), to_disc, hyperbolic_distance),
}
figure, axes = plt.subplots(1, 2, figsize=(10, 5.6), layout="constrained")
for panel, (name, (space, onto, distance)) in zip(axes, spaces.items(), strict=True):
    torch.manual_seed(options.seed)
    encoder = nn.Sequential(nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))
    decoder = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128))
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
    isometry = georeg.IsometryLoss(domain=space, normalize=True)
    for _ in track(range(200 if options.quick else 3000), name):
        x = humps(2.2 * torch.rand(128) - 1.1, 0.5 * 2 ** (0.5 - 5 * torch.rand(128)))
        z = onto(encoder(x))
        loss = (decoder(z) - x).square().sum(1).mean() + 0.05 * isometry(decoder, z).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        z = onto(encoder(nodes))
        error, score = (decoder(z) - nodes).square().sum(1).mean(), isometry(decoder, z).estimate()
    spread = (distance(z) / fisher)[tuple(torch.triu_indices(31, 31, 1))].log().std().expm1()
    print(f"{name}: reconstruction error {error:.4f}, normalised loss {score}, distances off by {spread:.0%}")
    child = torch.arange(2, 32)
    panel.plot(*torch.stack([z[child // 2 - 1], z[child - 1]]).unbind(2), color="0.6", lw=1, zorder=0)
    panel.scatter(*z.T, c=level, s=130 - 24 * level, edgecolors="white", linewidths=0.6)
    panel.set_title(f"{name}\nnormalised loss {float(score):.2f} · distances off by {spread:.0%}", size=14)
    panel.set(aspect="equal", frame_on=False, xticks=[], yticks=[])
axes[1].add_patch(plt.Circle((0, 0), 1, fc="none", ec="black", clip_on=False))
options.output_dir.mkdir(parents=True, exist_ok=True)
figure.savefig(options.output_dir / "hyperbolic_latent.png", dpi=80, bbox_inches="tight")
