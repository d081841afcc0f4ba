"""The sphere and the hyperbolic space in stereographic coordinates, with the metric that belongs to each chart."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from georeg.manifolds.base import Manifold, dot, event_size, expand, unreadable
from georeg.manifolds.sphere import Sphere
from georeg.random import Generator, Probe, white
from georeg.registry import register


@register("manifold", "stereographic")
class SphereStereographic(Manifold):
    """Stereographic coordinates z ∈ ℝⁿ⁻¹ of the space of constant curvature κ = ±1/r².

    κ > 0 is the sphere Sⁿ⁻¹(r), projected from its pole (0, …, 0, r); κ < 0 is the Poincaré ball ‖z‖ < r.
    Each chart induces its own conformal metric λ(z)² I:

    ============  ======================  ==============================  ==========================
    ``chart``     z                       λ(z)²                           source
    ============  ======================  ==============================  ==========================
    ``"scaled"``  r·x′ / (r − xₙ)         4 / (1 + κ‖z‖²)²                Eq. 3 (4r⁴/(‖z‖² + r²)²); geoopt's
    ``"unit"``    x′ / (r − xₙ)           4 r² / (1 + ‖z‖²)²              Eq. 2; the sphere's only
    ============  ======================  ==============================  ==========================

    The paper prints the chart of Eq. 2 beside the metric of Eq. 3; mixed they are wrong unless r = 1.
    For κ < 0 the ambient space is Minkowski's, x on the sheet ‖x′‖² − xₙ² = −r², xₙ > 0, and
    z = r·x′ / (r + xₙ).

    Args:
        radius: r > 0; default 1. The Poincaré ball's for κ < 0.
        curvature: κ instead of a radius, r = 1/√|κ|; negative for the Poincaré ball.
        chart: ``"scaled"`` (default) or ``"unit"``.

    Raises:
        ValueError: radius not positive; curvature 0 (that is ``Euclidean()``, up to a factor 4), or given
            beside a radius; the unit chart with κ < 0; from ``check_point``, a point outside the ball.

    Example:
        >>> import torch, georeg
        >>> chart = georeg.SphereStereographic(radius=2.0)
        >>> x = torch.tensor([[2.0, 0.0, 0.0]])
        >>> z = chart.from_ambient(x)
        >>> z, chart.to_ambient(z)
        (tensor([[2., 0.]]), tensor([[2., 0., 0.]]))
        >>> georeg.SphereStereographic(curvature=-1.0).conformal_factor(torch.tensor([[0.0, 0.5]]))
        tensor([2.6667])

    References:
        Hahm et al., Isometric Diffusion, Eq. 2 and 3; Bachmann et al. 2020, Constant curvature graph
        convolutional networks (the κ-stereographic model); Kochurov et al., geoopt.
    """

    def __init__(
        self,
        radius: float | None = None,
        *,
        curvature: float | None = None,
        chart: Literal["scaled", "unit"] = "scaled",
    ) -> None:
        if radius is not None and curvature is not None:
            raise ValueError(f"curvature: got {curvature} beside radius={radius}, expected one of the two: |κ| = 1/r²")
        if radius is not None and not radius > 0:
            raise ValueError(f"radius: got {radius}, expected a positive number; for the Poincaré ball pass curvature=-1.0")
        if curvature is not None and not abs(curvature) > 0:
            raise ValueError(f"curvature: got {curvature}, expected a number other than 0; flat space is georeg.Euclidean()")
        if chart not in ("scaled", "unit"):
            raise ValueError(f"chart: got {chart!r}, expected 'scaled' (Eq. 3) or 'unit' (Eq. 2)")
        self._sign = -1 if curvature is not None and curvature < 0 else 1
        if chart == "unit" and self._sign < 0:
            raise ValueError(
                f"chart: got 'unit' with curvature={curvature}, expected 'scaled'; Eq. 2's chart is the sphere's"
            )
        self.radius = float(radius or 1.0) if curvature is None else abs(curvature) ** -0.5
        self.chart = chart

    @property
    def curvature(self) -> float:
        """κ = ±1/r²."""
        return self._sign / self.radius**2

    def _scale(self) -> float:
        """The factor by which this chart's coordinates are multiplied to give those of the scaled chart."""
        return self.radius if self.chart == "unit" else 1.0

    def conformal_factor(self, z: Tensor) -> Tensor:
        """λ(z) with G = λ² I, per sample ``(B,)`` in float32 or better."""
        wide = z.to(torch.promote_types(z.dtype, torch.float32)) * self._scale()
        return 2 * self._scale() / (1 + self.curvature * dot(z, wide, wide))

    def to_ambient(self, z: Tensor) -> Tensor:
        """Chart coordinates ``(B, n−1)`` to points of the sphere or hyperboloid ``(B, n)``, Π⁻¹ of Eq. 2."""
        w = z * (self._scale() / self.radius)
        squared = w.square().sum(-1, keepdim=True)
        return self.radius * torch.cat([2 * w, squared - self._sign], dim=-1) / (1 + self._sign * squared)

    def from_ambient(self, x: Tensor) -> Tensor:
        """Points of the sphere or hyperboloid ``(B, n)`` to chart coordinates ``(B, n−1)``, Π of Eq. 2.

        Raises:
            ValueError: where a point is the pole (0, …, 0, r), which has no coordinates, or off the
                sphere: the chart at a fixed radius would move it without a word.
        """
        if x.ndim != 2:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (B, n); flatten the events first")
        if self._sign < 0:
            self._check_hyperboloid(x)
        else:
            Sphere(self.radius).check_point(x)
        gap = self.radius - self._sign * x[:, -1:]
        if not unreadable(x) and bool((gap <= 0).any()):
            raise ValueError(
                "x: got the pole (0, …, 0, r), which has no stereographic coordinates; rotate the points, "
                "or use georeg.Sphere(), which needs no chart"
            )
        return x[:, :-1] * (self.radius / self._scale()) / gap

    def _check_hyperboloid(self, x: Tensor) -> None:
        if unreadable(x):
            return
        height = (x[:, :-1].square().sum(1) + self.radius**2).sqrt()
        worst = (x[:, -1] / height - 1).abs().max().item()
        if not worst <= 1e-3:
            raise ValueError(
                f"x: got points off the hyperboloid xₙ = √(‖x′‖² + r²), r = {self.radius:.4g}, by a relative {worst:.3g}, "
                "expected at most 1e-3; compute xₙ from x′"
            )

    def dim(self, x: Tensor) -> int:
        return event_size(x)

    def check_point(self, x: Tensor, name: str = "x") -> None:
        if self._sign > 0 or unreadable(x):
            return
        farthest = x.detach().flatten(1).norm(dim=1).max().item()
        if not farthest < self.radius:
            raise ValueError(
                f"{name}: got a point of norm {farthest:.4g}, expected ‖{name}‖ < {self.radius:.4g}, inside the Poincaré "
                "ball; project first (projx, or project=True for a codomain)"
            )

    def _scaled(self, x: Tensor, vector: Tensor, power: int) -> Tensor:
        return vector * expand(self.conformal_factor(x) ** power, x).to(vector.dtype)

    def sharp(self, x: Tensor, covector: Tensor) -> Tensor:
        return self._scaled(x, covector, -2)

    def flat(self, x: Tensor, vector: Tensor) -> Tensor:
        return self._scaled(x, vector, 2)

    def projx(self, x: Tensor) -> Tensor:
        if self._sign > 0:
            return x
        # geoopt's margin: closer to the boundary λ is rounding noise.
        margin = 1e-5 if x.dtype == torch.float64 else max(4e-3, 2 * torch.finfo(x.dtype).eps)
        limit = (1 - margin) * self.radius
        squared = expand(dot(x, x, x), x).to(x.dtype)
        outside = squared > limit**2
        return x * torch.where(outside, limit / torch.where(outside, squared, 1).sqrt(), 1)

    def proju(self, x: Tensor, vector: Tensor) -> Tensor:
        return vector

    def random_tangent(self, x: Tensor, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        return self._scaled(x, white((k, *x.shape), x, probe, generator), -1)

    def random_cotangent(self, x: Tensor, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        return self._scaled(x, white((k, *x.shape), x, probe, generator), 1)

    def __repr__(self) -> str:
        shape = f"radius={self.radius}" if self._sign > 0 else f"curvature={self.curvature}"
        return f"SphereStereographic({shape}, chart={self.chart!r})"
