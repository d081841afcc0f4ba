"""Pictures and table of edits: a grid for each sample, and every edited image."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from georeg_diffusion.progress import console
from georeg_diffusion.report.grids import grid
from georeg_diffusion.report.panels import save_image

Target = Callable[[str], Path]


def slugs(names: Sequence[str]) -> list[str]:
    """Names as parts of file names, numbered where they would be the same.

    Example:
        >>> from georeg_diffusion.report.edits import slugs
        >>> slugs(["seed 3", "a/b.png", "seed 3"])
        ['seed-3', 'a-b.png', 'seed-3-2']
    """
    out: list[str] = []
    for name in names:
        base = re.sub(r"[^\w.+-]+", "-", name).strip("-.")[:60] or "unnamed"
        slug, number = base, 1
        while slug.lower() in (other.lower() for other in out):
            number += 1
            slug = f"{base}-{number}"
        out.append(slug)
    return out


def signed(gamma: float) -> str:
    """A strength for labels: −2, 0, +0.5."""
    return f"{gamma:+g}".replace("-", "−") if gamma else "0"


def write(
    target: Target,
    images: Tensor,
    *,
    samples: Sequence[str],
    rows: Sequence[str],
    notes: Sequence[Sequence[str]],
    columns: Sequence[float],
    title: str,
    column_axis: str,
) -> None:
    """``edits-SAMPLE.png`` for each sample and ``images/SAMPLE/ROW_γ.png`` for each image.

    Args:
        target: makes a path of a name, such as ``Workspace.path``.
        images: ``(R, S, B, C, H, W)``.
        samples: B names.
        rows: R names of directions.
        notes: for each row what stands under its name: one for all samples, or one for each.
        columns: S strengths γ.
        title: over each grid, behind the sample's name.
        column_axis: what γ is.
    """
    zero = list(columns).index(0) if 0 in columns else None
    for i, (sample, slug) in enumerate(zip(samples, slugs(samples), strict=True)):
        labels = [
            name.replace("\n", " ") + (f"\n{note[i % len(note)]}" if note else "")
            for name, note in zip(rows, notes, strict=True)
        ]
        grid(
            images[:, :, i],
            target(f"edits-{slug}.png"),
            rows=labels,
            columns=[signed(gamma) for gamma in columns],
            title=f"{sample}\n{title}",
            column_axis=column_axis,
            marked=zero,
        )
        for row, name in enumerate(slugs(rows)):
            for column, gamma in enumerate(columns):
                save_image(images[row, column, i], target(f"images/{slug}/{name}_{gamma:+g}.png"))


def write_pairs(
    target: Target, images: Tensor, *, samples: Sequence[str], gammas: Sequence[float], names: tuple[str, str], title: str
) -> None:
    """``combination-SAMPLE.png``: all pairs of strengths of two directions, images ``(S, S, B, C, H, W)`` (Fig. V)."""
    strengths = [signed(gamma) for gamma in gammas]
    for i, (sample, slug) in enumerate(zip(samples, slugs(samples), strict=True)):
        grid(
            images[:, :, i],
            target(f"combination-{slug}.png"),
            rows=strengths,
            columns=strengths,
            title=f"{sample}\n{title}",
            row_axis=f"γ of {names[0]}",
            column_axis=f"γ of {names[1]}",
        )


def write_injection(
    target: Target,
    plain: Tensor,
    contents: Tensor,
    edited: Tensor,
    *,
    samples: Sequence[str],
    others: Sequence[str],
    title: str,
) -> None:
    """``injection.png``: contents ``(C, ...)`` along, samples ``(B, ...)`` down, edited ``(C, B, ...)`` (Fig. VI)."""
    head = torch.cat([torch.ones_like(contents[:1]), contents])
    rows = [torch.cat([plain[i : i + 1], edited[:, i]]) for i in range(len(plain))]
    grid(
        torch.stack([head, *rows]),
        target("injection.png"),
        rows=["content", *samples],
        columns=["unedited", *others],
        title=title,
        column_axis="content h′ of",
        row_axis="sample",
        marked=0,
    )
    for i, slug in enumerate(slugs(samples)):
        save_image(plain[i], target(f"images/{slug}/unedited.png"))
        for j, other in enumerate(slugs(others)):
            save_image(edited[j, i], target(f"images/{slug}/{other}.png"))


def print_table(
    rows: Sequence[str], notes: Sequence[Sequence[str]], distances: Tensor, columns: Sequence[float], *, title: str
) -> None:
    """Distances ``(R, S)`` from the unedited images, a row for each direction."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("direction")
    table.add_column("")
    for gamma in columns:
        table.add_column(signed(gamma), justify="right")
    for name, note, row in zip(rows, notes, distances, strict=True):
        table.add_row(name, note[0] if len(note) == 1 else "", *(f"{d:.3g}" if d > 1e-4 else "0" for d in row.tolist()))
    console.print(table)
    console.print("Distances from the unedited images (L2 of pixels in [−1, 1], mean over samples)", style="dim")
