"""The strict isometry loss: scale one."""

from __future__ import annotations

import torch
from torch import Tensor

from georeg.moments import SpectralMoments
from georeg.registry import register
from georeg.regularizer import SpectralRegularizer


@register("functional", "strict")
class StrictIsometryLoss(SpectralRegularizer):
    """Pull a map towards an isometry of scale one: F = E‖R − I‖²/d = E[τ₂ − 2τ₁ + d] / d.

    Minimum: 0, reached by isometries (when dim M > dim N: with JJᵀ = I). The zero map has 1.

    Invariant to: isometries of either manifold, and coordinates; *not* to f → c·f. Linear in the pooled
    moments, so an unbiased estimate of them gives an unbiased gradient at any batch size.

    Args:
        **options: see :class:`Regularizer`.

    Example:
        >>> import torch, georeg
        >>> loss = georeg.StrictIsometryLoss(estimator=georeg.Exact())
        >>> loss(lambda x: x.flip(-1), torch.randn(4, 3)).loss.item(), loss(lambda x: 2 * x, torch.randn(4, 3)).loss.item()
        (0.0, 9.0)

    References:
        Gropp, Atzmon & Lipman 2020, Isometric autoencoders.
    """

    num_statistics = 2

    def statistics(self, moments: SpectralMoments) -> Tensor:
        return torch.stack([moments.trace, moments.trace_sq], dim=-1)

    def value(self, means: Tensor, rank: int) -> Tensor:
        trace, trace_sq = means.unbind(-1)
        return (trace_sq - 2 * trace + rank) / rank
