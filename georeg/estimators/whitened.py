"""R in an orthonormal frame, where it is a symmetric matrix that projections can work on."""

from __future__ import annotations

import torch
from torch import Tensor

from georeg.estimators.base import Side, choose_side, moment_dtype, unit
from georeg.linearize import Linearization
from georeg.manifolds.base import MetricAt
from georeg.moments import SpectralMoments
from georeg.random import Generator, white


class Whitened:
    """The symmetric positive semi-definite matrix A ``(B, d, d)`` that has R's non-zero spectrum, by products.

    With G = L_G L_Gᵀ and H = L_H L_Hᵀ on the tangent spaces and J̃ = L_Hᵀ J L_G⁻ᵀ, A = J̃ᵀJ̃ on the domain's side
    and A = J̃J̃ᵀ on the codomain's: Tr A = τ₁ and Tr A² = τ₂. The factors L keep their graph.

    Attributes:
        dim: d, the dimension of the manifold on the chosen side.
        rank: min(dim M, dim N).
    """

    def __init__(self, lin: Linearization, domain: MetricAt, codomain: MetricAt, side: Side) -> None:
        self.lin, self.domain, self.codomain = lin, domain, codomain
        self._on_codomain = choose_side(side, domain, codomain) == "codomain"
        self._at = codomain if self._on_codomain else domain
        self.dim, self.rank = self._at.dim, min(domain.dim, codomain.dim)
        self._before = lin.num_jvps + lin.num_vjps

    @property
    def num_products(self) -> int:
        """Jacobian products since this operator was made."""
        return self.lin.num_jvps + self.lin.num_vjps - self._before

    def probes(self, k: int, probe: str, generator: Generator) -> Tensor:
        """White columns ``(B, d, k)``; see :func:`georeg.random.white`."""
        x = self._at.x
        return white((k, len(x), self.dim), x, probe, generator).to(moment_dtype(x)).movedim(0, -1)

    def __call__(self, columns: Tensor) -> Tensor:
        """A times columns ``(B, d, k)``, two Jacobian products for each, in the dtype of the moments."""
        lin, at = self.lin, self._at
        w = columns.movedim(-1, 0).to(at.x.dtype)
        if self._on_codomain:
            g, scale = unit(lin.x, lin.vjp(at.manifold.colift(at.x, w)))
            q, stretch = unit(lin.value, lin.jvp(self.domain.sharp(g)))
            out = at.manifold.components(at.x, q)
        else:
            a, scale = unit(lin.value, lin.jvp(at.manifold.lift(at.x, w)))
            b, stretch = unit(lin.x, lin.vjp(self.codomain.flat(a)))
            out = at.manifold.cocomponents(at.x, b)
        return (out.to(scale.dtype) * (scale * stretch).unsqueeze(-1)).movedim(0, -1)

    def exact(self) -> SpectralMoments:
        """Both moments from d columns, which a budget of as many products of A is better spent on."""
        point = self._at.x
        matrix = self(torch.eye(self.dim, dtype=moment_dtype(point), device=point.device).expand(len(point), -1, -1))
        trace = matrix.diagonal(dim1=1, dim2=2).sum(1)
        none = torch.zeros_like(trace)
        return SpectralMoments(trace, matrix.square().sum((1, 2)), self.rank, none, none, self.num_products)


def resphered(squared: Tensor, dim: int, probe: str) -> Tensor:
    """Factors dim/‖r‖² for the quadratic forms of probes r that were projected onto ``dim`` dimensions.

    A Gaussian's direction in a subspace is uniform and independent of its length, so the covariance stays
    the projector, and there is no variance where A is a multiple of the identity. 1 unless ``probe="sphere"``.
    """
    return dim / torch.where(squared > 0, squared, 1) if probe == "sphere" else torch.ones_like(squared)
