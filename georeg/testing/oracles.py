"""Dense answers in plain linear algebra, written independently of everything they check."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Metric = Callable[[Tensor], Tensor]


def dense_jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """J ``(B, m, n)``, one sample at a time by torch.autograd.functional, differentiable in f's parameters."""
    rows = []
    for sample in x:
        jacobian = torch.autograd.functional.jacobian(lambda s: f(s.unsqueeze(0)).squeeze(0), sample, create_graph=True)
        rows.append(jacobian.reshape(-1, sample.numel()))
    return torch.stack(rows)


def dense_operator(
    f: Callable[[Tensor], Tensor], x: Tensor, cometric: Metric | None = None, metric: Metric | None = None
) -> Tensor:
    """R = G⁻¹JᵀHJ ``(B, n, n)`` from G⁻¹(x) ``(B, n, n)`` and H(f(x)) ``(B, m, m)``; None is the identity."""
    jacobian = dense_jacobian(f, x)
    pulled = jacobian.mT @ (jacobian if metric is None else metric(f(x)) @ jacobian)
    return pulled if cometric is None else cometric(x) @ pulled


def dense_moments(
    f: Callable[[Tensor], Tensor], x: Tensor, cometric: Metric | None = None, metric: Metric | None = None
) -> tuple[Tensor, Tensor]:
    """τ₁ and τ₂ ``(B,)`` of the dense operator."""
    operator = dense_operator(f, x, cometric, metric)
    return operator.diagonal(dim1=1, dim2=2).sum(1), (operator @ operator).diagonal(dim1=1, dim2=2).sum(1)
