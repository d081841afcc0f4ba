"""Pictures of regions of the sphere, and of what maps to the plane make of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from georeg_diffusion.experiments.sphere_autoencoder import Map, aligned
from georeg_diffusion.experiments.sphere_region import POLE, Region

ORANGE, GREY = "#D55E00", "#8A8A8A"  # Okabe and Ito's palette
_MARGIN = 1.03


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
    axes.plot(right, up, "x", ms=7, mew=1.8, color="black", alpha=1.0 if depth > 0 else 0.35)
    _frame(axes, 1.06)


def draw_latent(axes: Any, f: Map, region: Region) -> None:
    """The same through a map to the plane, aligned to the equidistant projection and drawn to its scale."""
    x = region.sample(2048, torch.Generator().manual_seed(0))
    moved = aligned(f, x, region.equidistant)
    _draw(axes, moved, region)
    _frame(axes, _MARGIN * max(float(moved(line).abs().max()) for _, line in region.parallels()))


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


def _frame(axes: Any, extent: float) -> None:
    axes.set(aspect="equal", xlim=(-extent, extent), ylim=(-extent, extent))
    axes.axis("off")
