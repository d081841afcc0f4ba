"""The contractive (Dirichlet, harmonic-map) energy."""

from __future__ import annotations

from torch import Tensor

from georeg.moments import SpectralMoments
from georeg.registry import register
from georeg.regularizer import SpectralRegularizer


@register("functional", "contractive")
class ContractiveLoss(SpectralRegularizer):
    """Make a map insensitive: F = E[τ₁] = E‖J‖², the Dirichlet energy, twice the harmonic-map energy density.

    Minimum: 0, reached by constant maps; it is the pull of a reconstruction loss that keeps the map alive.

    Invariant to: isometries of either manifold, and coordinates. F(c·f) = c²·F(f). Linear in the pooled
    moments, so unbiased at any batch size.

    Args:
        **options: see :class:`Regularizer`.

    Example:
        >>> import torch, georeg
        >>> georeg.ContractiveLoss(estimator=georeg.Exact())(lambda x: 2 * x, torch.randn(4, 3)).loss.item()
        12.0

    References:
        Rifai et al. 2011, Contractive auto-encoders; Eells & Sampson 1964, Harmonic mappings of Riemannian
        manifolds.
    """

    num_statistics = 1

    def statistics(self, moments: SpectralMoments) -> Tensor:
        return moments.trace.unsqueeze(-1)

    def value(self, means: Tensor, rank: int) -> Tensor:
        return means[..., 0]
