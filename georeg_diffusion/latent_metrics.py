"""The metrics of the noise space X_t that ``--metric`` names.

Everything read off R = G⁻¹JᵀHJ is independent of coordinates, so each metric is given where it costs nothing:
in the ambient pixel space, on the tangent space of the sphere.

====================  =====================================================================================
name                  what it is
====================  =====================================================================================
sphere                the sphere through each x_t with its induced metric; the default
stereographic         the same: the chart of Eq. 2 with the metric that belongs to it (equal to all digits)
stereographic-flat    the paper's "G = I": Euclidean *in stereographic coordinates* (of Eq. 3's chart)
ambient               Euclidean in pixel space
isodiff               what the paper's released code computes: G = I in Eq. 2's unit chart, because its metric
                      takes the radius from z itself and cancels to 1, at a point moved to radius √(n−1), from a
                      forward pass of its own. A baseline to compare with, never an oracle.
====================  =====================================================================================
"""

from __future__ import annotations

import torch
from torch import Tensor

import georeg
from georeg.manifolds.base import event_dims, expand
from georeg.random import Generator, Probe

METRICS = ("sphere", "stereographic", "stereographic-flat", "ambient", "isodiff")


class StereographicFlat(georeg.Sphere):
    """The sphere through each point, with the metric that is Euclidean in stereographic coordinates.

    The inverse chart is conformal, ‖dx‖ = λ(x)‖dz‖, so G = λ⁻² P. From the pole (0, …, 0, r):
    λ = 1 − xₙ/r in Eq. 3's chart z = r x′/(r − xₙ), and r − xₙ in Eq. 2's unit chart z = x′/(r − xₙ).

    Args:
        unit_chart: Eq. 2's chart instead of Eq. 3's.
    """

    def __init__(self, *, unit_chart: bool = False) -> None:
        super().__init__()
        self.unit_chart = unit_chart

    def _scaled(self, x: Tensor, vector: Tensor, power: int) -> Tensor:
        flat = x.flatten(1)
        radius = flat.norm(dim=1)
        factor = radius - flat[:, -1]
        if not self.unit_chart:
            factor = factor / radius
        return vector * expand(factor**power, x)

    def sharp(self, x: Tensor, covector: Tensor) -> Tensor:
        return self._scaled(x, self.proju(x, covector), 2)

    def flat(self, x: Tensor, vector: Tensor) -> Tensor:
        return self._scaled(x, self.proju(x, vector), -2)

    def random_tangent(self, x: Tensor, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        return self._scaled(x, super().random_tangent(x, k, generator, probe=probe), 1)

    def random_cotangent(self, x: Tensor, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        return self._scaled(x, super().random_tangent(x, k, generator, probe=probe), -1)

    def lift(self, x: Tensor, w: Tensor) -> Tensor:
        return self._scaled(x, super().lift(x, w), 1)

    def colift(self, x: Tensor, w: Tensor) -> Tensor:
        return self._scaled(x, super().lift(x, w), -1)

    def components(self, x: Tensor, vector: Tensor) -> Tensor:
        return super().components(x, self._scaled(x, vector, -1))

    def cocomponents(self, x: Tensor, covector: Tensor) -> Tensor:
        return super().components(x, self._scaled(x, covector, 1))

    def cholesky(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, factor = super().cholesky(x)
        return q, self._scaled(x, x.new_ones(len(x)).reshape(-1, *(1,) * (x.ndim - 1)), -1).reshape(-1, 1, 1) * factor


def latent_manifold(metric: str) -> georeg.Manifold:
    """The manifold that a name of ``--metric`` stands for.

    Raises:
        ValueError: an unknown name.
    """
    if metric in ("sphere", "stereographic"):
        return georeg.Sphere()
    if metric == "stereographic-flat":
        return StereographicFlat()
    if metric == "isodiff":
        return StereographicFlat(unit_chart=True)
    if metric == "ambient":
        return georeg.Euclidean()
    raise ValueError(f"metric: got {metric!r}, expected one of {', '.join(METRICS)}")


def isodiff_point(x: Tensor) -> Tensor:
    """x moved radially to radius √(n−1), where the released code evaluates its Jacobian."""
    n = x.shape[1:].numel()
    return x * ((n - 1) ** 0.5 / torch.linalg.vector_norm(x, dim=event_dims(x), keepdim=True))
