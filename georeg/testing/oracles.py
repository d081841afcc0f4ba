"""Dense answers in plain linear algebra, written independently of everything they check."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Metric = Callable[[Tensor], Tensor]


def dense_jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """J ``(B, m, n)``, one sample at a time by torch.autograd.functional, differentiable in f's parameters.

    Args:
        f: the map, (B, ...) ↦ (B, ...).
        x: points ``(B, ...)`` of n numbers.

    Example:
        >>> import torch
        >>> from georeg.testing import dense_jacobian
        >>> dense_jacobian(torch.square, torch.tensor([[3.0, 1.0]])).tolist()
        [[[6.0, 0.0], [0.0, 2.0]]]
    """
    rows = []
    for sample in x:
        jacobian = torch.autograd.functional.jacobian(lambda s: f(s.unsqueeze(0)).squeeze(0), sample, create_graph=True)
        rows.append(jacobian.reshape(-1, sample.numel()))
    return torch.stack(rows)


def dense_operator(
    f: Callable[[Tensor], Tensor], x: Tensor, cometric: Metric | None = None, metric: Metric | None = None
) -> Tensor:
    """R = G⁻¹JᵀHJ ``(B, n, n)``, differentiable in f's parameters.

    Args:
        f: the map.
        x: points ``(B, ...)`` of n numbers.
        cometric: G⁻¹ as a function of x, ``(B, n, n)``; None is the identity.
        metric: H as a function of f(x), ``(B, m, m)``; None is the identity.

    Example:
        >>> import torch
        >>> from georeg.testing import dense_operator
        >>> dense_operator(torch.square, torch.tensor([[3.0, 1.0]]), metric=lambda y: torch.diag_embed(1 / y)).tolist()
        [[[4.0, 0.0], [0.0, 4.0]]]
    """
    jacobian = dense_jacobian(f, x)
    pulled = jacobian.mT @ (jacobian if metric is None else metric(f(x)) @ jacobian)
    return pulled if cometric is None else cometric(x) @ pulled


def dense_moments(
    f: Callable[[Tensor], Tensor], x: Tensor, cometric: Metric | None = None, metric: Metric | None = None
) -> tuple[Tensor, Tensor]:
    """τ₁ = Tr R and τ₂ = Tr R² ``(B,)`` of :func:`dense_operator`, whose arguments it takes.

    Example:
        >>> import torch
        >>> from georeg.testing import dense_moments
        >>> [moment.tolist() for moment in dense_moments(torch.square, torch.tensor([[3.0, 1.0]]))]    # R = diag(36, 4)
        [[40.0], [1312.0]]
    """
    operator = dense_operator(f, x, cometric, metric)
    return operator.diagonal(dim1=1, dim2=2).sum(1), (operator @ operator).diagonal(dim1=1, dim2=2).sum(1)
