"""The flat-manifold loss of Chen et al."""

from __future__ import annotations

import torch
from torch import Tensor

from georeg.moments import SpectralMoments
from georeg.registry import register
from georeg.regularizer import SpectralRegularizer


@register("functional", "flat")
class FlatManifoldLoss(SpectralRegularizer):
    """Pull a map's metric towards one multiple of the identity: F = E‖R − c²I‖², c² = E[τ₁]/d.

    F = E[τ₂ − 2c²τ₁ + c⁴d] = E[τ₂] − E[τ₁]²/d. This c² is the best one, so it makes no difference to the
    gradient whether it is differentiated or, as in the paper, held fixed.

    Minimum: 0, reached by scaled isometries, one scale for all x, and by constant maps: unlike
    :class:`IsometryLoss`, which is 1/d + F/E[τ₁]², it can also be lowered by shrinking the map.

    Invariant to: isometries of either manifold, and coordinates. F(c·f) = c⁴·F(f). The squared mean biases
    it by −Var[τ₁]/(d·B); a batch of one without running means gives the scale no say, and warns.

    Args:
        **options: see :class:`Regularizer`.

    Example:
        >>> import torch, georeg
        >>> loss = georeg.FlatManifoldLoss(estimator=georeg.Exact())
        >>> loss(lambda x: 2 * x, torch.randn(4, 3)).loss.item()
        0.0
        >>> loss(lambda x: x * torch.tensor([1.0, 2.0]), torch.randn(4, 2)).loss.item()    # ‖diag(1, 4) − 2.5 I‖²
        4.5

    References:
        Chen, Klushyn, Ferroni, Bayer & van der Smagt 2020, Learning flat latent manifolds with VAEs.
    """

    num_statistics = 2
    alone = "τ₂ − τ₁²/d at that sample, which lets the scale c² vary"

    def statistics(self, moments: SpectralMoments) -> Tensor:
        return torch.stack([moments.trace, moments.trace_sq], dim=-1)

    def value(self, means: Tensor, rank: int) -> Tensor:
        trace, trace_sq = means.unbind(-1)
        return trace_sq - trace.square() / rank
