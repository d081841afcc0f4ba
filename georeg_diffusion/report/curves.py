"""The plots of ``evaluate``: drawn from what ``metrics.json`` holds, as SVG that needs nothing beside it."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from georeg_diffusion.report.pictures import _figure

LINES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
"""Colour and marker of each model, safe for all eyes and in grey."""

Models = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""``metrics.json``'s models: entries by score by name."""


@dataclass(frozen=True)
class Curve:
    """A line of a plot; what is not a number leaves a gap.

    Attributes:
        x, y: its points.
        low, high: a band around it, None without.
    """

    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None

    @classmethod
    def around(cls, x: Sequence[float], y: Sequence[float | None], error: Sequence[float | None] | None) -> Curve:
        """With a band of ± 1.96 standard errors, where there are any."""
        if error is None or any(one is None for one in (*y, *error)):
            return cls(x, y)
        pairs = [(float(a or 0), 1.96 * float(b or 0)) for a, b in zip(y, error, strict=True)]
        return cls(x, y, [a - b for a, b in pairs], [a + b for a, b in pairs])


@dataclass(frozen=True)
class Plot:
    """A plot for a page.

    Attributes:
        title: what it shows.
        caption: how to read it, for people who do not see it too.
        svg: the drawing.
    """

    title: str
    caption: str
    svg: str


def plot(
    title: str,
    caption: str,
    curves: Mapping[str, Curve],
    *,
    xlabel: str,
    ylabel: str,
    log: tuple[str, ...] = (),
    perfect: tuple[float, str] | None = None,
    zero: bool = False,
    whole: bool = False,
) -> Plot | None:
    """Lines of several models; None where there is nothing to draw.

    Args:
        title, caption: see :class:`Plot`.
        curves: by model.
        xlabel, ylabel: with units.
        log: axes on a logarithmic scale, such as ``("y",)``.
        perfect: a value to compare with and its name.
        zero: whether the vertical axis begins at 0.
        whole: whether the horizontal axis counts.

    Example:
        >>> from georeg_diffusion.report.curves import Curve, plot
        >>> drawn = plot("Loss", "Lower is better.", {"base": Curve([0, 1], [2.0, 1.0])}, xlabel="t", ylabel="loss")
        >>> drawn.svg.startswith("<svg"), plot("Loss", "", {"base": Curve([], [])}, xlabel="t", ylabel="loss")
        (True, None)
    """
    from matplotlib.ticker import MaxNLocator

    is_log = "y" in log
    drawn = {name: _points(curve, above_zero=is_log) for name, curve in curves.items()}
    drawn = {name: parts for name, parts in drawn.items() if any(math.isfinite(y) for y in parts[1])}
    if not drawn:
        return None
    figure = _figure(figsize=(4.9, 3.1))
    ax = figure.subplots()
    if perfect is not None and math.isfinite(perfect[0]):
        ax.axhline(perfect[0], color="0.35", lw=1.1, ls=(0, (4, 3)), label=perfect[1])
    for (color, marker), (name, (x, y, low, high)) in zip(_styles(curves, drawn), drawn.items(), strict=True):
        ax.plot(x, y, marker=marker, ms=4 if len(x) <= 24 else 0, lw=1.7, color=color, label=_verbatim(name))
        if low is not None:
            ax.fill_between(x, low, high, color=color, alpha=0.18, lw=0)
    if "x" in log:
        ax.set_xscale("log")
        _plain_ticks(ax.xaxis, *ax.get_xlim())
    elif whole:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if is_log:
        ax.set_yscale("log")
        lowest, highest = ax.get_ylim()
        if highest / lowest < 2000:  # numbers, not powers
            _plain_ticks(ax.yaxis, lowest, highest)
    elif zero:
        ax.set_ylim(bottom=0)
    ax.set_xlabel(xlabel, fontsize=10)
    ax.set_ylabel(ylabel, fontsize=10)
    ax.tick_params(labelsize=9.5, length=3, color="0.6")
    ax.grid(alpha=0.22, lw=0.7)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color("0.6")
    ax.legend(
        frameon=False,
        fontsize=9.5,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1),
        ncols=3 if sum(map(len, ax.get_legend_handles_labels()[1])) <= 48 else 1,
        handlelength=1.6,
        columnspacing=1.2,
        borderpad=0.2,
    )
    return Plot(title, caption, _svg(figure))


def _points(
    curve: Curve, *, above_zero: bool
) -> tuple[Sequence[float], list[float], list[float] | None, list[float] | None]:
    def numbers(values: Sequence[float | None] | None) -> list[float] | None:
        if values is None:
            return None
        found = [math.nan if value is None else float(value) for value in values]
        return [math.nan if above_zero and not value > 0 else value for value in found]

    return curve.x, numbers(curve.y) or [], numbers(curve.low), numbers(curve.high)


def _styles(all_curves: Mapping[str, Curve], drawn: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A model keeps its colour also where another one cannot be drawn."""
    return [LINES[i % len(LINES)] for i, name in enumerate(all_curves) if name in drawn]


def _verbatim(name: str) -> str:
    """Matplotlib reads $…$ as mathematics, and leaves out labels that begin with an underscore."""
    text = name if len(name) <= 34 else f"{name[:16]}…{name[-16:]}"
    text = text.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def _plain_ticks(axis: Any, lowest: float, highest: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    decades = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
    steps = (1, 1.5, 2, 3, 5, 7) if highest < 10 * lowest else (1, 2, 5)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    inside = [tick for tick in ticks if lowest <= tick <= highest]
    if len(inside) < 2:
        return
    axis.set_major_locator(FixedLocator(inside))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _svg(figure: Any) -> str:
    """Letters as outlines, so that it looks the same everywhere; equal plots give equal bytes."""
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "georeg"}), io.StringIO() as text:
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
        drawing = text.getvalue()
    return drawing[drawing.index("<svg") :]
