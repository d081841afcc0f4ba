"""A picture of what one score costs in others: points with their errors, series, the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from georeg_diffusion.report.curves import LINES, _plain_ticks
from georeg_diffusion.report.pictures import _figure, _save

_FILLS = {"front": "on the front", "undecided": "undecided", "dominated": "dominated"}
_WIDE = 6
_BESIDE: tuple[dict[str, Any], ...] = (
    {"xytext": (-5, 9), "ha": "right"},
    {"xytext": (7, 6), "ha": "left"},
    {"xytext": (-7, -6), "ha": "right", "va": "top"},
    {"xytext": (7, -6), "ha": "left", "va": "top"},
    {"xytext": (-7, 6), "ha": "right"},
)
"""Where labels are: of the base, then of each series, so that neighbours of two series do not cover each other."""


@dataclass(frozen=True)
class Spot:
    """A point of the picture.

    Attributes:
        x, y: its means.
        xerr, yerr: their standard errors, None without.
        label: beside it.
        series: the line that it is on; None for what all are compared with.
        state: ``"front"``, ``"undecided"`` or ``"dominated"``.
        on_front_of_means: whether the line of the front passes through it.
    """

    x: float
    y: float
    xerr: float | None
    yerr: float | None
    label: str
    series: str | None
    state: str
    on_front_of_means: bool


def tradeoff(
    panels: Mapping[str, Sequence[Spot]], target: Path, *, title: str, xlabel: str, tolerance: float, caption: str = ""
) -> None:
    """One panel for each score on the vertical axis, all with the same cost on the horizontal one; lower is better in both.

    Args:
        panels: points by the label of the vertical axis; a point without a series is the base. Panels without points, such
            as of scores that were not measured, are left out.
        target: the picture.
        title: above it.
        xlabel: of the cost.
        tolerance: relative rise of the cost over the base's that counts as none; what is better is shaded up to there.
        caption: above its legend.

    Raises:
        ValueError: no points at all.
    """
    drawn = {label: spots for label, spots in panels.items() if spots}
    if not drawn:
        raise ValueError("panels: got no points, expected at least one")
    figure = _figure(figsize=(5.4 * len(drawn), 4.9))
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    series = list(dict.fromkeys(spot.series for spots in drawn.values() for spot in spots if spot.series is not None))
    for ax, (label, spots) in zip(axes, drawn.items(), strict=True):
        _panel(ax, spots, series, tolerance)
        ax.set_xlabel(xlabel, fontsize=10.5)
        ax.set_ylabel(label, fontsize=10.5)
    entries = _entries(series, {spot.state for spots in drawn.values() for spot in spots}, tolerance)
    how: dict[str, Any] = {"title": caption or None, "title_fontsize": 9.5}
    figure.legend(handles=entries, loc="outside lower center", ncols=4, frameon=False, fontsize=9.5, **how)
    figure.suptitle(title, fontsize=12.5)
    _save(figure, target)


def _panel(ax: Any, spots: Sequence[Spot], series: Sequence[str], tolerance: float) -> None:
    _front(ax, spots)
    for name in series:
        line = [spot for spot in spots if spot.series == name]
        ax.plot([s.x for s in line], [s.y for s in line], color=_style(series, name)[0], lw=1, alpha=0.45, zorder=2)
    for spot in spots:
        color, marker = ("black", "*") if spot.series is None else _style(series, spot.series)
        ax.errorbar(spot.x, spot.y, xerr=spot.xerr, yerr=spot.yerr, fmt="none", ecolor=color, elinewidth=1.1, zorder=3)
        ax.plot(
            *(spot.x, spot.y, marker),
            **_fill(color, spot.state),
            ms=13 if spot.series is None else 8,
            zorder=4,
        )
        where = _BESIDE[0 if spot.series is None else 1 + series.index(spot.series) % (len(_BESIDE) - 1)]
        ax.annotate(spot.label, (spot.x, spot.y), **where, textcoords="offset points", fontsize=9, color=color, zorder=5)
    ax.margins(0.14)
    _scales(ax, spots)
    for base in (spot for spot in spots if spot.series is None):
        left, right = ax.get_xlim()
        bottom, top = ax.get_ylim()
        ax.fill_between([left, base.x * (1 + tolerance)], bottom, base.y, color="#009E73", alpha=0.09, lw=0, zorder=0)
        ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.grid(alpha=0.22, lw=0.7)
    ax.tick_params(labelsize=9.5)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _front(ax: Any, spots: Sequence[Spot]) -> None:
    """Stairs through the means that no other mean dominates."""
    corners = sorted((spot.x, spot.y) for spot in spots if spot.on_front_of_means)
    if len(corners) > 1:
        ax.step(*zip(*corners, strict=True), where="post", color="0.55", lw=1.2, ls=(0, (4, 3)), zorder=1)


def _scales(ax: Any, spots: Sequence[Spot]) -> None:
    """Logarithmic where values spread, with numbers and not powers."""
    for axis, values in (("x", [s.x for s in spots]), ("y", [s.y for s in spots])):
        if min(values) > 0 and max(values) > _WIDE * min(values):
            (ax.set_xscale if axis == "x" else ax.set_yscale)("log")
            lowest, highest = ax.get_xlim() if axis == "x" else ax.get_ylim()
            _plain_ticks(ax.xaxis if axis == "x" else ax.yaxis, lowest, highest)


def _style(series: Sequence[str], name: str) -> tuple[str, str]:
    round_, index = divmod(series.index(name), len(LINES))
    return LINES[index][0], LINES[(index + round_) % len(LINES)][1]


def _fill(color: str, state: str) -> dict[str, Any]:
    from matplotlib.colors import to_rgb

    pale = tuple(0.45 * part + 0.55 for part in to_rgb(color))
    inside = {"front": color, "dominated": "white"}.get(state, pale)
    return {"markerfacecolor": inside, "markeredgecolor": color, "markeredgewidth": 1.4}


def _entries(series: Sequence[str], states: set[str], tolerance: float) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    lines = [Line2D([], [], color=_style(series, s)[0], marker=_style(series, s)[1], lw=1, label=s) for s in series]
    base = Line2D([], [], color="black", marker="*", ms=11, ls="", label="base, λ = 0")
    fills = [
        Line2D([], [], marker="o", ls="", label=label, **_fill("0.3", state))
        for state, label in _FILLS.items()
        if state in states
    ]
    front = Line2D([], [], color="0.55", lw=1.2, ls=(0, (4, 3)), label="front of the means")
    better = Patch(color="#009E73", alpha=0.15, lw=0, label=f"better, at a cost below {100 * tolerance:.3g}%")
    return [base, *lines, *fills, front, better]
