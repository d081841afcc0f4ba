"""Which settings are on the Pareto front of two scores, as far as replicates over seeds can tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from georeg_diffusion.experiments.replicates import is_below_zero, over_seeds, paired

Values = Sequence[float | None]
"""A score of one setting: a value for each seed, None where there is none."""

State = Literal["front", "dominated", "undecided", "not measured"]


@dataclass(frozen=True)
class Standing:
    """Where a setting stands.

    Attributes:
        state: ``"front"``: nothing dominates it, beyond errors; ``"dominated"``: something does, beyond errors;
            ``"undecided"``: the errors are too large to say; ``"not measured"``: a value is missing.
        by: the settings that dominate it, or where that is undecided, those that may.
        is_front_of_means: whether no other setting has both means lower (or one lower and one equal): what the front
            would be if there were no errors.
    """

    state: State
    by: tuple[str, ...] = ()
    is_front_of_means: bool = False


def standings(points: Mapping[str, Sequence[Values]]) -> dict[str, Standing]:
    """Where each setting stands; lower is better in all scores.

    a dominates b where a is lower beyond the 95% interval in one score at least, and in the others lower beyond it or
    equal in every seed. It certainly does not where a is higher beyond the 95% interval in some
    score, or equal to b in all. Differences are paired by seed; from one seed there is no standard error, and nothing but
    equality is certain.

    Args:
        points: for each setting its scores, in one order, each with a value for each seed, in one order.

    Raises:
        ValueError: settings with different numbers of scores or seeds.

    Example:
        >>> from georeg_diffusion.experiments.pareto import standings
        >>> found = standings({
        ...     "base": [(3.0, 3.1, 2.9), (9.0, 9.2, 8.9)],
        ...     "good": [(3.0, 3.1, 2.9), (7.0, 7.1, 7.0)],
        ...     "noisy": [(2.0, 6.0, 4.0), (6.0, 8.9, 8.5)],
        ... })
        >>> {name: (one.state, one.by) for name, one in found.items()}
        {'base': ('dominated', ('good',)), 'good': ('undecided', ('noisy',)), 'noisy': ('undecided', ('base', 'good'))}
    """
    if len({tuple(len(values) for values in scores) for scores in points.values()}) > 1:
        raise ValueError("points: got settings with different numbers of scores or seeds, expected the same of all")
    measured = {name: scores for name, scores in points.items() if all(map(is_measured, scores))}
    return {name: _standing(name, measured) if name in measured else Standing("not measured") for name in points}


def is_measured(values: Values) -> bool:
    """Whether there is a finite value for each seed, of at least one."""
    return len(values) > 0 and all(value is not None and math.isfinite(value) for value in values)


def _standing(name: str, points: Mapping[str, Sequence[Values]]) -> Standing:
    mine = points[name]
    others = {other: scores for other, scores in points.items() if other != name}
    verdicts = {other: _dominates(scores, mine) for other, scores in others.items()}
    is_front = not any(_means_dominate(scores, mine) for scores in others.values())
    certain = tuple(other for other, verdict in verdicts.items() if verdict is True)
    possible = tuple(other for other, verdict in verdicts.items() if verdict is None)
    if certain:
        return Standing("dominated", certain, is_front)
    return Standing("undecided", possible, is_front) if possible else Standing("front", (), is_front)


def _dominates(a: Sequence[Values], b: Sequence[Values]) -> bool | None:
    """Whether a dominates b; None where that is undecided."""
    lower = [is_below_zero(paired(theirs, ours)) for ours, theirs in zip(a, b, strict=True)]
    equal = [tuple(ours) == tuple(theirs) for ours, theirs in zip(a, b, strict=True)]
    if False in lower or all(equal):
        return False
    return True if all(low or same for low, same in zip(lower, equal, strict=True)) else None


def _means_dominate(a: Sequence[Values], b: Sequence[Values]) -> bool:
    pairs = [(_mean(ours), _mean(theirs)) for ours, theirs in zip(a, b, strict=True)]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def _mean(values: Values) -> float:
    found = over_seeds(values)
    return math.nan if found is None else found.value
