"""Metrics on all of ℝᵈ that are computed once for a batch of points."""

from __future__ import annotations

from torch import Tensor

from georeg.manifolds.base import Manifold, event_size
from georeg.random import Generator, Probe


class CoordinateMetric(Manifold):
    """ℝᵈ with a metric whose work is done by ``at(x)``: a subclass overrides that alone.

    Every product goes through the object that ``at`` returns, which computes the metric once.
    """

    def dim(self, x: Tensor) -> int:
        return event_size(x)

    def sharp(self, x: Tensor, covector: Tensor) -> Tensor:
        return self.at(x).sharp(covector)

    def flat(self, x: Tensor, vector: Tensor) -> Tensor:
        return self.at(x).flat(vector)

    def projx(self, x: Tensor) -> Tensor:
        return x

    def proju(self, x: Tensor, vector: Tensor) -> Tensor:
        return vector

    def random_tangent(self, x: Tensor, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        return self.at(x).random_tangent(k, generator, probe=probe)

    def random_cotangent(self, x: Tensor, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        return self.at(x).random_cotangent(k, generator, probe=probe)
