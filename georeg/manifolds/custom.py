"""A metric given by a function."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from georeg.manifolds.base import MetricAt, unreadable, wide
from georeg.manifolds.coordinate import CoordinateMetric
from georeg.random import Generator, Probe, white


class CustomMetric(CoordinateMetric):
    """ℝᵈ with the metric G(x) that ``fn`` returns.

    Args:
        fn: x ``(B, ...)`` ↦ G(x) itself (not its inverse), with d the event size, as

            * ``(B,)``: conformal, G = s·I;
            * ``(B, d)``: diagonal;
            * ``(B, d, d)``: symmetric positive definite, factorised once per batch of points.

            Its graph is kept, so a metric with parameters, or one that depends on f(x), is
            differentiated through.

    Raises:
        TypeError: if ``fn`` is not callable or does not return a tensor.
        ValueError: if it returns another shape, or a metric that is not positive definite.

    Example:
        >>> import torch, georeg
        >>> doubled = georeg.CustomMetric(lambda x: 4 * torch.ones(len(x)))
        >>> doubled.norm(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
        tensor([10.])
    """

    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        if not callable(fn):
            raise TypeError(f"fn: got {type(fn).__name__}, expected a function from points (B, ...) to the metric")
        self.fn = fn

    def at(self, x: Tensor) -> CustomMetricAt:
        return CustomMetricAt(self, x)


class CustomMetricAt(MetricAt):
    """A custom metric at a batch of points: ``fn`` is called once, and a matrix factorised once."""

    def __init__(self, manifold: CustomMetric, x: Tensor) -> None:
        super().__init__(manifold, x)
        metric = manifold.fn(x)
        if not isinstance(metric, Tensor):
            raise TypeError(f"fn: returned {type(metric).__name__}, expected a tensor: the metric at each point")
        batch, d = len(x), self.dim
        if tuple(metric.shape) not in {(batch,), (batch, d), (batch, d, d)}:
            raise ValueError(
                f"fn: returned shape {tuple(metric.shape)} for points of shape {tuple(x.shape)}, expected ({batch},) for "
                f"G = s·I, ({batch}, {d}) for a diagonal or ({batch}, {d}, {d}) for a matrix"
            )
        self.metric = metric.to(wide(x))
        # A scalar metric is a diagonal one that broadcasts.
        self.diagonal = self.metric.reshape(batch, metric.shape[1:].numel()) if metric.ndim < 3 else None
        smallest = self.diagonal
        if smallest is not None and not unreadable(smallest) and not bool((smallest > 0).all()):
            raise ValueError(f"fn: returned a metric with an entry {smallest.min().item():.3g}, expected positive numbers")

    @cached_property
    def factor(self) -> Tensor:
        """L ``(B, d, d)`` with G = L Lᵀ."""
        try:
            return torch.linalg.cholesky(self.metric)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise ValueError(
                "fn: returned a matrix that is not positive definite; add a small multiple of the identity"
            ) from error

    def _columns(self, vector: Tensor) -> Tensor:
        """Vectors ``(..., B, *event)`` as columns ``(..., B, d, 1)``, at least as wide as the metric."""
        leading = vector.shape[: vector.ndim - self.x.ndim]
        columns = vector.reshape(*leading, len(self.x), self.dim, 1)
        return columns.to(torch.promote_types(vector.dtype, self.metric.dtype))

    def flat(self, vector: Tensor) -> Tensor:
        v = self._columns(vector)
        out = self.metric.to(v.dtype) @ v if self.diagonal is None else v * self.diagonal.unsqueeze(-1)
        return out.reshape(vector.shape).to(vector.dtype)

    def sharp(self, covector: Tensor) -> Tensor:
        c = self._columns(covector)
        if self.diagonal is not None:
            out = c / self.diagonal.unsqueeze(-1)
        else:
            factor = self.factor.to(c.dtype)
            half = torch.linalg.solve_triangular(factor, c, upper=False)
            out = torch.linalg.solve_triangular(factor.mT, half, upper=True)
        return out.reshape(covector.shape).to(covector.dtype)

    def random_tangent(self, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        w = white((k, *self.x.shape), self.x, probe, generator)
        columns = self._columns(w)
        if self.diagonal is not None:
            out = columns / self.diagonal.sqrt().unsqueeze(-1)
        else:
            out = torch.linalg.solve_triangular(self.factor.mT, columns, upper=True)
        return out.reshape(w.shape).to(w.dtype)

    def random_cotangent(self, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        w = white((k, *self.x.shape), self.x, probe, generator)
        columns = self._columns(w)
        out = self.factor @ columns if self.diagonal is None else columns * self.diagonal.sqrt().unsqueeze(-1)
        return out.reshape(w.shape).to(w.dtype)
