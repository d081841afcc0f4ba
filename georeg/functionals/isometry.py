"""The scaled-isometry loss, Eq. 6."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from georeg.moments import SpectralMoments, safe_ratio
from georeg.registry import register
from georeg.regularizer import Options, SpectralRegularizer


@register("functional", "isometry")
class IsometryLoss(SpectralRegularizer):
    """Pull a map towards a scaled isometry: F = E[τ₂] / E[τ₁]², expectations before the ratio (Eq. 6).

    Minimum: 1/d for the population, d = min(dim M, dim N), reached exactly by scaled isometries (when
    dim M > dim N: on the orthogonal complement of the kernel), one scale for all x.

    Invariant to: f → c·f, and coordinates on either side.

    Args:
        normalize: multiply by d, so that 1 is a perfect scaled isometry whatever the dimensions; the bare
            ratio's floor is 1/d, and a weight tuned for one d does nothing at another.
        **options: see :class:`Regularizer`: ``domain, codomain, estimator, scope, momentum, num_groups,
            chunk_size, detach_x, project, degenerate``.

    The gradient from one batch carries a bias of O(1/(B·K)), as any ratio of means does; a batch of one
    without running means is the conformal loss, and warns.

    Example:
        >>> import torch, georeg
        >>> encoder = torch.nn.Linear(8, 2, bias=False)
        >>> torch.nn.init.orthogonal_(encoder.weight) is encoder.weight
        True
        >>> loss = georeg.IsometryLoss(normalize=True)(encoder, torch.randn(16, 8)).loss
        >>> round(loss.item(), 5)
        1.0

    References:
        Hahm et al., Isometric Diffusion, Eq. 6; Lee et al. 2021, Regularized autoencoders for isometric
        representation learning.
    """

    num_statistics = 2
    undefined = (
        "the Jacobian vanishes at every point (τ₁ = 0), in the batch or in one of its groups, so a scaled isometry is "
        "undefined; f may ignore x or be constant"
    )
    alone = "the conformal loss τ₂/τ₁², which lets the scale vary"

    def __init__(self, *, normalize: bool = False, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.normalize = normalize

    def statistics(self, moments: SpectralMoments) -> Tensor:
        return torch.stack([moments.trace, moments.trace_sq], dim=-1)

    def value(self, means: Tensor, rank: int) -> Tensor:
        trace, trace_sq = means.unbind(-1)
        # Divided twice, since the square of a trace can leave the range of its dtype.
        ratio = safe_ratio(safe_ratio(trace_sq, trace), trace)
        return rank * ratio if self.normalize else ratio

    def defined(self, means: Tensor) -> Tensor:
        return means[..., 0] > 0
