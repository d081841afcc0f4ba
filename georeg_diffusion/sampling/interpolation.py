"""Paths between two noises: straight, on the great circle, and shortest in what the encoder sees."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import georeg

Encode = Callable[[Tensor], Tensor]
PATHS = ("lerp", "slerp", "geodesic")


def interpolate(x0: Tensor, x1: Tensor, frames: int, *, path: str = "slerp", encode: Encode | None = None) -> Tensor:
    """``frames`` points ``(S, B, ...)`` from x0 to x1, both included.

    Args:
        x0, x1: end points ``(B, ...)``.
        frames: S ≥ 2.
        path: ``"lerp"``, ``"slerp"`` or ``"geodesic"``, see :func:`pullback_geodesic`.
        encode: x ↦ h, for the geodesic.

    Raises:
        ValueError: fewer than two frames, an unknown path, a geodesic without ``encode``; ends of different shapes.

    Example:
        >>> import torch
        >>> from georeg_diffusion.sampling.interpolation import interpolate
        >>> interpolate(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 3).squeeze(1)[1]
        tensor([0.7071, 0.7071])
    """
    if frames < 2:
        raise ValueError(f"frames: got {frames}, expected at least 2: the two ends")
    if path not in PATHS:
        raise ValueError(f"path: got {path!r}, expected one of {', '.join(PATHS)}")
    fractions = torch.linspace(0, 1, frames, device=x0.device)
    if path == "lerp":
        return georeg.lerp(x0, x1, fractions)
    start = georeg.slerp(x0, x1, fractions)
    if path == "slerp" or frames == 2:
        return start
    if encode is None:
        raise ValueError("encode: got None, expected the map x ↦ h whose pullback metric the geodesic is of")
    return pullback_geodesic(start, encode)


def pullback_geodesic(start: Tensor, encode: Encode, *, max_iterations: int = 60) -> Tensor:
    """The path of least energy ½∫‖d f(c(t))/dt‖² dt between the ends of ``start``, f = ``encode`` (Eq. 5).

    Its points keep the norms that ``start`` has, so on the sphere of the noise it stays there; L-BFGS moves them by
    c = c⁰ + Σ_k sin(πkt)/k · a_k, in which the energy of a flat metric is round. Each sample's path is its own.

    Args:
        start: a path ``(S, B, ...)`` to begin from, such as a slerp; its ends stay.
        encode: f, differentiable, one row for each row.
        max_iterations: of L-BFGS, for each sample.

    Returns:
        ``(S, B, ...)``, at nearly constant speed in h; no more energy than ``start``.

    Raises:
        ValueError: a path of fewer than two points.

    Example:
        >>> import torch, georeg
        >>> from georeg_diffusion.sampling.interpolation import pullback_geodesic
        >>> ends = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
        >>> slow = georeg.slerp(*ends, torch.linspace(0, 1, 9) ** 2)
        >>> even = pullback_geodesic(slow, lambda x: x)         # the identity's geodesic is the great circle
        >>> torch.allclose(even, georeg.slerp(*ends, torch.linspace(0, 1, 9)), atol=1e-3)
        True
    """
    if start.ndim < 2 or len(start) < 2:
        raise ValueError(f"start: got shape {tuple(start.shape)}, expected a path (S, B, ...) of at least two points")
    paths = [_relax(start[:, i : i + 1].detach(), encode, max_iterations) for i in range(start.shape[1])]
    return torch.cat(paths, dim=1) if paths else start


def _relax(start: Tensor, encode: Encode, max_iterations: int) -> Tensor:
    segments = len(start) - 1
    if segments < 2:
        return start
    k = torch.arange(1, segments, dtype=torch.float64)
    sines = (torch.sin(torch.pi * torch.outer(k, k) / segments) / k).to(start)

    def norms(points: Tensor) -> Tensor:
        return torch.linalg.vector_norm(points.flatten(1), dim=1).reshape(-1, *(1,) * (points.ndim - 1))

    length = norms(start[1:-1])
    a = torch.zeros_like(start[1:-1], requires_grad=True)

    def path_of(a: Tensor) -> Tensor:
        inner = start[1:-1] + length * torch.einsum("sk,k...->s...", sines, a)
        inner = inner * length / norms(inner).clamp_min(torch.finfo(inner.dtype).tiny)
        return torch.cat([start[:1], inner, start[-1:]])

    def energy(path: Tensor) -> Tensor:
        return georeg.curve_energy(encode(path.flatten(0, 1)).unsqueeze(1)).sum()

    with torch.enable_grad():
        unit = energy(start).detach()
        if not bool(unit > 0):
            return start
        optimizer = torch.optim.LBFGS([a], max_iter=max_iterations, tolerance_change=1e-9, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            relative = energy(path_of(a)) / unit
            (a.grad,) = torch.autograd.grad(relative, a)
            return relative

        optimizer.step(closure)
    found = path_of(a).detach()
    with torch.no_grad():
        return found if bool(energy(found) <= unit) else start


def adjacent_distances(images: Tensor) -> Tensor:
    """‖c_{i+1} − c_i‖₂ ``(S−1, B)`` between the frames ``(S, B, ...)`` of a path.

    Example:
        >>> import torch
        >>> from georeg_diffusion.sampling.interpolation import adjacent_distances
        >>> adjacent_distances(torch.tensor([[[0.0]], [[1.0]], [[3.0]]])).squeeze(1).tolist()
        [1.0, 2.0]
    """
    return torch.linalg.vector_norm((images[1:] - images[:-1]).flatten(2), dim=2)
