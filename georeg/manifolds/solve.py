"""Conjugate gradients for a metric that is known by its products only, differentiated implicitly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from georeg.manifolds.base import dot, event_size, expand

Operator = Callable[[Tensor], Tensor]


def conjugate_gradients(x: Tensor, metric: Operator, covector: Tensor, *, tolerance: float, max_iterations: int) -> Tensor:
    """s with G s = c for each probe and sample, without graph (Hestenes and Stiefel 1952).

    Args:
        x: the points ``(B, *event)``; only the number of axes is used.
        metric: v ↦ G v on ``(k, B, *event)``, symmetric positive definite.
        covector: c ``(k, B, *event)``.
        tolerance: relative residual ‖G s − c‖ / ‖c‖ at which a probe is done.
        max_iterations: products with G at most.

    Raises:
        ValueError: no convergence, as when G is singular.
    """
    s, r = torch.zeros_like(covector), covector
    p, rr = r, dot(x, r, r)
    goal = tolerance**2 * rr
    blind = event_size(x) * torch.finfo(rr.dtype).eps
    largest = torch.zeros_like(rr)
    iterations = 0
    for iterations in range(max_iterations):  # noqa: B007
        product = metric(p)
        length, curvature = dot(x, p, p), dot(x, p, product)
        largest = torch.maximum(largest, curvature / torch.where(length > 0, length, 1))
        # A probe stops where it is done, or where G sees nothing of p but rounding: a step would be noise.
        moving = (rr > goal) & (curvature > blind * largest * length)
        if not bool(moving.any()):
            break
        step = expand(torch.where(moving, rr / torch.where(moving, curvature, 1), 0), x).to(s.dtype)
        s, r = s + step * p, r - step * product
        previous, rr = rr, dot(x, r, r)
        p = r + expand(torch.where(moving, rr / torch.where(moving, previous, 1), 0), x).to(s.dtype) * p
    if bool((rr <= goal).all()):
        return s
    worst = (rr / dot(x, covector, covector)).max().sqrt().item()
    raise ValueError(
        f"f: conjugate gradients reached a relative residual of {worst:.2g} after {iterations + 1} iterations, expected "
        f"{tolerance:.2g}: the metric JᵀHJ is singular or nearly so; pass damping > 0 (it then is JᵀHJ + damping·I), or a "
        "larger tolerance"
    )


class _Inverse(torch.autograd.Function):
    """r ↦ G⁻¹ r at r = 0: the value is 0, and the derivative, G⁻¹, is one more solve."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, solve: Operator) -> Tensor:
        ctx.solve = solve
        return torch.zeros_like(residual)

    @staticmethod
    @once_differentiable  # A second derivative would miss how s moves with G: refused rather than wrong.
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.solve(gradient), None


def implicit_solve(metric: Operator, covector: Tensor, solve: Operator) -> Tensor:
    """G⁻¹ c with the exact first derivative G⁻¹(dc − dG s), whatever iterations ``solve`` makes.

    Args:
        metric: v ↦ G v, with graph.
        covector: c.
        solve: c ↦ G⁻¹ c without graph.
    """
    with torch.no_grad():
        s = solve(covector.detach())
    return s + _Inverse.apply(covector - metric(s), solve) if torch.is_grad_enabled() else s
