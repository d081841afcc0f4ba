"""Two circling lights, a latent made of two circles: an autoencoder with latents in S¹ × S¹.

Each half of a picture has a light on an off-centre orbit. With the isometry loss on the product manifold equal turns of
either circle change the picture equally. (It knows no topology: from some seeds, such as 0, both fold the torus.)
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from rich.progress import track
from torch import nn

import georeg

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output-dir", type=Path, default=Path("outputs/product_of_spheres"))
parser.add_argument("--seed", type=int, default=2)
parser.add_argument("--quick", action="store_true", help="few steps: a check that everything runs")
options = parser.parse_args()
torch.set_num_threads(1)  # the networks are too small for more
SIZE, TURN, STEPS = 12, 2 * math.pi, 200 if options.quick else 2000
y, x = torch.meshgrid(*[(torch.arange(SIZE) - (SIZE - 1) / 2) / (SIZE / 2)] * 2, indexing="ij")


def lights(angles):
    """Angles ``(B, 2)`` to pictures ``(B, 2 · SIZE²)``."""
    a, b = (wave[..., None, None] * (0.45 + 0.25 * angles.cos()[..., None, None]) for wave in (angles.cos(), angles.sin()))
    return torch.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.5**2).flatten(1)


def onto(u):
    """R⁴ to S¹ × S¹."""
    return nn.functional.normalize(u.unflatten(1, (2, 2)), dim=2).flatten(1)


def turning(z, circle):
    """The unit tangent vector of one of the circles."""
    pairs = z.unflatten(1, (2, 2)).flip(2) * torch.tensor([-1.0, 1.0])
    return (pairs * torch.eye(2)[circle][:, None]).flatten(1)


torus = georeg.Product([georeg.Sphere(1.0), georeg.Sphere(1.0)], sizes=[2, 2])
isometry, exact = (georeg.IsometryLoss(domain=torus, normalize=True, estimator=e) for e in ("hutchinson", "exact"))
angles = torch.cartesian_prod(*[torch.linspace(0, TURN, 64)] * 2)
lattice = torch.stack([angles.cos(), angles.sin()], 2).flatten(1)
figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained", width_ratios=[0.55, 1, 1])
for panel, angle in zip(axes[:, 0], (0.0, 2.4), strict=True):
    panel.imshow(lights(torch.tensor([[angle, angle + 2]])).reshape(2 * SIZE, SIZE), cmap="gray")
    panel.set(title="Another" if angle else "A picture", xticks=[], yticks=[])
for column, (name, weight) in enumerate({"Reconstruction only": 0, "With isometry loss": 0.3}.items(), start=1):
    torch.manual_seed(options.seed)
    encoder = nn.Sequential(nn.Linear(2 * SIZE**2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 4))
    decoder = nn.Sequential(nn.Linear(4, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2 * SIZE**2))
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
    for step in track(range(STEPS), name):
        images = lights(TURN * torch.rand(128, 2))
        z = onto(encoder(images))
        iso = weight * (step > STEPS // 4) * isometry(decoder, z).loss  # once the circles are wrapped around the torus
        optimiser.zero_grad()
        ((decoder(z) - images).square().sum(1).mean() + iso).backward()
        optimiser.step()
    with torch.no_grad():
        images = lights(TURN * torch.rand(1000, 2))
        z = onto(encoder(images))
        error, score = (decoder(z) - images).square().sum(1).mean(), exact(decoder, z).estimate()
        speed = [georeg.linearize(decoder, lattice).jvp(turning(lattice, k)[None])[0].norm(dim=1) for k in range(2)]
    print(f"{name}: reconstruction error {error:.3f}, normalised loss {score}")
    for panel, values, circle in zip(axes[:, column], speed, ("first", "second"), strict=True):
        relative = values / torch.stack(speed).mean()
        shown = panel.imshow(relative.reshape(64, 64).T, cmap="PuOr", vmin=0.7, vmax=1.3, origin="lower")
        panel.set(xlabel="first latent angle, 0 to 2π", ylabel="second angle", xticks=(), yticks=())
        panel.set_title(f"along the {circle} circle: {relative.min():.2f} to {relative.max():.2f}", size=11)
    axes[0, column].set_title(f"{name}, loss {float(score):.3f}\n{axes[0, column].get_title()}", size=12)
figure.colorbar(shown, ax=axes, shrink=0.7, label="change of the picture per radian, over its mean")
options.output_dir.mkdir(parents=True, exist_ok=True)
figure.savefig(options.output_dir / "product_of_spheres.png", dpi=72, bbox_inches="tight")
