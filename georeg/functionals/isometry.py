"""The scaled-isometry loss, Eq. 6."""

from __future__ import annotations

import torch
from torch import Tensor

from georeg.functionals.base import Functional, safe_ratio
from georeg.moments import SpectralMoments


class Isometry(Functional):
    """F = E[τ₂] / E[τ₁]², the expectations taken before the ratio (Eq. 6; Lee et al. 2021).

    Minimum: 1/d for the population, d = min(dim M, dim N), reached exactly by scaled isometries (when
    dim M > dim N: on the orthogonal complement of the kernel). With ``normalize`` it is d·F, so that
    1 is perfect in any dimension. Invariant to f → c·f, and to coordinates on either side.
    """

    num_statistics = 2

    def __init__(self, normalize: bool = False) -> None:
        self.normalize = normalize

    def statistics(self, moments: SpectralMoments) -> Tensor:
        return torch.stack([moments.trace, moments.trace_sq], dim=-1)

    def value(self, means: Tensor, rank: int) -> Tensor:
        trace, trace_sq = means.unbind(-1)
        # Divided twice, since the square of a trace can leave the range of its dtype.
        ratio = safe_ratio(safe_ratio(trace_sq, trace), trace)
        return rank * ratio if self.normalize else ratio
