"""A number with its standard error: the jackknife of a function of means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from torch import Tensor


class Measurement(Protocol):
    """What was measured at each sample, such as :class:`georeg.SpectralMoments`."""

    @property
    def rank(self) -> int:
        """d = min(dim M, dim N)."""

    def detach(self) -> Self:
        """The same numbers without their graph."""


M = TypeVar("M", bound=Measurement)
M_contra = TypeVar("M_contra", bound=Measurement, contravariant=True)


class Functional(Protocol[M_contra]):
    """F(m₁, …, m_S) of the means m_k of per-sample statistics; every loss of this library is one."""

    def statistics(self, moments: M_contra) -> Tensor:
        """Per-sample statistics ``(B, S)``."""

    def value(self, means: Tensor, rank: int) -> Tensor:
        """F of means ``(..., S)``: ``(...)``."""


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error, over the samples that were seen.

    Attributes:
        value: jackknife-corrected: a ratio of means is biased by O(1/n), and this removes it.
        stderr: jackknife standard error; None from fewer than two samples.
        n: number of samples.

    Example:
        >>> import torch, georeg
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])                # τ₁ = 4x²
        >>> estimate = georeg.ContractiveLoss(estimator=georeg.Exact())(torch.square, x).estimate()
        >>> print(estimate, "from", estimate.n)
        18.67 ± 9.3 from 3
    """

    value: float
    stderr: float | None
    n: int

    @classmethod
    def of(cls, samples: Tensor) -> Self:
        """The mean of ``(B,)`` with its standard error.

        Raises:
            ValueError: no samples.
        """
        n = len(samples)
        if n == 0:
            raise ValueError("x: got no samples, expected at least one")
        return cls(float(samples.mean()), float(samples.std() / n**0.5) if n > 1 else None, n)

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.4g}" if self.stderr is None else f"{self.value:.4g} ± {self.stderr:.2g}"


def jackknife(functional: Functional[M], moments: M) -> Estimate:
    """F over all samples, jackknife-corrected, with its standard error.

    F_J = n F − (n−1) mean F₋ᵢ and SE² = (n−1)/n Σ (F₋ᵢ − mean F₋ᵢ)², F₋ᵢ without sample i. Moves data to the host.

    Args:
        functional: a loss of this library, for its ``statistics`` and its ``value``.
        moments: what it measured at each sample, ``out.moments``.

    Raises:
        ValueError: no samples.

    Example:
        >>> import torch, georeg
        >>> moments = georeg.spectral_moments(torch.square, torch.tensor([[1.0], [2.0], [2.0], [1.0]]))
        >>> georeg.jackknife(georeg.IsometryLoss(), moments).n
        4

    References:
        Quenouille 1956; Efron & Stein 1981, The jackknife estimate of variance.
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
