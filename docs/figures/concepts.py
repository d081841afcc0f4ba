"""The pictures of docs/concepts.md, made by the code they are about: `python docs/figures/concepts.py`.

scaled_isometry.png   what five maps of the plane do to equal circles, with their losses
why_the_sphere.png    where noise lives, and what that means for a straight line
why_pooled.png        what ratios of means and means of ratios say of the same map
"""

import argparse
import math
import warnings
from pathlib import Path

import torch
from matplotlib.figure import Figure

import georeg

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8A8A8A"  # Okabe and Ito's palette
EXACT = {"estimator": georeg.Exact(), "normalize": True}


def save(figure, path):
    """Small enough for a repository."""
    figure.savefig(path, dpi=80, facecolor="white")


def scaled_isometry(path):
    """Circles of one size on a grid, and their images."""
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    maps = {
        "turned and scaled": lambda x: 1.3 * x @ turn,
        "conformal: z ↦ exp(z)": lambda x: (
            (0.7 * x[:, :1]).exp() * torch.cat([(0.7 * x[:, 1:]).cos(), (0.7 * x[:, 1:]).sin()], 1)
        ),
        "stretched": lambda x: x * torch.tensor([1.8, 0.6]),
        "sheared unevenly": lambda x: torch.stack([x[:, 0] + 0.5 * x[:, 1] ** 2, x[:, 1]], 1),
    }
    figure = Figure(figsize=(12, 3.9), layout="constrained")
    side, angle = torch.linspace(-1.2, 1.2, 5), torch.linspace(0, math.tau, 49)
    circle = 0.22 * torch.stack([angle.cos(), angle.sin()], 1)
    inside = 1.2 * (2 * torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)) - 1)
    axes = figure.subplots(1, 5)
    for panel, (name, f) in zip(axes, {"equal circles": lambda x: x, **maps}.items(), strict=True):
        for centre in torch.cartesian_prod(side, side):
            panel.fill(*f(centre + circle).T, color=ORANGE, alpha=0.75, lw=0)
        losses = [float(loss(**EXACT)(f, inside).loss.detach()) for loss in (georeg.IsometryLoss, georeg.ConformalLoss)]
        panel.set_title(f"{name}\nisometry {losses[0]:.2f}\nconformal {losses[1]:.2f}", size=13)
        panel.set(aspect="equal", xticks=[], yticks=[], frame_on=False)
    save(figure, path / "scaled_isometry.png")


def why_the_sphere(path):
    """Norms of noise in n dimensions, and along the two paths between two noises."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    norms, along = figure.subplots(1, 2)
    draw = torch.Generator().manual_seed(0)
    for n, colour in ((3, GREY), (64, BLUE), (3072, ORANGE)):
        values = torch.randn(4000, n, generator=draw).norm(dim=1) / n**0.5
        label = f"n = {n}: spread {float(values.std() / values.mean()):.1%}"
        norms.hist(values, bins=60, range=(0, 2), density=True, color=colour, alpha=0.7, label=label)
    norms.set(title="Norm of Gaussian noise over √n", xlabel="‖x‖ / √n", ylabel="density", yscale="log")
    norms.legend(frameon=False)
    a, b = torch.randn(2, 256, 3072, generator=draw)
    t = torch.linspace(0, 1, 41)
    for name, between, colour in (("straight line", georeg.lerp, BLUE), ("great circle", georeg.slerp, ORANGE)):
        norm = between(a, b, t).norm(dim=2) / 3072**0.5
        along.plot(t, norm.mean(1), color=colour, lw=2, label=f"{name}: {float(norm.mean(1)[20]):.2f} half way")
    shell = torch.randn(4000, 3072, generator=draw).norm(dim=1) / 3072**0.5
    along.axhspan(float(shell.min()), float(shell.max()), color=GREY, alpha=0.35, lw=0, label="4,000 noises")
    along.set(
        title="From one noise of 32 × 32 × 3 to another", xlabel="position on the path", ylabel="‖x‖ / √n", ylim=(0.6, 1.1)
    )
    along.legend(frameon=False)
    save(figure, path / "why_the_sphere.png")


def why_pooled(path):
    """A map with one scale for each of two groups, and the loss as batches grow."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    groups, batches = figure.subplots(1, 2)
    x, label = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2
    spreads = torch.linspace(1, 4, 13)
    loss = georeg.IsometryLoss(**EXACT)

    def scaled(ratio):
        return lambda x: x * torch.where(label == 0, 1, ratio)[:, None]

    for name, own, colour in (("pooled over both", None, BLUE), ("pooled within each", label, ORANGE)):
        groups.plot(spreads, [float(loss(scaled(r), x, own).loss) for r in spreads], color=colour, lw=2, label=name)
    groups.set(title="Two groups, an isometry on each", xlabel="ratio of their scales", ylabel="loss, 1 is perfect")
    groups.legend(frameon=False)

    points = torch.randn(4096, 2, generator=torch.Generator().manual_seed(1))

    def conformal(x):  # R = exp(x₁)/4 · I: no direction is preferred, and the scale varies
        x = x / 2
        return x[:, :1].exp() * torch.cat([x[:, 1:].cos(), x[:, 1:].sin()], 1)

    sizes = [2**k for k in range(13)]
    means = []
    for size in sizes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a batch of one says that it is the conformal loss: this is the point here
            means.append(
                sum(float(loss(conformal, part).loss) for part in points.split(size)[:256]) / min(4096 // size, 256)
            )
    batches.semilogx(sizes, means, "o-", color=BLUE, label="mean of the batches' own ratios")
    batches.axhline(means[-1], color=ORANGE, label="ratio of means over all 4,096")
    batches.set(title="A map whose scale varies from point to point", xlabel="batch", ylabel="loss, 1 is perfect")
    batches.legend(frameon=False, loc="lower right")
    save(figure, path / "why_pooled.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for draw in (scaled_isometry, why_the_sphere, why_pooled):
        draw(options.output_dir)
