"""Flat space."""

from __future__ import annotations

from torch import Tensor

from georeg.manifolds.base import Manifold, event_size
from georeg.random import Generator, Probe, white
from georeg.registry import register


@register("manifold", "euclidean")
class Euclidean(Manifold):
    """ℝᵈ with G = I, for events of any shape.

    Example:
        >>> import torch, georeg
        >>> georeg.Euclidean().dim(torch.zeros(2, 3, 4, 4))
        48
    """

    def dim(self, x: Tensor) -> int:
        return event_size(x)

    def sharp(self, x: Tensor, covector: Tensor) -> Tensor:
        return covector

    def flat(self, x: Tensor, vector: Tensor) -> Tensor:
        return vector

    def projx(self, x: Tensor) -> Tensor:
        return x

    def proju(self, x: Tensor, vector: Tensor) -> Tensor:
        return vector

    def random_tangent(self, x: Tensor, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        return white((k, *x.shape), x, probe, generator)

    random_cotangent = random_tangent

    def lift(self, x: Tensor, w: Tensor) -> Tensor:
        return w.reshape(len(w), *x.shape).to(x.dtype)

    def components(self, x: Tensor, vector: Tensor) -> Tensor:
        return vector.reshape(len(vector), len(x), event_size(x))

    colift = lift

    def cocomponents(self, x: Tensor, covector: Tensor) -> Tensor:
        return self.components(x, covector)
