"""The pictures of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import georeg
from georeg_diffusion.bundle import Bundle
from georeg_diffusion.denoiser import conditioned
from georeg_diffusion.files import replacing
from georeg_diffusion.sampling.ddim import ddim_sample

COLORS = {"pretrained": "0.55", "base": "#0072B2", "isometric": "#D55E00"}
TITLES = {"base": "base (λ = 0)", "isometric": "isometric"}


def _figure(*args: Any, **kwargs: Any) -> Any:
    from matplotlib.figure import Figure

    return Figure(*args, layout="constrained", **kwargs)


def _save(figure: Any, target: Path) -> None:
    with replacing(target) as scratch:
        figure.savefig(scratch, dpi=160)


def tiled(pixels: Tensor, columns: int, *, gap: int = 1) -> np.ndarray:
    """Images ``(N, C, H, W)`` in [−1, 1] as one picture ``(H', W', 3)`` in [0, 1], white between them."""
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = torch.ones(rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    values = ((pixels.float().cpu() + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).expand(-1, -1, -1, max(channels, 3))
    for i in range(count):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = values[i]
    return sheet.numpy()


@torch.no_grad()
def _sampled(bundle: Bundle, noise: Tensor, seeds: list[int], num_steps: int, device: Any, prompt: str | None) -> Tensor:
    """Images of noise, on the host; a few at a time where an autoencoder makes them large."""
    denoiser = conditioned(bundle, prompt=prompt, seeds=seeds)
    size = len(noise) if bundle.codec is None else 8
    chunks = torch.arange(len(noise)).split(size)
    return torch.cat([ddim_sample(denoiser.rows(rows), noise[rows].to(device), num_steps).cpu() for rows in chunks])


def samples(
    models: dict[str, Bundle],
    target: Path,
    *,
    seed: int,
    num_steps: int,
    device: Any,
    prompt: str | None = None,
    rows: int = 4,
) -> None:
    """Samples of each model from the same noise, one model above the other."""
    columns = 16
    panels = {}
    for name, bundle in models.items():
        noise = torch.randn(rows * columns, *bundle.sample_shape, generator=torch.Generator().manual_seed(seed + 1))
        panels[name] = tiled(_sampled(bundle, noise, list(range(len(noise))), num_steps, device, prompt), columns)
    figure = _figure(figsize=(8, 2.3 * len(panels) + 0.3))
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for ax, (name, sheet) in zip(axes, panels.items(), strict=True):
        ax.imshow(sheet, interpolation="nearest")
        ax.set_title(TITLES.get(name, name), loc="left", fontsize=11)
        ax.set_axis_off()
    figure.suptitle(f"Samples from the same noise, {num_steps} DDIM steps", fontsize=12)
    _save(figure, target)


def interpolation(
    models: dict[str, Bundle],
    target: Path,
    *,
    seed: int,
    num_steps: int,
    device: Any,
    prompt: str | None = None,
    pairs: int = 4,
    frames: int = 13,
) -> None:
    """Slerp rows, one model above the other between the same noise, and how far adjacent frames are apart."""
    fractions = torch.linspace(0, 1, frames)
    strips: dict[str, Tensor] = {}
    for name, bundle in models.items():
        ends = torch.randn(2, pairs, *bundle.sample_shape, generator=torch.Generator().manual_seed(seed + 2))
        path = georeg.slerp(ends[0], ends[1], fractions)
        seeds = list(range(pairs)) * frames  # a class stays the same along a row
        images = _sampled(bundle, path.flatten(0, 1), seeds, num_steps, device, prompt)
        strips[name] = images.unflatten(0, (frames, pairs))
    names = list(strips)
    figure = _figure(figsize=(11, 1.05 * pairs * len(names) * 0.62 + 1.1))
    axes = figure.subplots(pairs, 2, width_ratios=(3.2, 1), squeeze=False)
    for row in range(pairs):
        sheet = tiled(torch.cat([strips[name][:, row] for name in names]), frames)
        ax = axes[row, 0]
        ax.imshow(sheet, interpolation="nearest")
        height = sheet.shape[0] / len(names)
        ax.set_yticks([height * (i + 0.5) for i in range(len(names))], names, fontsize=9)
        ax.set_xticks([])
        ax.tick_params(length=0)
        for side in ax.spines.values():
            side.set_visible(False)
        plot = axes[row, 1]
        for name in names:
            steps = (strips[name][1:, row] - strips[name][:-1, row]).flatten(1).norm(dim=1)
            plot.plot((fractions[1:] + fractions[:-1]) / 2, steps, "o-", ms=3, lw=1.2, color=COLORS.get(name), label=name)
        plot.set_ylim(bottom=0)
        plot.set_xlim(0, 1)
        plot.tick_params(labelsize=8)
        plot.grid(alpha=0.25)
        if row == 0:
            plot.set_title("distance between adjacent frames (L2)", fontsize=9)
            plot.set_ylim(top=1.3 * plot.get_ylim()[1])  # room for the legend
            plot.legend(fontsize=8, frameon=False, ncols=len(names), loc="upper center")
        if row < pairs - 1:
            plot.set_xticklabels([])
        else:
            plot.set_xlabel("position on the slerp", fontsize=9)
    figure.suptitle(f"Spherical interpolation of the noise, same end points, {num_steps} DDIM steps", fontsize=12)
    _save(figure, target)


def losses(logs: dict[str, list[dict[str, Any]]], target: Path, *, base_isometry: float | None = None) -> None:
    """Denoising loss and normalised isometry loss against steps, for each phase.

    Args:
        logs: entries by phase.
        target: the picture.
        base_isometry: the finished base model's isometry loss, drawn as a line to compare with.
    """
    figure = _figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2)
    before = max((entry["step"] for entry in logs.get("pretrained", [])), default=0)
    for name, entries in logs.items():
        if not entries:
            continue
        offset = 0 if name == "pretrained" else before
        steps = [entry["step"] + offset for entry in entries]
        left.plot(steps, [entry["denoising"] for entry in entries], color=COLORS.get(name), label=TITLES.get(name, name))
        gated = [(s, e["functional"]) for s, e in zip(steps, entries, strict=True) if e["functional"] > 0]
        if gated:
            right.plot(*zip(*gated, strict=True), color=COLORS.get(name), label=TITLES.get(name, name))
    left.set(title="Denoising loss (training batches)", xlabel="optimiser step", ylabel="mean-squared error", yscale="log")
    right.set(title="Isometry loss of the gated samples", xlabel="optimiser step", ylabel="normalised ratio, 1 is perfect")
    right.axhline(1, color="0.4", lw=0.8, ls="--")
    if base_isometry is not None:
        right.axhline(base_isometry, color=COLORS["base"], lw=1.2, ls="--", label=f"{TITLES['base']}, at its end")
        right.set_ylim(bottom=0)
    for ax in (left, right):
        ax.grid(alpha=0.25)
        if ax.get_legend_handles_labels()[1]:
            ax.legend(frameon=False)
    _save(figure, target)
