"""The Grassmannian Gr(k, n): k-dimensional subspaces of ℝⁿ, their angles, geodesics and mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def principal_angles(X: Tensor, Y: Tensor) -> Tensor:
    """The k angles ``(..., k)``, descending, between the spans of orthonormal X and Y ``(..., n, k)``.

    By sines and cosines together (Björck and Golub 1973), so that small angles and right angles keep their digits. Their
    root sum of squares is the distance on the Grassmannian.

    Raises:
        ValueError: shapes that differ, or columns that are not orthonormal.

    Example:
        >>> import math, torch
        >>> from georeg_diffusion.editing.grassmann import principal_angles
        >>> a = 1e-4
        >>> principal_angles(torch.eye(3)[:, :1], torch.tensor([[math.cos(a)], [math.sin(a)], [0.0]]))
        tensor([1.0000e-04])
    """
    _check(X, Y)
    return _aligned(X, Y)[1]


def grassmann_log(X: Tensor, Y: Tensor) -> Tensor:
    """The tangent Δ ``(..., n, k)`` at span X, with XᵀΔ = 0, that leads to span Y: Exp_X(Δ) spans what Y spans.

    ‖Δ‖ is the distance. At an angle of π/2 the shortest way is not unique, and one of them is returned.

    Raises:
        ValueError: as :func:`principal_angles`.

    References:
        Bendokat, Zimmermann, Absil 2020, A Grassmann manifold handbook, Algorithm 5.3.

    Example:
        >>> import torch
        >>> from georeg_diffusion.editing.grassmann import grassmann_log
        >>> grassmann_log(torch.eye(3)[:, :1], torch.eye(3)[:, 1:2]).abs().flatten()     # π/2 away
        tensor([0.0000, 1.5708, 0.0000])
    """
    _check(X, Y)
    left, theta, right = _aligned(X, Y)
    return (left * theta.unsqueeze(-2)) @ right


def grassmann_exp(X: Tensor, tangent: Tensor) -> Tensor:
    """Exp_X(Δ) = X V cos(Σ) Vᵀ + U sin(Σ) Vᵀ for Δ = U Σ Vᵀ, orthonormalised: where the geodesic along Δ is at time 1.

    Args:
        X: orthonormal ``(..., n, k)``.
        tangent: Δ of the same shape; what lies in span X is dropped.

    Raises:
        ValueError: as :func:`principal_angles`.

    References:
        Edelman, Arias, Smith 1998, The geometry of algorithms with orthogonality constraints, Theorem 2.3.

    Example:
        >>> import torch
        >>> from georeg_diffusion.editing.grassmann import grassmann_exp, grassmann_log
        >>> X, Y = torch.linalg.qr(torch.randn(2, 7, 3, dtype=torch.float64)).Q
        >>> Z = grassmann_exp(X, grassmann_log(X, Y))
        >>> torch.allclose(Z @ Z.T, Y @ Y.T)                                   # the same subspace
        True
    """
    if tangent.shape != X.shape:
        raise ValueError(f"tangent: got shape {tuple(tangent.shape)}, expected that of X, {tuple(X.shape)}")
    _check(X, X)
    left, sizes, right = torch.linalg.svd(tangent - X @ (X.mT @ tangent), full_matrices=False)
    moved = (X @ right.mT) * sizes.cos().unsqueeze(-2) + left * sizes.sin().unsqueeze(-2)
    return torch.linalg.qr(moved @ right).Q


@dataclass(frozen=True)
class FrechetMean:
    """The mean of subspaces.

    Attributes:
        basis: orthonormal ``(n, k)``; only its span has a meaning.
        angles: principal angles of each subspace to the mean ``(N, k)``, descending.
        gradient_norm: ‖mean of log_M Yᵢ‖, 0 at the mean.
        converged: whether it is small.

    Example:
        >>> import torch
        >>> from georeg_diffusion.editing.grassmann import FrechetMean
        >>> FrechetMean(torch.eye(3)[:, :1], torch.zeros(2, 1), 0.0, True).converged
        True
    """

    basis: Tensor
    angles: Tensor
    gradient_norm: float
    converged: bool


def frechet_mean(bases: Tensor, *, max_iterations: int = 200, tolerance: float | None = None) -> FrechetMean:
    """The subspace M with least Σ dist²(M, Yᵢ): the Karcher iteration M ← Exp_M(mean of log_M Yᵢ).

    It starts from the chordal mean, the top eigenspace of Σ YᵢYᵢᵀ. Unique where all subspaces lie within π/4 of one
    another; two orthogonal lines have many means, of which one is returned.

    Args:
        bases: orthonormal Yᵢ ``(N, n, k)``.
        max_iterations: of the Karcher iteration.
        tolerance: of the mean tangent's norm; default 1e-10 in float64, 1e-5 in float32.

    Raises:
        ValueError: no subspaces, or columns that are not orthonormal.

    References:
        Karcher 1977, Riemannian center of mass; Choi et al. 2021, Sec. 4 (global directions of a GAN).

    Example:
        >>> import math, torch
        >>> from georeg_diffusion.editing.grassmann import frechet_mean, principal_angles
        >>> lines = torch.tensor([[math.cos(a), math.sin(a)] for a in (0.1, 0.2, 0.6)]).unsqueeze(-1)
        >>> mean = frechet_mean(lines).basis.flatten()
        >>> round(math.atan(mean[1] / mean[0]), 4)                             # in the plane, the mean of the angles
        0.3
    """
    if bases.ndim != 3 or not len(bases):
        raise ValueError(f"bases: got shape {tuple(bases.shape)}, expected subspaces (N, n, k), at least one")
    _check(bases, bases)
    tolerance = (1e-10 if bases.dtype == torch.float64 else 1e-5) if tolerance is None else tolerance
    count, n, k = bases.shape
    # Everything happens in the span of all of them, which has Nk dimensions where the space may have 10⁵.
    joint = torch.linalg.qr(bases.permute(1, 0, 2).reshape(n, count * k)).Q if count * k < n else None
    inner = bases if joint is None else joint.mT @ bases
    mean = torch.linalg.svd(inner.permute(1, 0, 2).reshape(-1, count * k), full_matrices=False)[0][:, :k]
    step = _mean_tangent(mean, inner)
    for _ in range(max_iterations):
        if float(torch.linalg.vector_norm(step)) <= tolerance:
            break
        mean = grassmann_exp(mean, step)
        step = _mean_tangent(mean, inner)
    norm = float(torch.linalg.vector_norm(step))
    angles = _aligned(mean.expand_as(inner), inner)[1]
    return FrechetMean(mean if joint is None else joint @ mean, angles, norm, norm <= 10 * tolerance)


def _mean_tangent(mean: Tensor, bases: Tensor) -> Tensor:
    left, theta, right = _aligned(mean.expand_as(bases), bases)
    return ((left * theta.unsqueeze(-2)) @ right).mean(0)


def _aligned(X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U ``(..., n, k)``, Θ ``(..., k)`` descending and Vᵀ ``(..., k, k)`` with log_X Y = U Θ Vᵀ."""
    # Y is turned within its span to be as near to X as can be: then XᵀY is symmetric, XᵀY = V cos Θ Vᵀ.
    a, cosines, b = torch.linalg.svd(Y.mT @ X)
    turned = Y @ (a @ b)
    left, sines, right = torch.linalg.svd(turned - X @ (X.mT @ turned), full_matrices=False)
    # The largest sine belongs to the smallest cosine.
    return left, torch.atan2(sines, cosines.flip(-1)), right


def _check(X: Tensor, Y: Tensor) -> None:
    if X.shape != Y.shape or X.ndim < 2 or not 1 <= X.shape[-1] <= X.shape[-2]:
        raise ValueError(f"X, Y: got shapes {tuple(X.shape)} and {tuple(Y.shape)}, expected both (..., n, k) with 1 ≤ k ≤ n")
    eye = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    for name, basis in (("X", X), ("Y", Y)) if X is not Y else (("X", X),):
        if not basis.is_floating_point() or not bool(((basis.mT @ basis - eye).abs() <= 1e-3).all()):
            raise ValueError(f"{name}: has columns that are not orthonormal, expected a basis; torch.linalg.qr gives one")
