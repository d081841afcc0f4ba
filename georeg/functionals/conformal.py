"""The conformal loss: a scaled isometry at each point, with a scale of its own."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from georeg.moments import SpectralMoments, safe_ratio
from georeg.registry import register
from georeg.regularizer import Options, SpectralRegularizer


@register("functional", "conformal")
class ConformalLoss(SpectralRegularizer):
    """Keep angles, let the scale vary over x: F = E[τ₂ / τ₁²], a mean of per-sample ratios.

    Minimum: 1/d, reached by maps whose Jacobian at every x is a scaled isometry, with any scale c(x).

    Invariant to: f → c·f, a conformal change of either metric (G → s(x)·G), coordinates on either side.

    Not a function of pooled moments, and so not free of a *probe bias*: the ratio of two estimates from
    K probes at one sample is off by [3τ₂ Var τ̂₁/τ₁⁴ − 2 Cov(τ̂₁, τ̂₂)/τ₁³]/K to first order, of either sign, and with
    K = 1 its tail is heavy (one probe may nearly miss a dominant direction). More samples do not help; more
    probes do, and ``Exact`` has no bias. At the optimum, fixed-norm probes have none.

    Args:
        normalize: multiply by d, so that 1 is perfect.
        **options: see :class:`Regularizer`. With ``degenerate="zero"`` a sample whose Jacobian vanishes is
            left out of the mean.

    Example:
        >>> import torch, georeg
        >>> inversion = lambda x: x / x.square().sum(1, keepdim=True)      # conformal, not isometric
        >>> x, exact = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), georeg.Exact()
        >>> round(georeg.ConformalLoss(normalize=True, estimator=exact)(inversion, x).loss.item(), 5)
        1.0
        >>> round(georeg.IsometryLoss(normalize=True, estimator=exact)(inversion, x).loss.item(), 2)
        1.95
    """

    num_statistics = 2
    undefined = "the Jacobian vanishes (τ₁ = 0) at one sample at least, so its ratio τ₂/τ₁² is undefined"

    def __init__(self, *, normalize: bool = False, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.normalize = normalize

    def statistics(self, moments: SpectralMoments) -> Tensor:
        ratio = safe_ratio(safe_ratio(moments.trace_sq, moments.trace), moments.trace)
        return torch.stack([(moments.trace.detach() != 0).to(ratio), ratio], dim=-1)

    def value(self, means: Tensor, rank: int) -> Tensor:
        regular, ratio = means.unbind(-1)
        mean = safe_ratio(ratio, regular)
        return rank * mean if self.normalize else mean

    def defined(self, means: Tensor) -> Tensor:
        return means[..., 0] == 1
