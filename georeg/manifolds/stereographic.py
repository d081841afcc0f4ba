"""The sphere in stereographic coordinates, with the metric that belongs to its chart."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from georeg.manifolds.base import Manifold, event_dims, event_size, expand
from georeg.manifolds.sphere import Sphere
from georeg.random import Generator, Probe, white
from georeg.registry import register


@register("manifold", "stereographic")
class SphereStereographic(Manifold):
    """Stereographic coordinates z ∈ ℝⁿ⁻¹ of the sphere Sⁿ⁻¹(r), projected from the pole (0, …, 0, r).

    Two charts are in use, and each induces its own conformal metric λ(z)² I:

    ============  ======================  ==============================  ==========================
    ``chart``     z                       λ(z)²                           source
    ============  ======================  ==============================  ==========================
    ``"scaled"``  r·x′ / (r − xₙ)         4 r⁴ / (‖z‖² + r²)²              Eq. 3; geoopt's, k = 1/r²
    ``"unit"``    x′ / (r − xₙ)           4 r² / (1 + ‖z‖²)²               Eq. 2
    ============  ======================  ==============================  ==========================

    The paper prints the chart of Eq. 2 beside the metric of Eq. 3; mixed they are wrong unless r = 1.

    Args:
        radius: r > 0.
        chart: ``"scaled"`` (default) or ``"unit"``.

    Example:
        >>> import torch, georeg
        >>> chart = georeg.SphereStereographic(radius=2.0)
        >>> x = torch.tensor([[2.0, 0.0, 0.0]])
        >>> z = chart.from_ambient(x)
        >>> z, chart.to_ambient(z)
        (tensor([[2., 0.]]), tensor([[2., 0., 0.]]))

    References:
        Hahm et al., Isometric Diffusion, Eq. 2 and 3; Kochurov et al., geoopt, κ-stereographic model.
    """

    def __init__(self, radius: float = 1.0, *, chart: Literal["scaled", "unit"] = "scaled") -> None:
        if not radius > 0:
            raise ValueError(f"radius: got {radius}, expected a positive number")
        if chart not in ("scaled", "unit"):
            raise ValueError(f"chart: got {chart!r}, expected 'scaled' (Eq. 3) or 'unit' (Eq. 2)")
        self.radius, self.chart = float(radius), chart

    def _scale(self) -> float:
        """The factor by which this chart's coordinates are multiplied to give those of the scaled chart."""
        return self.radius if self.chart == "unit" else 1.0

    def conformal_factor(self, z: Tensor) -> Tensor:
        """λ(z) with G = λ² I, per sample ``(B,)`` in float32 or better."""
        wide = z.to(torch.promote_types(z.dtype, torch.float32)) * self._scale()
        dims = event_dims(z)
        squared = wide.square().sum(dims) if dims else wide.square()
        return 2 * self._scale() / (1 + squared / self.radius**2)

    def to_ambient(self, z: Tensor) -> Tensor:
        """Chart coordinates ``(B, n−1)`` to points of the sphere ``(B, n)``, Π⁻¹ of Eq. 2."""
        w = z * (self._scale() / self.radius)
        squared = w.square().sum(-1, keepdim=True)
        return self.radius * torch.cat([2 * w, squared - 1], dim=-1) / (squared + 1)

    def from_ambient(self, x: Tensor) -> Tensor:
        """Points of the sphere ``(B, n)`` to chart coordinates ``(B, n−1)``, Π of Eq. 2.

        Raises:
            ValueError: where a point is the pole (0, …, 0, r), which has no coordinates, or off the
                sphere: the chart at a fixed radius would move it without a word.
        """
        if x.ndim != 2:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (B, n); flatten the events first")
        Sphere(self.radius).check_point(x)
        gap = self.radius - x[:, -1:]
        if x.device.type != "meta" and bool((gap <= 0).any()):
            raise ValueError(
                "x: got the pole (0, …, 0, r), which has no stereographic coordinates; rotate the points, "
                "or use georeg.Sphere(), which needs no chart"
            )
        return x[:, :-1] * (self.radius / self._scale()) / gap

    def dim(self, x: Tensor) -> int:
        return event_size(x)

    def _scaled(self, x: Tensor, vector: Tensor, power: int) -> Tensor:
        return vector * expand(self.conformal_factor(x) ** power, x).to(vector.dtype)

    def sharp(self, x: Tensor, covector: Tensor) -> Tensor:
        return self._scaled(x, covector, -2)

    def flat(self, x: Tensor, vector: Tensor) -> Tensor:
        return self._scaled(x, vector, 2)

    def projx(self, x: Tensor) -> Tensor:
        return x

    def proju(self, x: Tensor, vector: Tensor) -> Tensor:
        return vector

    def random_tangent(self, x: Tensor, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        return self._scaled(x, white((k, *x.shape), x, probe, generator), -1)

    def random_cotangent(self, x: Tensor, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        return self._scaled(x, white((k, *x.shape), x, probe, generator), 1)

    def __repr__(self) -> str:
        return f"SphereStereographic(radius={self.radius}, chart={self.chart!r})"
