"""What a functional is: per-sample statistics, and a function of their pooled means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from georeg.moments import SpectralMoments


class Functional(ABC):
    """A loss F(m₁, …, m_S) of the pooled means m_k of per-sample statistics.

    Attributes:
        num_statistics: S.
    """

    num_statistics: int

    @abstractmethod
    def statistics(self, moments: SpectralMoments) -> Tensor:
        """Per-sample statistics ``(B, S)``."""

    @abstractmethod
    def value(self, means: Tensor, rank: int) -> Tensor:
        """F of the means ``(..., S)``: ``(...)``. No branch on values; a degenerate map gives 0, not NaN."""


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error, over the samples that were seen.

    Attributes:
        value: jackknife-corrected: a ratio of means is biased by O(1/n), and this removes it.
        stderr: jackknife standard error; None from fewer than two samples.
        n: number of samples.
    """

    value: float
    stderr: float | None
    n: int

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.4g}" if self.stderr is None else f"{self.value:.4g} ± {self.stderr:.2g}"


def jackknife(functional: Functional, moments: SpectralMoments) -> Estimate:
    """F over all samples, jackknife-corrected, with its standard error (Quenouille; Efron & Stein 1981).

    F_J = n F − (n−1) mean F₋ᵢ and SE² = (n−1)/n Σ (F₋ᵢ − mean F₋ᵢ)², F₋ᵢ without sample i.
    """
    statistics = functional.statistics(moments.detach())
    n = len(statistics)
    if n == 0:
        raise ValueError("moments: got no samples, expected at least one")
    total = statistics.sum(0)
    whole = functional.value(total / n, moments.rank)
    if n == 1:
        return Estimate(float(whole), None, 1)
    without = functional.value((total - statistics) / (n - 1), moments.rank)
    value = n * whole - (n - 1) * without.mean()
    stderr = ((n - 1) / n * (without - without.mean()).square().sum()).sqrt()
    return Estimate(float(value), float(stderr), n)


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, 0 with a zero gradient where the denominator is 0; NaN stays NaN."""
    degenerate = denominator == 0
    return torch.where(degenerate, 0, numerator / torch.where(degenerate, 1, denominator))
