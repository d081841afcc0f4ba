"""How straight the image of a path is."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def relative_trajectory_length(path: Tensor) -> Tensor:
    """RTL = Σᵢ‖h(sᵢ₊₁) − h(sᵢ)‖ / ‖h(s_S) − h(s₀)‖ (Sec. 4.1): length of a polyline over its chord.

    1 is a straight line at any speed. A path that moves and returns has RTL ∞, one that never moves 1.

    Args:
        path: ``(steps, B, ...)``, at least two steps.

    Returns:
        ``(B,)``.

    Raises:
        ValueError: fewer than two steps or axes.

    Example:
        >>> import torch, georeg
        >>> georeg.diagnostics.relative_trajectory_length(torch.tensor([[[0.0, 0.0]], [[3.0, 0.0]], [[3.0, 4.0]]]))
        tensor([1.4000])
    """
    if path.ndim < 2 or len(path) < 2:
        raise ValueError(f"path: got shape {tuple(path.shape)}, expected (steps, B, ...) with at least two steps")
    flat = path.reshape(*path.shape[:2], path.shape[2:].numel()).to(torch.promote_types(path.dtype, torch.float32))
    length = (flat[1:] - flat[:-1]).norm(dim=-1).sum(0)
    chord = (flat[-1] - flat[0]).norm(dim=-1)
    return torch.where(length == 0, 1, length / chord)


def great_circle_ratio(angle: float | Tensor) -> Tensor:
    """Arc over chord, θ / (2 sin(θ/2)): the RTL of a perfect isometry of the sphere along a slerp of angle θ.

    This, and not 1, is the value an isometric encoder reaches; π/(2√2) = 1.1107 for orthogonal ends.

    Example:
        >>> import math, georeg
        >>> round(float(georeg.diagnostics.great_circle_ratio(math.pi / 2)), 4)
        1.1107
    """
    theta = torch.as_tensor(angle, dtype=torch.float64)
    return torch.where(theta > 0, (theta / 2) / torch.sin(torch.where(theta > 0, theta, math.pi) / 2), 1.0)
