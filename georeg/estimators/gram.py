"""Both moments from the Gram matrix of probes pushed through the Jacobian once."""

from __future__ import annotations

import torch
from torch import Tensor

from georeg.estimators.base import ProbeEstimator, Side, choose_side, standard_error, unit
from georeg.linearize import Linearization
from georeg.manifolds.base import MetricAt
from georeg.moments import SpectralMoments
from georeg.random import Generator, Probe
from georeg.registry import register


def mean_of_pairs(pairs: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean U over k ≠ l of symmetric ``(B, K, K)``, h_kl a function of independent draws k and l, with its standard error.

    U is a U-statistic: Var U = (4(K−2)ζ₁ + 2ζ₂)/(K(K−1)), ζ₁ = Cov(h_kl, h_km), ζ₂ = Var h_kl (Hoeffding 1948).
    The mean of h_kl h_mn over four distinct indices is unbiased for E[h]², hence U² minus it for Var U; that
    difference can come out too small, but never below the part that ζ₂ alone accounts for. None below K = 4.
    """
    k = pairs.shape[-1]
    h = pairs * (1 - torch.eye(k, dtype=pairs.dtype, device=pairs.device))
    total, mean = h.sum((1, 2)), h.sum((1, 2)) / (k * (k - 1))
    if k < 4:
        return mean, None
    h, total, estimate = h.detach(), total.detach(), mean.detach()
    squares, rows = h.square().sum((1, 2)), h.sum(2).square().sum(1)
    squared_mean = (total.square() - 4 * rows + 2 * squares) / (k * (k - 1) * (k - 2) * (k - 3))
    spread = (squares / (k * (k - 1)) - estimate.square()).clamp_min(0)
    variance = torch.maximum(estimate.square() - squared_mean, 2 * spread / (k * (k - 1)))
    return mean, variance.sqrt()


@register("estimator", "gram")
class Gram(ProbeEstimator):
    """τ₁ and τ₂ from K probes and one Jacobian product each.

    ========  ============  ========  ========================  ================  =====================
    side      probe         product   S_kl                      τ₁ ≈              τ₂ ≈
    ========  ============  ========  ========================  ================  =====================
    domain    v ~ (0, G⁻¹)  a = J v   a_kᵀ H a_l                mean of S_kk      mean of S_kl², k ≠ l
    codomain  u ~ (0, H)    g = Jᵀu   g_kᵀ G⁻¹ g_l              likewise          likewise
    ========  ============  ========  ========================  ================  =====================

    E[(v_kᵀ M v_l)²] = Tr(M G⁻¹ M G⁻¹) asks of the probes no more than covariance G⁻¹ and independence of each
    other, so every distribution is allowed and orthogonal probes are not. For losses of τ₁ alone this halves
    Hutchinson's cost. At equal products its τ₂ and the isometry loss's gradient vary more (measured, up to d
    products), also where R is a multiple of the identity: there by K⁻², and Hutchinson's not at all.

    Args:
        num_probes: K ≥ 2.
        distribution, side: see :class:`Hutchinson`.

    Raises:
        ValueError: fewer than two probes; an unknown distribution or side.

    Example:
        >>> import torch, georeg
        >>> m = georeg.spectral_moments(lambda x: 2 * x, torch.ones(1, 3), estimator=georeg.Gram(8))
        >>> round(m.trace.item(), 4), m.num_products
        (12.0, 8)

    References:
        Kong, Valiant 2017, Spectrum estimation from samples.
    """

    def __init__(self, num_probes: int = 8, distribution: Probe = "sphere", side: Side = "auto") -> None:
        if num_probes < 2:
            raise ValueError(f"num_probes: got {num_probes}, expected at least 2: τ₂ pairs one probe with another")
        super().__init__(num_probes, distribution, side)

    def __call__(
        self, lin: Linearization, domain: MetricAt, codomain: MetricAt, generator: Generator = None
    ) -> SpectralMoments:
        before = lin.num_jvps + lin.num_vjps
        if choose_side(self.side, domain, codomain) == "codomain":
            u = codomain.random_cotangent(self.num_probes, generator, probe=self.distribution)
            vectors, scale = unit(lin.x, lin.vjp(u))
            paired = domain.sharp(vectors)
        else:
            v = domain.random_tangent(self.num_probes, generator, probe=self.distribution)
            vectors, scale = unit(lin.value, lin.jvp(v))
            paired = codomain.flat(vectors)
        left, right = (
            t.reshape(*scale.shape, vectors.shape[2:].numel()).movedim(0, 1).to(scale.dtype) for t in (vectors, paired)
        )
        lengths = scale.mT
        gram = left @ right.mT * lengths.unsqueeze(-1) * lengths.unsqueeze(-2)
        traces = gram.diagonal(dim1=1, dim2=2).mT
        trace_sq, trace_sq_stderr = mean_of_pairs(gram.square())
        return SpectralMoments(
            trace=traces.mean(0),
            trace_sq=trace_sq,
            rank=min(domain.dim, codomain.dim),
            trace_stderr=standard_error(traces),
            trace_sq_stderr=trace_sq_stderr,
            num_products=lin.num_jvps + lin.num_vjps - before,
        )
