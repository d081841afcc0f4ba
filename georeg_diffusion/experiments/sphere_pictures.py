"""Pictures of regions of the sphere, and of what maps to the plane make of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from georeg_diffusion.experiments.finding import Cell
from georeg_diffusion.experiments.replicates import over_seeds
from georeg_diffusion.experiments.sphere_autoencoder import Map, aligned
from georeg_diffusion.experiments.sphere_region import POLE, Region
from georeg_diffusion.report.pictures import _figure, _save

ORANGE, GREY = "#D55E00", "#8A8A8A"  # Okabe and Ito's palette
_MARGIN = 1.03


Panel = tuple[Map, Sequence[Mapping[str, float]]]
"""A map that is drawn, and the scores of its kind for each seed."""


def latents(rows: Mapping[str, tuple[Region, Mapping[str, Panel]]], target: Path, *, seed: int) -> Path:
    """Fig. 2: the sphere and the latent planes beside it, a row for each region.

    Args:
        rows: regions and their panels, by their names.
        target: the picture.
        seed: of the maps that are drawn.
    """
    columns = 1 + max(len(panels) for _, panels in rows.values())
    height = 4.15 * len(rows) + 0.45
    figure = _figure(figsize=(3.55 * columns, height))
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.3 / height))  # titles reach beyond what it reserves
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, (region, panels)) in zip(axes, rows.items(), strict=True):
        draw_sphere(row[0], region)
        row[0].set_title(f"(a) {name or 'Input: S²'}\nwithin {region.angle:g}°\nof its centre", fontsize=13)
        for letter, ax, (title, (f, scores)) in zip("bcdefgh", row[1:], panels.items(), strict=False):
            draw_latent(ax, f, region)
            numbers = "\n".join(f"{short} {_mean(scores, key)}" for key, short in _SHORT.items())
            ax.set_title(f"({letter}) {title}\n\n", fontsize=13)
            text = ax.text(0.5, 1.02, numbers, transform=ax.transAxes, ha="center", va="bottom", fontsize=11)
            text.set_in_layout(False)  # else it would make the panels smaller
        for ax in row[1 + len(panels) :]:
            ax.axis("off")
        colour_bar(figure, list(row), region)
    count = max(len(scores) for _, panels in rows.values() for _, scores in panels.values())
    figure.supxlabel(
        f"Drawn: seed {seed}. Numbers: mean ± standard error over {count} seed{'s' if count != 1 else ''}. "
        "Discs are equal on the sphere; × is the chart's pole.",
        fontsize=11,
        color="0.35",
    )
    _save(figure, target)
    return target


_SHORT = {"loss": "loss", "condition": "condition"}


def _mean(scores: Sequence[Mapping[str, float]], key: str) -> Cell:
    return Cell.of(over_seeds([one[key] for one in scores]))


def view(x: Tensor) -> Tensor:
    """Right, up and towards the eye, seen from 35° below the equator, ``(B, 3)``: the chart's pole is at the top."""
    right, y, z = x.unbind(1)
    c, s = math.cos(math.radians(35)), math.sin(math.radians(35))
    return torch.stack([right, c * z - s * y, -c * y - s * z], dim=1)


def draw_sphere(axes: Any, region: Region) -> None:
    """The sphere with the region's parallels, meridians and discs; what lies behind is pale, the chart's pole a cross."""
    from matplotlib.patches import Circle

    axes.add_patch(Circle((0, 0), 1, color="#F1F1F1", zorder=0))
    _draw(axes, view, region)
    right, up, depth = view(torch.tensor([POLE]))[0].tolist()
    axes.plot(right, up, "x", ms=7, mew=1.8, color="black" if depth > 0 else "0.72", zorder=0.5)
    _frame(axes, 1.06)


def draw_latent(axes: Any, f: Map, region: Region) -> None:
    """The same through a map to the plane, aligned to the equidistant projection."""
    x = region.sample(2048, torch.Generator().manual_seed(0))
    moved = aligned(f, x, region.equidistant)
    _draw(axes, moved, region)
    outline = torch.cat([moved(line) for _, line in region.parallels()])[:, :2]
    low, high = outline.amin(0), outline.amax(0)
    _frame(axes, _MARGIN * max(float((high - low).max()) / 2, math.radians(region.angle)), ((low + high) / 2).tolist())


def colour_bar(figure: Any, axes: Any, region: Region, *, shrink: float = 0.75) -> None:
    """Which parallel has which colour."""
    from matplotlib import cm, colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap

    degrees = [theta for theta, _ in region.parallels()]
    half = degrees[0] / 2
    norm = BoundaryNorm([degree - half for degree in degrees] + [degrees[-1] + half], len(degrees))
    colours = ListedColormap([colormaps["viridis"](_shade(degree, region)) for degree in degrees])
    bar = figure.colorbar(
        cm.ScalarMappable(norm, colours), ax=axes, pad=0.01, shrink=shrink, aspect=25, ticks=degrees, spacing="proportional"
    )
    bar.set_label("distance from the region's centre [°]", fontsize=11)


def _shade(degree: float, region: Region) -> float:
    return 0.92 * (degree - 15) / max(region.angle - 15, 1)


def _draw(axes: Any, f: Map, region: Region) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Polygon

    for outline in (f(one) for one in region.discs()):
        if outline.shape[1] == 2 or outline[:, 2].min() > 0:
            axes.add_patch(Polygon(outline[:, :2].numpy(), facecolor=ORANGE, alpha=0.8, zorder=2))
    lines: list[tuple[Tensor, Any, float]] = [(line, GREY, 0.6) for line in region.meridians()]
    lines += [(line, colormaps["viridis"](_shade(degree, region)), 2.0) for degree, line in region.parallels()]
    for line, colour, width in lines:
        drawn = f(line).numpy()
        behind = drawn[:, 2] < 0 if drawn.shape[1] == 3 else np.zeros(len(drawn), bool)
        for hidden, alpha in ((~behind, 0.15), (behind, 1.0)):
            axes.plot(*np.where(hidden[:, None], np.nan, drawn[:, :2]).T, color=colour, lw=width, alpha=alpha)


def _frame(axes: Any, extent: float, centre: Sequence[float] = (0.0, 0.0)) -> None:
    x, y = centre
    axes.set(aspect="equal", xlim=(x - extent, x + extent), ylim=(y - extent, y + extent))
    axes.axis("off")
