"""Length and energy of a curve in any metric, and the geodesics that minimise them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from georeg.geodesics import lerp
from georeg.manifolds import Euclidean, Manifold


def _speeds(path: Tensor, manifold: Manifold) -> Tensor:
    """Squared lengths ‖c_{i+1} − c_i‖²_G ``(S, B)``, G at the midpoints: an error of second order in the step."""
    if path.ndim < 2 or len(path) < 2:
        raise ValueError(f"path: got shape {tuple(path.shape)}, expected (steps, B, ...) with at least two steps")
    middle = manifold.projx(((path[1:] + path[:-1]) / 2).flatten(0, 1))
    step = manifold.proju(middle, (path[1:] - path[:-1]).flatten(0, 1))
    return manifold.inner(middle, step, step).reshape(len(path) - 1, -1)


def curve_length(path: Tensor, manifold: Manifold | None = None) -> Tensor:
    """L = ∫‖ċ‖_G dt ≈ Σ_i ‖c_{i+1} − c_i‖_G of a polyline, G at the midpoints of its S segments.

    Args:
        path: ``(S+1, B, ...)``.
        manifold: default Euclidean. ``georeg.PullbackMetric(f)`` measures the image of the path under f.

    Returns:
        ``(B,)``, differentiable; its gradient is 0, not NaN, where a segment has length 0.

    Raises:
        ValueError: fewer than two points.

    Example:
        >>> import torch, georeg
        >>> arc = georeg.slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.linspace(0, 1, 101))
        >>> georeg.curve_length(arc)
        tensor([1.5708])
    """
    squared = _speeds(path, manifold or Euclidean())
    moving = squared > 0
    return torch.where(moving, torch.where(moving, squared, 1).sqrt(), 0).sum(0)


def curve_energy(path: Tensor, manifold: Manifold | None = None) -> Tensor:
    """E = ½∫‖ċ‖²_G dt over t ∈ [0, 1] ≈ (S/2) Σ_i ‖c_{i+1} − c_i‖²_G. L² ≤ 2E, with equality at constant speed.

    Args:
        path: ``(S+1, B, ...)``, at equal steps of t.
        manifold: default Euclidean.

    Returns:
        ``(B,)``, differentiable.

    Raises:
        ValueError: fewer than two points.

    Example:
        >>> import torch, georeg
        >>> georeg.curve_energy(torch.tensor([[[0.0]], [[1.0]], [[2.0]]]))
        tensor([2.])
    """
    return (len(path) - 1) / 2 * _speeds(path, manifold or Euclidean()).sum(0)


@dataclass(frozen=True)
class Geodesic:
    """A curve of least energy.

    Attributes:
        path: ``(steps+1, B, ...)``, both ends included, at nearly constant speed; without graph.
        length: ``(B,)``, the geodesic distance up to O(1/steps²), if the curve is the shortest.
        energy: ``(B,)``.
        residual: ``(B,)``, ‖∇ log E‖ times the distance of the ends in the coordinates, 0 at a minimum; the
            energy's relative excess is of the order of its square.
        converged: ``(B,)``, residual at most the tolerance.

    Example:
        >>> import torch, georeg
        >>> line = georeg.geodesic(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), georeg.Euclidean(), steps=2)
        >>> line.path.squeeze(1).tolist(), line.length.item(), line.energy.item(), line.converged.item()
        ([[0.0, 0.0], [1.5, 2.0], [3.0, 4.0]], 5.0, 12.5, True)
    """

    path: Tensor
    length: Tensor
    energy: Tensor
    residual: Tensor
    converged: Tensor


def geodesic(
    x0: Tensor,
    x1: Tensor,
    manifold: Manifold,
    *,
    steps: int = 16,
    initial: Tensor | None = None,
    tolerance: float = 1e-3,
    max_iterations: int = 200,
) -> Geodesic:
    """A geodesic from x0 to x1 by minimising the energy of a polyline over its inner points.

    The points are c = P(c⁰ + L^{-½}a) with P = ``projx`` and L the discrete Laplacian, in which the energy of
    a flat metric is ½‖a‖² up to a constant: L-BFGS then takes as many iterations for many steps as for few.
    The minimum is a local one: it depends on the path from which it starts where there are several.

    Args:
        x0, x1: end points ``(B, ...)``.
        manifold: its metric, for the geodesics that f induces ``georeg.PullbackMetric(f)``. One of
            geoopt's with closed geodesics is better served by ``expmap``.
        steps: segments.
        initial: a path ``(steps+1, B, ...)`` to start from; default the straight line, projected.
        tolerance: of the residual.
        max_iterations: of L-BFGS, for each sample.

    Raises:
        ValueError: shapes that do not match; fewer than two steps; end points off the manifold.

    Example:
        >>> import torch, georeg
        >>> x0, x1 = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
        >>> found = georeg.geodesic(x0, x1, georeg.Sphere(1.0), steps=32)
        >>> found.length, bool(found.converged.all())
        (tensor([1.57...]), True)

    References:
        Shao, Kumar, Fletcher 2018, The Riemannian geometry of deep generative models.
    """
    if steps < 2:
        raise ValueError(f"steps: got {steps}, expected at least 2: the inner points are what is moved")
    manifold.check_point(x0, "x0")
    manifold.check_point(x1, "x1")
    x0, x1 = x0.detach(), x1.detach()
    start = lerp(x0, x1, torch.linspace(0, 1, steps + 1, device=x0.device)) if initial is None else initial.detach()
    if start.shape != (steps + 1, *x0.shape):
        raise ValueError(f"initial: got shape {tuple(start.shape)}, expected {(steps + 1, *x0.shape)}")
    # One sample at a time: jointly, the curvature that L-BFGS learns from one is wrong for the others.
    paths = [_relax(start[:, i : i + 1], manifold, max_iterations) for i in range(len(x0))]
    path = torch.cat([p[0] for p in paths], dim=1) if paths else start
    energy, slope = (torch.stack([p[i] for p in paths]) if paths else start.new_zeros(0) for i in (1, 2))
    chord = torch.linalg.vector_norm((x1 - x0).flatten(1), dim=1)
    residual = slope * chord / torch.where(energy > 0, energy, 1)
    return Geodesic(path, curve_length(path, manifold).detach(), energy, residual, residual <= tolerance)


def _relax(start: Tensor, manifold: Manifold, max_iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """One path ``(S+1, 1, ...)`` of least energy with its energy and the norm of the energy's gradient in a."""
    whitening = _inverse_root_of_laplacian(len(start) - 1, start)

    def path_of(a: Tensor) -> Tensor:
        inner = start[1:-1] + torch.einsum("st,t...->s...", whitening, a)
        inner = manifold.projx(inner.flatten(0, 1)).reshape(inner.shape)
        return torch.cat([start[:1], inner, start[-1:]])

    with torch.enable_grad():
        a = torch.zeros_like(start[1:-1], requires_grad=True)
        first = curve_energy(start, manifold).detach()
        unit = torch.where(first > 0, first, 1)
        optimizer = torch.optim.LBFGS(
            [a],
            max_iter=max_iterations,
            max_eval=10 * max_iterations,
            tolerance_grad=0,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            relative = (curve_energy(path_of(a), manifold) / unit).sum()
            (a.grad,) = torch.autograd.grad(relative, a)
            return relative

        optimizer.step(closure)
        path = path_of(a)
        energy = curve_energy(path, manifold).sum()
        (slope,) = torch.autograd.grad(energy, a)
    return path.detach(), energy.detach(), slope.norm()


def _inverse_root_of_laplacian(steps: int, like: Tensor) -> Tensor:
    """L^{-½}/√S, L the second differences of the S − 1 inner points."""
    ones = torch.ones(steps - 2, dtype=torch.float64)
    laplacian = 2 * torch.eye(steps - 1, dtype=torch.float64) - torch.diag(ones, 1) - torch.diag(ones, -1)
    values, vectors = torch.linalg.eigh(laplacian)
    return (vectors * (steps * values).rsqrt() @ vectors.T).to(like)
