"""Moves along great circles of the sphere that noise lies on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import georeg


def exp_map(x: Tensor, tangent: Tensor) -> Tensor:
    """Exp_x(v) = cos θ · x + r sin θ · v/‖v‖, with r = ‖x‖ and θ = ‖v‖/r: the great circle from x along v.

    Args:
        x: points ``(B, ...)``, each on the sphere through itself.
        tangent: v ``(..., B, ...)``, with any leading axes; its radial part is dropped.

    Returns:
        Points of v's shape, with x's norms; x itself, bit by bit, where v = 0.

    Raises:
        ValueError: shapes that do not go together; a point at the origin, which has no sphere.

    Example:
        >>> import math, torch
        >>> from georeg_diffusion.editing.sphere import exp_map
        >>> exp_map(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2 * math.pi / 4]]))
        tensor([[1.4142, 1.4142]])
    """
    _check(x, tangent, "tangent")
    dtype = torch.promote_types(x.dtype, torch.float32)
    point, v = x.to(dtype), _tangent(x, tangent).to(dtype)
    theta = _norm(v, x) / _norm(point, x)
    # r sin θ/‖v‖ = sin θ/θ, smooth at 0.
    return (torch.cos(theta) * point + torch.sinc(theta / torch.pi) * v).to(x.dtype)


def unit_tangent(x: Tensor, direction: Tensor) -> Tensor:
    """Directions ``(..., B, ...)`` projected onto the tangent space at x ``(B, ...)`` and scaled to length 1.

    Raises:
        ValueError: a direction along x, or zero, which leads nowhere on the sphere.

    Example:
        >>> import torch
        >>> from georeg_diffusion.editing.sphere import unit_tangent
        >>> unit_tangent(torch.tensor([[0.0, 3.0]]), torch.tensor([[5.0, 7.0]]))
        tensor([[1., 0.]])
    """
    _check(x, direction, "direction")
    v = _tangent(x, direction)
    length, before = _norm(v, x), _norm(direction.to(v.dtype), x)
    if not bool((length > 1e-5 * before).all()):
        raise ValueError("direction: is zero, NaN or along x, which leads nowhere on the sphere; expected a tangent part")
    return v / length


def move(
    x: Tensor, directions: Tensor, weights: Tensor | Sequence[float] | Sequence[Sequence[float]], angle: float
) -> Tensor:
    """x ↦ Exp_x(a Σᵢ γᵢ Δxᵢ), with Δxᵢ unit tangents and a in radians (Fig. 7; Fig. V for several directions).

    Args:
        x: ``(B, ...)``.
        directions: ``(k, B, ...)``, or ``(k, 1, ...)`` for all samples; made unit tangents at each x.
        weights: γ ``(k,)``, or ``(S, k)`` for S results.
        angle: a. With one direction x turns by the angle γa.

    Returns:
        ``(B, ...)`` or ``(S, B, ...)``, of x's norms.

    Raises:
        ValueError: shapes that do not go together; a direction without a tangent part.

    Example:
        >>> import torch
        >>> from georeg_diffusion.editing.sphere import move
        >>> x, directions = torch.tensor([[1.0, 0.0, 0.0]]), torch.eye(3)[1:, None]
        >>> move(x, directions, [[0.0, 0.0], [0.0, 1.0]], torch.pi / 4).squeeze(1)
        tensor([[1.0000, 0.0000, 0.0000],
                [0.7071, 0.0000, 0.7071]])
    """
    units = unit_tangent(x, directions)
    gammas = torch.as_tensor(weights, dtype=units.dtype, device=units.device)
    if directions.ndim != x.ndim + 1 or gammas.ndim not in (1, 2) or gammas.shape[-1] != len(units):
        raise ValueError(
            f"weights: got shape {tuple(gammas.shape)} for directions {tuple(directions.shape)}, expected (k,) or (S, k) "
            "for (k, B, ...)"
        )
    radius = _norm(x.to(units.dtype), x)
    return exp_map(x, angle * radius * torch.tensordot(gammas, units, dims=1))


def _tangent(x: Tensor, vectors: Tensor) -> Tensor:
    """The tangential part, in float32 or better; the batch axis spelled out."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows = vectors.to(dtype).expand(*vectors.shape[: vectors.ndim - x.ndim], *x.shape)
    shape = rows.shape
    rows = rows.reshape(-1, *x.shape)
    sphere, point = georeg.Sphere(), x.to(dtype)
    # Twice: the first projection leaves what rounding makes of a nearly radial vector.
    return sphere.proju(point, sphere.proju(point, rows)).reshape(shape)


def _norm(vectors: Tensor, x: Tensor) -> Tensor:
    """Norms of events, with the event axes kept as ones."""
    return torch.linalg.vector_norm(vectors, dim=tuple(range(1 - x.ndim, 0)), keepdim=True)


def _check(x: Tensor, vectors: Tensor, name: str) -> None:
    fits = vectors.ndim >= x.ndim >= 2 and vectors.shape[vectors.ndim - x.ndim + 1 :] == x.shape[1:]
    if not fits or vectors.shape[vectors.ndim - x.ndim] not in (1, len(x)):
        raise ValueError(
            f"{name}: got shape {tuple(vectors.shape)} for x of {tuple(x.shape)}, expected x's, or leading axes before it"
        )
    if not bool((_norm(x, x) > 0).all()):
        raise ValueError("x: holds a point at the origin or NaN, expected points of a sphere (norm > 0)")
