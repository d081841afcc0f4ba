"""Numbers of models over seeds that are no score of ``evaluate``: as a table, and by a classifier where there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from georeg_diffusion.errors import RunError
from georeg_diffusion.evaluation.setting import Setting
from georeg_diffusion.experiments.comparison import BASE, Replicated, difference
from georeg_diffusion.experiments.finding import Cell, Table
from georeg_diffusion.experiments.lab import Lab
from georeg_diffusion.experiments.replicates import is_below_zero

Numbers = Mapping[str, float | None]
"""By name, of one seed; None where nothing can measure it."""

T = TypeVar("T")


def models_of(lab: Lab) -> dict[str, dict[str, Any]]:
    """The two models of most figures and their changes, by the names that pictures give them."""
    gap = "\u00a0"  # which no line break falls on
    return {f"base (λ{gap}={gap}0)": BASE, f"isometric (λ{gap}={gap}{lab.recipe.lambda_iso:g})": {}}


def gathered(seeds: Sequence[Numbers]) -> Replicated:
    """Numbers of each seed, as those of scores."""
    return Replicated({name: tuple(one[name] for one in seeds) for name in seeds[0]}, {}, {})


def table_of(
    title: str,
    models: Mapping[str, Replicated],
    measures: Mapping[str, bool | None],
    *,
    pairs: Sequence[tuple[str, str, str]],
    caption: str,
) -> Table:
    """A row for each measure: the models' means, then differences.

    Args:
        title: above it.
        models: by name.
        measures: by name, whether lower is better; None where neither is.
        pairs: column, before and after of each difference.
        caption: below it.
    """
    rows: list[tuple[Cell | str, ...]] = []
    for name, is_lower_better in measures.items():
        cells = [Cell.of(one.mean(name)) for one in models.values()]
        for _, before, after in pairs:
            change = difference(models[before], models[after], name)
            falls = is_below_zero(change)
            better = None if falls is None or is_lower_better is None else falls == is_lower_better
            cells.append(Cell.of(change, better=better, signed=True))
        arrow = {True: " ↓", False: " ↑", None: ""}[is_lower_better]
        rows.append((f"{name}{arrow}", *cells))
    return Table(title, ("measure", *models, *(column for column, _, _ in pairs)), tuple(rows), caption)


def available(tool: Callable[[], T]) -> T | None:
    """A tool of a setting, None where there is none, such as a classifier for images without labels."""
    try:
        return tool()
    except RunError:
        return None


def absent(**tools: Callable[[], object]) -> tuple[str, ...]:
    """Which tools a setting lacks, why, and the remedy, for notes."""
    found = []
    for name, tool in tools.items():
        try:
            tool()
        except RunError as error:
            found.append(f"nothing was measured by the {name.replace('_', ' ')}: {error}")
    return tuple(found)


def labels_of(setting: Setting, images: Tensor) -> tuple[Tensor, Tensor] | None:
    """Labels ``(..., K)``, true or false, and confidence ``(...)`` of images ``(..., C, H, W)``; None without a classifier.

    One label where classes exclude each other, else those of probability above one half; the confidence is the mean
    probability of what was decided.
    """
    classifier = available(setting.classifier)
    if classifier is None:
        return None
    p = classifier.probabilities(images.flatten(0, -4).to(setting.device)).cpu()
    if classifier.exclusive:
        labels, confidence = torch.nn.functional.one_hot(p.argmax(1), p.shape[1]).bool(), p.amax(1)
    else:
        labels, confidence = p > 0.5, torch.maximum(p, 1 - p).mean(1)
    shape = images.shape[:-3]
    return labels.reshape(*shape, -1), confidence.reshape(shape)


def share(labels: Tensor, other: Tensor) -> Tensor:
    """Share of labels ``(..., K)`` that differ: of one class 0 or 1, of attributes the share of attributes.

    Example:
        >>> import torch
        >>> from georeg_diffusion.experiments.measured import share
        >>> a, b = torch.eye(3, dtype=torch.bool)[:2]
        >>> float(share(a, b)), float(share(a, a))
        (1.0, 0.0)
    """
    differs = labels != other
    is_one = (labels.sum(-1) == 1) & (other.sum(-1) == 1)
    return torch.where(is_one, differs.any(-1).double(), differs.double().mean(-1))


def mean_of(values: Tensor) -> float:
    """Mean as a number."""
    return float(values.double().mean())
