"""Spectral moments of R = G⁻¹JᵀHJ, one pair per sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Scope = Literal["batch", "global"]


@dataclass(frozen=True)
class SpectralMoments:
    """τ₁ = Tr R and τ₂ = Tr R² for each sample, R = G⁻¹JᵀHJ.

    Attributes:
        trace: τ₁ ``(B,)``, float64 (float32 where the device has no float64), with graph.
        trace_sq: τ₂ ``(B,)``, likewise.
        rank: d = min(dim M, dim N), the largest rank R can have.
        trace_stderr: standard error of ``trace`` ``(B,)`` over the probes; None from one probe, zeros
            when the trace is exact.
        trace_sq_stderr: likewise for ``trace_sq``.
        num_products: Jacobian products (J or Jᵀ times one vector for the whole batch) that were spent.

    Example:
        >>> import torch, georeg
        >>> stretch = torch.tensor([1.0, 2.0])                     # R = diag(1, 4)
        >>> m = georeg.spectral_moments(lambda x: x * stretch, torch.zeros(1, 2), estimator=georeg.Exact())
        >>> m.trace.item(), m.trace_sq.item(), m.rank, m.num_products
        (5.0, 17.0, 2, 2)
    """

    trace: Tensor
    trace_sq: Tensor
    rank: int
    trace_stderr: Tensor | None = None
    trace_sq_stderr: Tensor | None = None
    num_products: int = 0

    def detach(self) -> SpectralMoments:
        """The same numbers without their graph."""
        return SpectralMoments(
            self.trace.detach(),
            self.trace_sq.detach(),
            self.rank,
            self.trace_stderr,
            self.trace_sq_stderr,
            self.num_products,
        )


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, 0 with a zero gradient where the denominator is 0; NaN stays NaN."""
    degenerate = denominator == 0
    return torch.where(degenerate, 0, numerator / torch.where(degenerate, 1, denominator))
