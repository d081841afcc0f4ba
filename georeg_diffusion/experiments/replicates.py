"""Means over seeds with their standard errors, and what they decide."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy import stats

from georeg import Estimate

CONFIDENCE = 0.95
"""A difference counts where its interval of this confidence leaves out zero."""


def over_seeds(values: Sequence[float | None]) -> Estimate | None:
    """Mean over seeds with its standard error, std/√n; None where a value is missing.

    Example:
        >>> from georeg_diffusion.experiments.replicates import over_seeds
        >>> found = over_seeds([1.0, 2.0, 3.0])
        >>> found.value, round(found.stderr, 4), found.n                     # 1/√3
        (2.0, 0.5774, 3)
    """
    known = [value for value in values if value is not None]
    return Estimate.of(torch.tensor(known, dtype=torch.float64)) if known and len(known) == len(values) else None


def paired(before: Sequence[float | None], after: Sequence[float | None]) -> Estimate | None:
    """Mean of after − before over seeds, each seed's two models compared with each other.

    What the seed decides for both (the pre-trained model, the noise of the scores) cancels.

    Raises:
        ValueError: different numbers of seeds.

    Example:
        >>> from georeg_diffusion.experiments.replicates import paired
        >>> paired([10.0, 20.0, 30.0], [11.0, 21.0, 31.0])
        Estimate(value=1.0, stderr=0.0, n=3)
    """
    if len(before) != len(after):
        raise ValueError(f"after: got {len(after)} values, expected {len(before)}, one for each seed")
    pairs = zip(before, after, strict=True)
    return over_seeds([None if a is None or b is None else b - a for a, b in pairs])


def interval(estimate: Estimate | None, *, confidence: float = CONFIDENCE) -> tuple[float | None, float | None]:
    """The interval of a mean over seeds, ± t·SE with Student's t: ± 4.3 standard errors from 3 seeds, 2.3 from 10.

    Example:
        >>> from georeg import Estimate
        >>> from georeg_diffusion.experiments.replicates import interval
        >>> low, high = interval(Estimate(1.0, 0.1, 3))
        >>> round(low, 3), round(high, 3)
        (0.57, 1.43)
    """
    if estimate is None or estimate.stderr is None:
        return None, None
    reach = float(stats.t.ppf((1 + confidence) / 2, estimate.n - 1)) * estimate.stderr
    return estimate.value - reach, estimate.value + reach


def is_below_zero(difference: Estimate | None, *, confidence: float = CONFIDENCE) -> bool | None:
    """Whether a difference is negative (True) or positive (False) beyond its interval; None where that is unclear.

    Example:
        >>> from georeg import Estimate
        >>> from georeg_diffusion.experiments.replicates import is_below_zero
        >>> [is_below_zero(Estimate(value, 1.0, 3)) for value in (-5.0, 5.0, 3.0)]
        [True, False, None]
    """
    low, high = interval(difference, confidence=confidence)
    if low is not None and high is not None and (high < 0 or low > 0):
        return high < 0
    return None


def in_words(difference: Estimate | None, unit: str = "") -> str:
    """A difference with its standard error and the number of seeds, for evidence.

    Example:
        >>> from georeg import Estimate
        >>> from georeg_diffusion.experiments.replicates import in_words
        >>> in_words(Estimate(-1.25, 0.31, 3))
        '−1.25 ± 0.31 (3 seeds)'
    """
    if difference is None:
        return "not measured"
    sign = "−" if difference.value < 0 else "+"
    error = "" if difference.stderr is None else f" ± {difference.stderr:.2g}"
    seeds = f"{difference.n} seed{'s' if difference.n != 1 else ''}"
    return f"{sign}{abs(difference.value):.3g}{error}{unit} ({seeds})"
