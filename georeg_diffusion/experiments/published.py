"""The paper's numbers, as data: they are shown beside ours, and always as another data set's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True)
class Published:
    """One number of the paper.

    Attributes:
        where: the table, such as ``"table1"``, or ``"costs"`` for App. A.2.
        dataset: on which it was measured.
        model: ``"base"`` or ``"ours"``, or a row of the table.
        score: the column.
        value: the number.
    """

    where: str
    dataset: str
    model: str
    score: str
    value: float


@cache
def _all() -> tuple[Published, ...]:
    content: list[dict[str, Any]] = yaml.safe_load(files(__package__).joinpath("published.yaml").read_text("utf-8"))
    found = []
    for table in content:
        for row in table["rows"]:
            given = {key: row[key] for key in ("dataset", "model") if key in row}
            where = {"dataset": table.get("dataset", ""), "model": "", **given}
            found += [
                Published(table["where"], where["dataset"], where["model"], str(score), float(value))
                for score, value in row.items()
                if score not in ("dataset", "model")
            ]
    return tuple(found)


def published(where: str, **match: str) -> tuple[Published, ...]:
    """The paper's numbers of a table, in its order.

    Args:
        where: the table.
        **match: ``dataset``, ``model`` or ``score`` of those that are wanted.

    Example:
        >>> from georeg_diffusion.experiments.published import published
        >>> [one.value for one in published("table1", dataset="CelebA-HQ", score="fid")]
        [15.89, 16.18]
    """
    return tuple(
        one for one in _all() if one.where == where and all(getattr(one, key) == value for key, value in match.items())
    )


def value_of(where: str, **match: str) -> float | None:
    """The one number that matches; None where the paper has none.

    Raises:
        ValueError: several match.
    """
    found = published(where, **match)
    if len(found) > 1:
        raise ValueError(f"match: got {match}, which {len(found)} numbers of {where} have, expected one")
    return found[0].value if found else None
