"""The full Jacobian: exact moments for small dimensions, and the oracle of all other estimators."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from georeg.estimators.base import Estimator, Side, check_side, choose_side, moment_dtype
from georeg.linearize import Linearization
from georeg.manifolds.base import MetricAt, event_size
from georeg.moments import SpectralMoments
from georeg.random import Generator
from georeg.registry import register


def axes(x: Tensor) -> Tensor:
    """The coordinate vectors of each sample, ``(d, B, *event)``."""
    d = event_size(x)
    eye = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:])
    return eye.expand(d, *x.shape)


@register("estimator", "exact")
class Exact(Estimator):
    """τ₁ and τ₂ from all d = min(dim M, dim N) rows or columns of the Jacobian.

    Columns a_i = J e_i give C = JᵀHJ and R = G⁻¹C; rows g_i = Jᵀe_i give M = JG⁻¹Jᵀ and HM, which has
    the same non-zero spectrum. No factorisation of a metric is needed.

    Args:
        side: ``"auto"`` is the smaller dimension, which costs fewer products.

    Raises:
        ValueError: an unknown side.

    Example:
        >>> import torch, georeg
        >>> m = georeg.spectral_moments(lambda x: 2 * x, torch.ones(1, 3), estimator=georeg.Exact())
        >>> m.trace.tolist(), m.trace_sq.tolist(), m.rank
        ([12.0], [48.0], 3)
    """

    def __init__(self, side: Side = "auto") -> None:
        check_side(side)
        self.side = side

    def __call__(
        self, lin: Linearization, domain: MetricAt, codomain: MetricAt, generator: Generator = None
    ) -> SpectralMoments:
        before = lin.num_jvps + lin.num_vjps
        if choose_side(self.side, domain, codomain) == "codomain":
            rows = lin.vjp(axes(lin.value))
            operator = self._operator(lin.value, rows, domain.sharp(rows), codomain.flat)
        else:
            columns = lin.jvp(axes(lin.x))
            operator = self._operator(lin.x, columns, codomain.flat(columns), domain.sharp)
        trace = operator.diagonal(dim1=-2, dim2=-1).sum(-1)
        trace_sq = (operator * operator.mT).sum((-2, -1))
        return SpectralMoments(
            trace,
            trace_sq,
            min(domain.dim, codomain.dim),
            torch.zeros_like(trace),
            torch.zeros_like(trace_sq),
            lin.num_jvps + lin.num_vjps - before,
        )

    @staticmethod
    def _operator(point: Tensor, vectors: Tensor, paired: Tensor, metric: Callable[[Tensor], Tensor]) -> Tensor:
        """metric·⟨vectors_i, paired_j⟩ as matrices ``(B, d, d)`` for d vectors ``(d, B, ...)``."""
        dtype = moment_dtype(point)
        d, batch = vectors.shape[:2]
        left = vectors.reshape(d, batch, vectors.shape[2:].numel()).movedim(0, 1).to(dtype)
        right = paired.reshape(d, batch, vectors.shape[2:].numel()).movedim(0, 1).to(dtype)
        gram = left @ right.mT
        columns = gram.movedim(-1, 0).reshape(d, *point.shape)
        return metric(columns).reshape(d, batch, d).movedim(0, -1)

    def __repr__(self) -> str:
        return f"Exact(side={self.side!r})"
