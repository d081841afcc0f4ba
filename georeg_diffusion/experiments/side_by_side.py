"""Base and ours measured here, beside what the paper prints for its data sets."""

from __future__ import annotations

from collections.abc import Sequence

from georeg_diffusion.experiments.comparison import Replicated, cells, label_of, setting_of
from georeg_diffusion.experiments.finding import Cell, Table
from georeg_diffusion.experiments.lab import Lab
from georeg_diffusion.experiments.published import published, value_of


def beside_the_paper(
    lab: Lab, where: str, title: str, base: Replicated, ours: Replicated, scores: Sequence[str], *, prefix: str = ""
) -> Table:
    """A row for each score: base, ours and their difference here, then base → ours on each of the paper's data sets.

    Args:
        lab: that measured.
        where: the paper's table.
        title: of the table.
        base, ours: the two configurations.
        scores: the rows.
        prefix: of the models' names in the paper's table, such as ``"LDM "``.
    """
    datasets = list(dict.fromkeys(one.dataset for one in published(where)))
    rows: list[tuple[Cell | str, ...]] = []
    for score in scores:
        theirs = [
            Cell(
                value_of(where, dataset=dataset, model=f"{prefix}ours", score=score),
                before=value_of(where, dataset=dataset, model=f"{prefix}base", score=score),
                published=True,
            )
            for dataset in datasets
        ]
        rows.append((f"{label_of(lab, score)} ↓", *cells(base, ours, score), *theirs))
    here = lab.recipe.label
    columns = ("score", "base", "ours", "ours − base", *(f"paper: {dataset.removeprefix('LSUN-')}" for dataset in datasets))
    note = "" if here in datasets else f" The paper's numbers are of other data sets and do not compare with {here}."
    return Table(title, columns, tuple(rows), f"Measured here: {setting_of(lab)}{note}")
