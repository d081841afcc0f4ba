"""Scores of a map's singular spectrum: how far from an isometry, and in which way."""

from __future__ import annotations

import torch
from torch import Tensor

from georeg.estimators.exact import axes
from georeg.jackknife import Estimate
from georeg.linearize import Engine, Map, linearize
from georeg.manifolds import Euclidean, Manifold


def singular_values(
    f: Map,
    x: Tensor,
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
        domain, codomain: manifolds, default Euclidean.
        chunk_size: rows or columns per vectorised product.
        engine: see :func:`georeg.linearize`.

    Returns:
        ``(B, d)`` descending, d = min(dim M, dim N), in float64, without graph.

    Example:
        >>> import torch, georeg
        >>> georeg.diagnostics.singular_values(lambda x: x * torch.tensor([3.0, 1.0]), torch.zeros(1, 2)).tolist()
        [[3.0, 1.0]]
    """
    domain, codomain = domain or Euclidean(), codomain or Euclidean()
    with torch.no_grad():
        lin = linearize(f, x, chunk_size=chunk_size, engine=engine, detach_x=True)
        point, value = lin.x.detach(), lin.value.detach()
        domain.check_point(point, "x")
        codomain.check_point(value, "f(x)")
        n, m = domain.dim(point), codomain.dim(value)
        if n < m:
            frame = domain.lift(point, axes(point.new_zeros(len(point), n)))
            matrix = codomain.components(value, lin.jvp(frame))
        else:
            coframe = codomain.colift(value, axes(value.new_zeros(len(value), m)))
            matrix = domain.cocomponents(point, lin.vjp(coframe))
        return torch.linalg.svdvals(matrix.movedim(0, 1).double())


def _mean(samples: Tensor) -> Estimate:
    n = len(samples)
    return Estimate(float(samples.mean()), float(samples.std() / n**0.5) if n > 1 else None, n)


def condition_number(sigma: Tensor) -> Tensor:
    """σ_max/σ_min per sample ``(B,)`` from singular values ``(B, d)``; inf for a singular Jacobian."""
    return sigma[:, 0] / sigma[:, -1]


def effective_rank_of(sigma: Tensor) -> Tensor:
    """(Σσ²)² / Σσ⁴ per sample ``(B,)``: the number of directions that carry the metric, from 1 to d."""
    power = (sigma / sigma[:, :1].clamp_min(torch.finfo(sigma.dtype).tiny)).square()
    return power.sum(1).square() / power.square().sum(1)


def mean_condition_number(
    f: Map,
    x: Tensor,
    *,
    domain: Manifold | None = None,
    codomain: Manifold | None = None,
    chunk_size: int | None = 64,
) -> Estimate:
    """MCN = E[σ_max(J) / σ_min(J)] over the points (Eq. 10), with its standard error. 1 is isotropic.

    Example:
        >>> import torch, georeg
        >>> mcn = georeg.diagnostics.mean_condition_number(lambda x: x * torch.tensor([3.0, 1.0]), torch.zeros(5, 2))
        >>> float(mcn)
        3.0
    """
    return _mean(condition_number(singular_values(f, x, domain=domain, codomain=codomain, chunk_size=chunk_size)))


def effective_rank(
    f: Map,
    x: Tensor,
    *,
    domain: Manifold | None = None,
    codomain: Manifold | None = None,
    chunk_size: int | None = 64,
) -> Estimate:
    """E[(Tr R)² / Tr R²]: how many of the d directions carry the metric, with its standard error.

    Example:
        >>> import torch, georeg
        >>> float(georeg.diagnostics.effective_rank(lambda x: 5 * x, torch.zeros(5, 2)))
        2.0
    """
    return _mean(effective_rank_of(singular_values(f, x, domain=domain, codomain=codomain, chunk_size=chunk_size)))


def variance_of_metric(sigma: Tensor, *, log: bool = False) -> Estimate:
    """Σ_i Var[σ_i], or Σ_i Var[log σ_i], over samples ``(B, d)``, with its jackknife standard error."""
    n = len(sigma)
    if n < 2:
        raise ValueError(f"x: got {n} samples, expected at least 2: a variance needs them")
    values = sigma.log() if log else sigma
    centred = values - values.mean(0)
    squares = centred.square().sum(0)
    # Leaving sample i out takes n/(n−1)·(deviation of i)² from the sum of squares, for each singular value.
    without = ((squares - centred.square() * n / (n - 1)) / max(n - 2, 1)).sum(1)
    stderr = ((n - 1) / n * (without - without.mean()).square().sum()).sqrt() if n > 2 else None
    return Estimate(float(squares.sum() / (n - 1)), None if stderr is None else float(stderr), n)


def variance_of_riemannian_metric(
    f: Map,
    x: Tensor,
    *,
    log: bool = False,
    domain: Manifold | None = None,
    codomain: Manifold | None = None,
    chunk_size: int | None = 64,
) -> Estimate:
    """VoR = Σ_i Var[σ_i(J)] over the points (Eq. 11). 0 is homogeneous.

    Args:
        log: Σ_i Var[log σ_i] instead, which is invariant to f → c·f; Eq. 11 is not, and falls when J
            merely shrinks. Show both.

    Example:
        >>> import torch, georeg
        >>> float(georeg.diagnostics.variance_of_riemannian_metric(lambda x: 5 * x, torch.zeros(5, 2)))
        0.0
    """
    sigma = singular_values(f, x, domain=domain, codomain=codomain, chunk_size=chunk_size)
    return variance_of_metric(sigma, log=log)
