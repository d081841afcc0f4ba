"""The largest singular values of a Jacobian that is too large to write down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from georeg.diagnostics.ritz import Operator, RitzPairs, ritz
from georeg.linearize import Engine, Linearization, Map, linearize
from georeg.manifolds import Euclidean, Manifold
from georeg.random import Generator
from georeg.spectral import check_geometry


@dataclass(frozen=True)
class TopSingular:
    """The largest singular values, with how sure each is.

    Attributes:
        values: ``(B, k)`` descending, float64; lower bounds of the k largest.
        vectors: right singular vectors ``(k, B, *event of x)``, tangent and orthonormal in G.
        residuals: ``(B, k)``: a true singular value lies at most this far from the value.
        converged: ``(B, k)``: residual at most ``tolerance`` times the largest value.
        num_products: Jacobian products spent, each for the whole batch.

    Example:
        >>> import torch, georeg
        >>> f, x = lambda x: x * torch.arange(1.0, 61.0), torch.zeros(1, 60)
        >>> top = georeg.diagnostics.top_singular(f, x, k=2)
        >>> top.values.round(decimals=3).tolist(), top.vectors.shape, bool((top.residuals < 0.1).all())
        ([[60.0, 59.0]], torch.Size([2, 1, 60]), True)
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    num_products: int


def distance_bound(pairs: RitzPairs) -> Tensor:
    """How far √θ can be from the nearest singular value ``(B, k)``: |τ−σ| ≤ ρ/(τ+σ) gives ρ/σ, and √ρ at σ = 0.

    A residual is known up to the rounding of R v, some ulps of ‖R‖, which at σ = 0 is all that it consists of.
    """
    sigma = pairs.values.clamp_min(0).sqrt()
    rho = pairs.residuals + 4 * torch.finfo(pairs.values.dtype).eps * pairs.scale.clamp_min(0).unsqueeze(1)
    return torch.minimum(torch.where(sigma > 0, rho / torch.where(sigma > 0, sigma, 1), torch.inf), rho.sqrt())


def converged(pairs: RitzPairs, tolerance: float) -> Tensor:
    """Whether each bound is at most tolerance·σ_max, ``(B, k)``."""
    return distance_bound(pairs) <= tolerance * pairs.scale.clamp_min(0).sqrt().unsqueeze(1)


def finite(products: Tensor) -> Tensor:
    """The products with a Jacobian, refused where they are NaN or inf."""
    if not bool(torch.isfinite(products).all()):
        raise ValueError(
            "x: products with the Jacobian are not finite; x, or the map's parameters or output, hold NaN or inf"
        )
    return products


def bound(
    f: Map, x: Tensor, domain: Manifold, codomain: Manifold, *, chunk_size: int | None, engine: Engine
) -> tuple[Linearization, int]:
    """The linearisation of f between two manifolds, its points checked, and d = min(dim M, dim N)."""
    lin = linearize(f, x, chunk_size=chunk_size, engine=engine, detach_x=True)
    check_geometry(lin, domain, codomain)
    return lin, min(domain.dim(lin.x), codomain.dim(lin.value))


def pullback_operator(lin: Linearization, domain: Manifold, codomain: Manifold) -> Operator:
    """v ↦ R v = G⁻¹JᵀHJ v on tangent vectors ``(p, B, *event)``: no frame of a tangent space is built."""
    G, H = domain.at(lin.x.detach()), codomain.at(lin.value.detach())
    return lambda v: finite(G.sharp(lin.vjp(H.flat(lin.jvp(v)))))


def pushforward_operator(lin: Linearization, domain: Manifold, codomain: Manifold) -> Operator:
    """u ↦ J G⁻¹Jᵀ H u on tangent vectors of the codomain, with the same non-zero spectrum as R."""
    G, H = domain.at(lin.x.detach()), codomain.at(lin.value.detach())
    return lambda u: finite(codomain.proju(H.x, lin.jvp(G.sharp(lin.vjp(H.flat(u))))))


def top_singular(
    f: Map,
    x: Tensor,
    k: int,
    *,
    domain: Manifold | None = None,
    codomain: Manifold | None = None,
    tolerance: float | None = None,
    max_iterations: int = 100,
    chunk_size: int | None = None,
    engine: Engine = "auto",
    generator: Generator = None,
    callback: Callable[[Tensor, Tensor], None] | None = None,
) -> TopSingular:
    """The k largest singular values of the Jacobian between the tangent spaces, matrix-free.

    Block Lanczos on R = G⁻¹JᵀHJ by ``sharp`` and ``flat``: memory for some 6(k+4) vectors and no matrix.
    Values that agree within the tolerance are counted with their multiplicity.

    Args:
        f: the map.
        x: points ``(B, ...)``.
        k: from 1 to d = min(dim M, dim N).
        domain, codomain: manifolds, default Euclidean.
        tolerance: of the residuals, relative to the largest value; default 1e-4, or what the dtype's
            rounding allows, 4√eps. Values err by its square only.
        max_iterations: of 2(k+4) products each.
        chunk_size, engine: see :func:`georeg.linearize`.
        generator: seeds the start.
        callback: told the values and residuals ``(B, k)`` after each iteration, such as to show progress.

    Raises:
        ValueError: k out of range; points off a manifold; NaN or inf.

    Example:
        >>> import torch, georeg
        >>> top = georeg.diagnostics.top_singular(lambda x: x * torch.arange(1.0, 101.0), torch.zeros(1, 100), 2)
        >>> [round(v, 3) for v in top.values[0].tolist()], bool(top.converged.all())
        ([100.0, 99.0], True)

    References:
        Golub & Underwood 1977, The block Lanczos method; Wu & Simon 2000, Thick-restart Lanczos.
    """
    domain, codomain = domain or Euclidean(), codomain or Euclidean()
    with torch.no_grad():
        lin, d = bound(f, x, domain, codomain, chunk_size=chunk_size, engine=engine)
        tolerance = max(1e-4, 4 * torch.finfo(x.dtype).eps ** 0.5) if tolerance is None else tolerance
        if not 1 <= k <= d:
            raise ValueError(f"k: got {k}, expected 1 to {d}, the smaller dimension")

        def done(p: RitzPairs) -> Tensor:
            if callback is not None:
                callback(p.values.clamp_min(0).sqrt(), distance_bound(p))
            return converged(p, tolerance).all(1)

        pairs = ritz(
            pullback_operator(lin, domain, codomain),
            domain.at(lin.x.detach()),
            k,
            done=done,
            max_iterations=max_iterations,
            generator=generator,
        )
        return TopSingular(
            pairs.values.clamp_min(0).sqrt(),
            pairs.vectors,
            distance_bound(pairs),
            converged(pairs, tolerance),
            lin.num_jvps + lin.num_vjps,
        )
