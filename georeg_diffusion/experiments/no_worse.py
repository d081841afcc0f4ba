"""Whether a setting improves one score at no cost in another: "no cost" is a claim of its own, and needs evidence.

That a rise is not significant does not show that there is none: with few seeds nothing is significant. What is asked here is
whether the 95% interval of the relative rise lies below a tolerance (a test of non-inferiority).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from georeg import Estimate
from georeg_diffusion.experiments.pareto import Values, is_measured
from georeg_diffusion.experiments.replicates import interval, is_below_zero, over_seeds, paired

Verdict = Literal["free", "costly", "no gain", "gain unclear", "cost unclear", "not measured"]


@dataclass(frozen=True)
class Bargain:
    """What a setting gains in one score and costs in another, against the base.

    Attributes:
        gain: ours − base of the score that shall fall, paired by seed.
        rise: relative rise of the other, ours/base − 1, paired by seed.
        low, high: its 95% interval, from Student's t with one degree of freedom less than seeds; None from one seed.
        verdict: ``"free"``: the gain is beyond its 95% interval, and that of the rise below the tolerance; ``"costly"``:
            that is above the tolerance; ``"no gain"``: the score rose instead, beyond its interval; ``"gain
            unclear"`` and ``"cost unclear"``: there is too little evidence of the one, or of the other; ``"not measured"``.
    """

    gain: Estimate | None
    rise: Estimate | None
    low: float | None
    high: float | None
    verdict: Verdict


def bargain(*, base_cost: Values, cost: Values, base_gain: Values, gain: Values, tolerance: float) -> Bargain:
    """Compare a setting with the base; of both scores, lower is better.

    Args:
        base_cost, cost: the score that shall not rise, of the base and of the setting, a value for each seed.
        base_gain, gain: the score that shall fall.
        tolerance: the largest relative rise that counts as none, such as 0.05.

    Raises:
        ValueError: different numbers of seeds, or a negative tolerance.

    Example:
        >>> from georeg_diffusion.experiments.no_worse import bargain
        >>> found = bargain(base_cost=[10.0, 11.0, 9.0], cost=[10.1, 11.0, 9.0], base_gain=[5.0, 5.0, 5.0],
        ...     gain=[4.0, 4.1, 3.9], tolerance=0.05)
        >>> found.verdict, round(found.high, 3)
        ('free', 0.018)
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance: got {tolerance}, expected a relative rise ≥ 0, such as 0.05")
    if len({len(values) for values in (base_cost, cost, base_gain, gain)}) > 1:
        raise ValueError("cost: got different numbers of values, expected one for each seed")
    change = paired(base_gain, gain) if is_measured(base_gain) and is_measured(gain) else None
    rise = _relative_rise(base_cost, cost)
    low, high = interval(rise)
    return Bargain(change, rise, low, high, _verdict(change, rise, low, high, tolerance))


def found(bargains: Mapping[str, Bargain]) -> bool | None:
    """Whether a setting improves at no cost: True where one does, False where none can, None where that is open.

    Settings that were not measured count only where there are no others.

    Example:
        >>> from georeg_diffusion.experiments.no_worse import Bargain, found
        >>> verdicts = ("free", "costly", "no gain", "cost unclear")
        >>> free, costly, worse, unclear = (Bargain(None, None, None, None, verdict) for verdict in verdicts)
        >>> found({"a": costly, "b": free}), found({"a": costly, "b": worse}), found({"a": costly, "b": unclear})
        (True, False, None)
    """
    verdicts = {one.verdict for one in bargains.values()} - {"not measured"}
    if "free" in verdicts:
        return True
    return False if verdicts and verdicts <= {"costly", "no gain"} else None


def closest(bargains: Mapping[str, Bargain]) -> str | None:
    """Of the settings that gain beyond errors, the one whose cost is bounded lowest; None where none gains."""
    gaining = {name: one for name, one in bargains.items() if is_below_zero(one.gain) and one.high is not None}
    return min(gaining, key=lambda name: gaining[name].high or 0.0, default=None)


def _relative_rise(base: Sequence[float | None], ours: Sequence[float | None]) -> Estimate | None:
    if not (is_measured(base) and is_measured(ours) and all(value is not None and value > 0 for value in base)):
        return None
    return over_seeds([float(b or 0) / float(a or 1) - 1 for a, b in zip(base, ours, strict=True)])


def _verdict(
    gain: Estimate | None, rise: Estimate | None, low: float | None, high: float | None, tolerance: float
) -> Verdict:
    if gain is None or rise is None:
        return "not measured"
    if low is not None and low > tolerance:
        return "costly"
    improves = is_below_zero(gain)
    if improves is None:
        return "gain unclear"
    if not improves:
        return "no gain"
    return "free" if high is not None and high <= tolerance else "cost unclear"
