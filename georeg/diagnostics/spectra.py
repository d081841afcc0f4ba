"""Singular values of a Jacobian between tangent spaces."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from georeg.diagnostics.top import bound, finite, top_singular
from georeg.estimators.base import moment_dtype
from georeg.estimators.exact import axes
from georeg.linearize import Engine, Linearization, Map
from georeg.manifolds import Euclidean, Manifold

MAX_DENSE = 4096
"""The largest d for which a Jacobian is written down."""


def dense_singular_values(lin: Linearization, domain: Manifold, codomain: Manifold) -> Tensor:
    """``(B, d)`` descending: the Jacobian by rows or columns, whichever are fewer, in orthonormal frames of G and H."""
    point, value = lin.x.detach(), lin.value.detach()
    n, m = domain.dim(point), codomain.dim(value)
    if n < m:
        frame = domain.lift(point, axes(point.new_zeros(len(point), n)))
        matrix = codomain.components(value, lin.jvp(frame))
    else:
        coframe = codomain.colift(value, axes(value.new_zeros(len(value), m)))
        matrix = domain.cocomponents(point, lin.vjp(coframe))
    return torch.linalg.svdvals(finite(matrix).movedim(0, 1).to(moment_dtype(point)))


def singular_values(
    f: Map,
    x: Tensor,
    k: int | None = None,
    *,
    domain: Manifold | None = None,
    codomain: Manifold | None = None,
    chunk_size: int | None = 64,
    engine: Engine = "auto",
) -> Tensor:
    """Singular values of the Jacobian between the tangent spaces, in orthonormal frames of G and H.

    They are the square roots of the eigenvalues of R = G⁻¹JᵀHJ (Eq. 10's note should read so), and do
    not depend on coordinates. On the sphere the radial direction is not a tangent: it adds no zero.

    Args:
        f: the map.
        x: points ``(B, ...)``.
        k: only the k largest, matrix-free; for vectors, residuals and options see :func:`top_singular`.
        domain, codomain: manifolds, default Euclidean.
        chunk_size: rows or columns per vectorised product.
        engine: see :func:`georeg.linearize`.

    Returns:
        ``(B, d)`` descending, d = min(dim M, dim N), or ``(B, k)``, in float64, without graph.

    Raises:
        ValueError: d above 4096 without k; points off a manifold; NaN or inf; a tangent space of dimension 0.

    Warns:
        UserWarning: some of the k largest did not converge.

    Example:
        >>> import torch, georeg
        >>> f = lambda x: x * torch.tensor([3.0, 1.0])
        >>> georeg.diagnostics.singular_values(f, torch.zeros(1, 2)).tolist()
        [[3.0, 1.0]]
        >>> georeg.diagnostics.singular_values(f, torch.zeros(1, 2), k=1).round(decimals=6).tolist()
        [[3.0]]
    """
    if k is not None:
        top = top_singular(f, x, k, domain=domain, codomain=codomain, chunk_size=chunk_size, engine=engine)
        if not bool(top.converged.all()):
            worst = float(top.residuals.max())
            warnings.warn(
                f"k: of the {k} largest singular values some did not converge (a true one is within {worst:.2g}); georeg."
                "diagnostics.top_singular takes more iterations",
                stacklevel=2,
            )
        return top.values
    domain, codomain = domain or Euclidean(), codomain or Euclidean()
    with torch.no_grad():
        lin, d = bound(f, x, domain, codomain, chunk_size=chunk_size, engine=engine)
        if d > MAX_DENSE:
            raise ValueError(
                f"x: the smaller dimension is {d}, expected at most {MAX_DENSE} for all singular values; pass k for the "
                "largest, or use georeg.diagnostics.smallest_singular for a bound of the smallest"
            )
        return dense_singular_values(lin, domain, codomain)
