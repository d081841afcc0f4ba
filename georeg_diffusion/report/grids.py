"""Images in rows and columns that mean something."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from georeg_diffusion.report.panels import _gap, _shortened
from georeg_diffusion.report.pictures import _figure, _save, tiled


def grid(
    cells: Tensor,
    target: Path,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    row_axis: str = "",
    column_axis: str = "",
    marked: int | None = None,
) -> None:
    """Images ``(R, S, C, H, W)`` in [−1, 1] with a label for each row and column.

    Args:
        cells: the images.
        target: the picture.
        rows: R labels; long names are shortened line by line.
        columns: S labels.
        title: over it.
        row_axis, column_axis: what changes down and along.
        marked: a column set off by a frame, such as the unedited one.
    """
    count, across = cells.shape[:2]
    gap = _gap(cells)
    picture = tiled(cells.flatten(0, 1), across, gap=gap)
    cell = min(max(5.5 / across, 0.85), 1.5)
    figure = _figure(figsize=(cell * across + 1.9, cell * count * cells.shape[-2] / cells.shape[-1] + 1.15))
    ax = figure.subplots()
    ax.imshow(picture, interpolation="nearest")
    height, width = cells.shape[-2] + gap, cells.shape[-1] + gap
    labels = ["\n".join(_shortened(line) for line in name.split("\n")) for name in rows]
    ax.set_yticks([height * (i + 0.5) - gap / 2 - 0.5 for i in range(count)], labels, fontsize=9)
    ax.set_xticks([width * (i + 0.5) - gap / 2 - 0.5 for i in range(across)], columns, fontsize=9)
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.set_xlabel(column_axis, fontsize=9)
    ax.set_ylabel(row_axis, fontsize=9)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if marked is not None:
        left = width * marked - gap / 2 - 0.5
        ax.axvspan(left, left + width, fill=False, edgecolor="#D55E00", lw=1.6, clip_on=False)
    figure.suptitle(title, fontsize=10)
    _save(figure, target)
