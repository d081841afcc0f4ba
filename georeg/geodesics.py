"""Straight and great-circle paths between latents."""

from __future__ import annotations

import torch
from torch import Tensor

from georeg.manifolds.base import dot, expand


def _fraction(t: float | Tensor, x: Tensor) -> Tensor:
    """t as a tensor that broadcasts: a scalar, or one per step ``(S,)`` with ``(S, 1, ...)``."""
    fraction = torch.as_tensor(t, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    return fraction.reshape(fraction.shape + (1,) * x.ndim) if fraction.ndim else fraction


def _check_ends(x0: Tensor, x1: Tensor) -> None:
    if x0.shape != x1.shape:
        raise ValueError(f"x1: got shape {tuple(x1.shape)}, expected x0's, {tuple(x0.shape)}")
    if x0.ndim < 2:
        raise ValueError(f"x0: got shape {tuple(x0.shape)}, expected a batch of vectors (B, ...); add an axis with x0[None]")


def lerp(x0: Tensor, x1: Tensor, t: float | Tensor) -> Tensor:
    """Straight line (1−t) x0 + t x1.

    Args:
        x0, x1: end points ``(B, ...)``.
        t: a number, or steps ``(S,)``, which add a leading axis ``(S, B, ...)``.

    Raises:
        ValueError: ends of different shapes, or without a batch axis.

    Example:
        >>> import torch, georeg
        >>> georeg.lerp(torch.zeros(1, 2), torch.ones(1, 2), 0.25)
        tensor([[0.2500, 0.2500]])
    """
    _check_ends(x0, x1)
    s = _fraction(t, x0).to(x0.dtype)
    return (1 - s) * x0 + s * x1


def slerp(x0: Tensor, x1: Tensor, t: float | Tensor) -> Tensor:
    """Great-circle path, per sample: angle linear, length interpolated linearly between ‖x0‖ and ‖x1‖.

    x(t) = ρ(t) [sin((1−t)θ) x̂0 + sin(tθ) x̂1] / sin θ with θ the angle between the two; smooth in the ends
    where they are (nearly) parallel or equal. Between antipodal points the great circle is not unique: one
    is chosen, through the coordinate axis most nearly orthogonal to x0. The ends are hit exactly. A zero
    vector has no direction and takes that of the other end.

    Args:
        x0, x1: end points ``(B, ...)``; an event of any shape is one vector.
        t: a number, or steps ``(S,)``, which add a leading axis ``(S, B, ...)``.

    Raises:
        ValueError: ends of different shapes, or without a batch axis.

    Example:
        >>> import torch, georeg
        >>> path = georeg.slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([0.0, 0.5, 1.0]))
        >>> path.squeeze(1)
        tensor([[1.0000, 0.0000],
                [0.7071, 0.7071],
                [0.0000, 1.0000]])

    References:
        Shoemake 1985, Animating rotation with quaternion curves.
    """
    _check_ends(x0, x1)
    dtype = torch.promote_types(x0.dtype, torch.float32)
    a, b = x0.to(dtype), x1.to(dtype)
    s = _fraction(t, x0).to(dtype)
    tiny = torch.finfo(dtype).tiny

    def length(v: Tensor) -> Tensor:
        squared = expand(dot(x0, v, v), x0)
        return torch.where(squared > 0, torch.where(squared > 0, squared, 1).sqrt(), 0)

    rho0, rho1 = length(a), length(b)
    a, b = a / rho0.clamp_min(tiny), b / rho1.clamp_min(tiny)
    a, b = torch.where(rho0 > 0, a, b), torch.where(rho1 > 0, b, a)
    # The angle from half-chords is accurate near 0 and near π, where arccos loses half its digits.
    theta = 2 * torch.atan2(length(a - b), length(a + b))
    far = theta > 1

    # Near: sin(tθ)/sin θ = t·sinc(tθ)/sinc(θ) is a function of θ², so that θ's missing gradient at 0 is right.
    near = torch.where(far, 0, theta) / torch.pi
    chord = ((1 - s) * torch.sinc((1 - s) * near) * a + s * torch.sinc(s * near) * b) / torch.sinc(near)

    # Far: in the plane of x̂0 and a normal, which keeps the length exact up to antipodal points.
    normal = torch.where(far, b - a * expand(dot(x0, a, b), x0), a)
    axis = torch.zeros_like(a).flatten(1)
    axis = axis.scatter(1, a.flatten(1).abs().argmin(1, keepdim=True), 1.0).reshape(a.shape)
    axis = axis - a * expand(dot(x0, a, axis), x0)
    normal = torch.where(far & (length(normal) <= 8 * torch.finfo(dtype).eps), axis, normal)
    arc = torch.cos(s * theta) * a + torch.sin(s * theta) * normal / length(normal).clamp_min(tiny)

    path = (((1 - s) * rho0 + s * rho1) * torch.where(far, arc, chord)).to(x0.dtype)
    return torch.where(s == 0, x0, torch.where(s == 1, x1, path))
