"""Hutch++ (Meyer, Musco, Musco, Woodruff 2021): project the large eigenvalues out, then draw probes."""

from __future__ import annotations

import torch

from georeg.estimators.base import ProbeEstimator, Side, standard_error
from georeg.estimators.whitened import Whitened, resphered
from georeg.linearize import Linearization
from georeg.manifolds.base import MetricAt
from georeg.moments import SpectralMoments
from georeg.random import Generator, Probe
from georeg.registry import register


@register("estimator", "hutchpp")
class HutchPP(ProbeEstimator):
    """τ₁ and τ₂ from K products of A, the symmetric form of R (see :class:`georeg.estimators.whitened.Whitened`).

    A third of K goes to a sketch Y = A S, a third to its orthonormal basis Q, the rest to probes g outside it:

        τ₁ ≈ Tr(QᵀA Q) + mean of rᵀA r,   τ₂ ≈ ‖A Q‖² + mean of ‖A r‖²,   r = (I − QQᵀ)g.

    For any Q that does not depend on the probes both are unbiased, since Tr A = Tr(QᵀAQ) + Tr((I−QQᵀ)A) and
    likewise for A²; one set of products serves both. *What is differentiated:* A, everywhere it is applied to Q
    and to r. Q and r themselves carry no graph: at fixed Q the identity above holds for every value of the
    parameters, so the gradient is unbiased too, and the sketch costs no second backward pass. They are
    components in an orthonormal frame, whose own dependence on the parameters is kept.

    Args:
        num_probes: K ≥ 3 products of A, each of two Jacobian products. Where K reaches the dimension of the
            side, its axes are used instead: exact, at 2·dim products.
        distribution: ``"sphere"`` (default) fixes the norm of r, so that nothing varies where R is a multiple of
            the identity; ``"gaussian"``; ``"rademacher"``.
        side: see :class:`Hutchinson`. The metric of that side is factorised.

    Raises:
        ValueError: fewer than three probes; an unknown distribution or side.

    Example:
        >>> import torch, georeg
        >>> spike = torch.cat([torch.tensor([100.0]), torch.ones(31)])
        >>> m = georeg.spectral_moments(lambda x: spike * x, torch.zeros(1, 32), estimator=georeg.HutchPP(9))
        >>> round(m.trace.item()), m.num_products
        (10031, 18)

    References:
        Meyer, Musco, Musco, Woodruff 2021, Hutch++: optimal stochastic trace estimation.
    """

    def __init__(self, num_probes: int = 12, distribution: Probe = "sphere", side: Side = "auto") -> None:
        if num_probes < 3:
            raise ValueError(f"num_probes: got {num_probes}, expected at least 3: a sketch, its basis and a probe")
        super().__init__(num_probes, distribution, side)

    def __call__(
        self, lin: Linearization, domain: MetricAt, codomain: MetricAt, generator: Generator = None
    ) -> SpectralMoments:
        A = Whitened(lin, domain, codomain, self.side)
        if self.num_probes >= A.dim:
            return A.exact()
        k = self.num_probes // 3
        with torch.no_grad():
            Q = torch.linalg.qr(A(A.probes(k, self.distribution, generator))).Q
            g = A.probes(self.num_probes - 2 * k, self.distribution, generator)
            r = g - Q @ (Q.mT @ g)
            r = r * resphered(r.square().sum(1, keepdim=True), A.dim - k, self.distribution).sqrt()
        AQ, Ar = A(torch.cat([Q, r], dim=-1)).split([k, r.shape[-1]], dim=-1)
        traces, squares = (r * Ar).sum(1).mT, Ar.square().sum(1).mT
        return SpectralMoments(
            trace=(Q * AQ).sum((1, 2)) + traces.mean(0),
            trace_sq=AQ.square().sum((1, 2)) + squares.mean(0),
            rank=A.rank,
            trace_stderr=standard_error(traces),
            trace_sq_stderr=standard_error(squares),
            num_products=A.num_products,
        )
