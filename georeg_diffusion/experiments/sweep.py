"""Settings of the isometry loss, trained and scored over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.experiments.comparison import label_of, protocols, replicated
from georeg_diffusion.experiments.lab import Lab
from georeg_diffusion.experiments.pareto import Values
from georeg_diffusion.options import flag_of
from georeg_diffusion.progress import console
from georeg_diffusion.training.lambda_schedule import SCHEDULES

COST = "fid"
GEOMETRY = ("ppl", "mrtl")
"""The scores of the trade: what it costs, and what it is for."""

SCORES = (COST, *GEOMETRY, "mcn", "isometry")


@dataclass(frozen=True)
class Setting:
    """What is tried.

    Attributes:
        lambda_iso: λ of the normalised loss; 0 is the base.
        schedule: its course over the steps.
        skip: p; None is the recipe's.
    """

    lambda_iso: float
    schedule: str = "constant"
    skip: float | None = None

    @property
    def name(self) -> str:
        """Such as ``"λ = 0.01, linear-decay"``."""
        if not self.lambda_iso:
            return "λ = 0"
        skip = () if self.skip is None else (f"p = {self.skip:g}",)
        return ", ".join((f"λ = {self.lambda_iso:g}", self.schedule, *skip))

    @property
    def changes(self) -> dict[str, Any]:
        """Fields of :class:`georeg_diffusion.TrainConfig` over the recipe's."""
        if not self.lambda_iso:
            return {"lambda_iso": 0.0}
        skip = {} if self.skip is None else {"isometry_skip": self.skip}
        return {"lambda_iso": self.lambda_iso, "lambda_iso_schedule": self.schedule, **skip}


BASE = Setting(0.0)


@dataclass(frozen=True)
class Sweep:
    """What was measured.

    Attributes:
        settings: the base first.
        values: of each setting by name, of each score, a value for each seed; None where there is none.
        failures: why a setting has no values, by its name.
        labels: what tables call the scores.
        protocols: how they were measured.
        lab: that measured them.
    """

    settings: tuple[Setting, ...]
    values: Mapping[str, Mapping[str, Values]]
    failures: Mapping[str, str]
    labels: Mapping[str, str]
    protocols: tuple[str, ...]
    lab: Lab


def grid(lambdas: str, schedules: str = "constant", skips: str | None = None) -> tuple[Setting, ...]:
    """The base, and every λ above 0 with every schedule and every p.

    Args:
        lambdas, schedules, skips: as the command line has them, separated by commas.

    Raises:
        UsageError: anything but numbers in their range and known schedules; no λ above 0.

    Example:
        >>> from georeg_diffusion.experiments.sweep import grid
        >>> [setting.name for setting in grid("0,1e-2", "constant,early")]
        ['λ = 0', 'λ = 0.01, constant', 'λ = 0.01, early']
    """
    weights = _numbers("lambda_iso", lambdas, "numbers ≥ 0, such as 0,1e-3,1e-2", lambda value: value >= 0)
    names = list(dict.fromkeys(part.strip() for part in schedules.split(",") if part.strip()))
    if not names or not set(names) <= set(SCHEDULES):
        raise UsageError(f"{flag_of('lambda_iso_schedule')}: got {schedules!r}, expected some of {','.join(SCHEDULES)}")
    gates: Sequence[float | None] = [None]
    if skips is not None:
        expected = "numbers from 0 to below 1, such as 0.3,0.5: at 1 the loss acts nowhere, which is λ = 0"
        gates = _numbers("isometry_skip", skips, expected, lambda value: 0 <= value < 1)
    if not any(weights):
        raise UsageError(
            f"{flag_of('lambda_iso')}: got {lambdas!r}, expected a number above 0 too: there is nothing to compare"
        )
    return (BASE, *(Setting(*one) for one in product([weight for weight in weights if weight], names, gates)))


def _numbers(name: str, text: str, expected: str, is_right: Any) -> list[float]:
    try:
        values = list(dict.fromkeys(float(part) for part in text.split(",") if part.strip()))
    except ValueError:
        values = []
    if not values or not all(math.isfinite(value) and is_right(value) for value in values):
        raise UsageError(f"{flag_of(name)}: got {text!r}, expected {expected}")
    return values


def measure(lab: Lab, settings: Sequence[Setting]) -> Sweep:
    """Train and score all settings with every seed of the lab. One that fails, such as by diverging, leaves the others.

    Raises:
        RunError: the base cannot be trained or scored.
    """
    # λ is the normalised loss's for all data sets; the presets have the paper's, of the bare ratio.
    lab = replace(lab, recipe=replace(lab.recipe, training={**lab.recipe.training, "normalize": True}))
    values: dict[str, Mapping[str, Values]] = {}
    failures: dict[str, str] = {}
    measured = []
    for number, setting in enumerate(settings, start=1):
        console.print(f"{number} of {len(settings)}: {setting.name}", style="bold", highlight=False)
        try:
            scores = replicated(lab, SCORES, **setting.changes)
        except RunError as error:
            if setting == BASE:
                raise
            console.print(f"  failed: {error}", style="red", markup=False, highlight=False)
            failures[setting.name] = str(error)
            values[setting.name] = dict.fromkeys(SCORES, (None,) * len(lab.seeds))
            continue
        measured.append(scores)
        values[setting.name] = {name: tuple(map(_finite, found)) for name, found in scores.values.items()}
    labels = {name: label_of(lab, name) for name in SCORES}
    return Sweep(tuple(settings), values, failures, labels, protocols(*measured), lab)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
