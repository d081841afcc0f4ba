"""The round sphere, by projection onto its tangent spaces."""

from __future__ import annotations

import torch
from torch import Tensor

from georeg.manifolds.base import Manifold, dot, event_dims, event_size, expand, unreadable, wide
from georeg.random import Generator, Probe, white
from georeg.registry import register


def squared_norm(x: Tensor) -> Tensor:
    """‖x‖² per sample with the event axes kept as ones, 1 where x = 0.

    In float32 or better: in half precision it overflows at ‖x‖ = 256, where a noised image of 256² is.
    """
    dims = event_dims(x)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    squared = wide.square().sum(dims, keepdim=True) if dims else wide.square()
    return torch.where(squared > 0, squared, 1)


def reflect(x: Tensor, vectors: Tensor) -> Tensor:
    """The Householder reflection that swaps ±e₁ and x/‖x‖, of vectors ``(k, B, n)``; it is its own inverse.

    It takes the other axes to a basis of the tangent space; the sign avoids cancellation. Linear in n, where
    a matrix of the basis is quadratic.
    """
    unit = (x / squared_norm(x).sqrt()).to(x.dtype).flatten(1)
    first = unit[:, :1]
    normal = torch.cat([first + torch.where(first >= 0, 1.0, -1.0).to(x.dtype), unit[:, 1:]], dim=1)
    twice = 2 * dot(unit, normal, vectors) / dot(unit, normal, normal)
    return vectors - normal * expand(twice, unit).to(vectors.dtype)


def embed(x: Tensor, w: Tensor) -> Tensor:
    """Components w ``(k, B, n−1)`` as tangent vectors of the sphere at x, ``(k, B, *event)``, isometrically."""
    return reflect(x, torch.nn.functional.pad(w, (1, 0))).reshape(len(w), *x.shape)


@register("manifold", "sphere")
class Sphere(Manifold):
    """The sphere Sⁿ⁻¹ in ℝⁿ with the metric induced by ℝⁿ; an event of any shape is one vector of ℝⁿ.

    The cometric is the tangent projection, G⁻¹ = P = I − xxᵀ/‖x‖². This agrees with the
    stereographic computation (Eq. 3 of Hahm et al.) to all digits, costs nothing and has no pole.

    Args:
        radius: the sphere's radius. With None each point lies on the sphere through itself: the
            family of concentric spheres, which is what noised images x_t are on. That form drops the
            radial part of every Jacobian; no point is refused, not even the origin, which has no
            tangent space: results there are finite and mean nothing.

    Raises:
        ValueError: for a radius that is not positive, and from ``check_point`` when a fixed radius is
            given and x is off it by more than 1e-3 relative (1e-2 in half precision).

    Example:
        >>> import torch, georeg
        >>> x = torch.tensor([[0.0, 3.0]])
        >>> georeg.Sphere().sharp(x, torch.tensor([[1.0, 5.0]]))
        tensor([[1., 0.]])
    """

    def __init__(self, radius: float | None = None) -> None:
        if radius is not None and not radius > 0:
            raise ValueError(f"radius: got {radius}, expected a positive number, or None for each point's own norm")
        self.radius = radius

    def dim(self, x: Tensor) -> int:
        return event_size(x) - 1

    def check_point(self, x: Tensor, name: str = "x") -> None:
        if self.radius is None or unreadable(x):
            return
        norms = torch.linalg.vector_norm(x.detach().flatten(1), dim=1, dtype=torch.promote_types(x.dtype, torch.float32))
        tolerance = 1e-2 if x.dtype in (torch.float16, torch.bfloat16) else 1e-3
        worst = (norms / self.radius - 1).abs().max().item()
        if not worst <= tolerance:
            raise ValueError(
                f"{name}: got points with norms {norms.min().item():.4g} to {norms.max().item():.4g}, expected "
                f"‖{name}‖ = {self.radius:.4g} to a relative {tolerance:g}; project first (Sphere.projx, or project=True "
                "for a codomain), or use Sphere() for the sphere through each point"
            )

    def proju(self, x: Tensor, vector: Tensor) -> Tensor:
        along = expand(dot(x, x, vector), x)
        return (vector - x * (along / squared_norm(x))).to(vector.dtype)

    def sharp(self, x: Tensor, covector: Tensor) -> Tensor:
        return self.proju(x, covector)

    def flat(self, x: Tensor, vector: Tensor) -> Tensor:
        return self.proju(x, vector)

    def projx(self, x: Tensor) -> Tensor:
        return x if self.radius is None else (x * (self.radius / squared_norm(x).sqrt())).to(x.dtype)

    def random_tangent(self, x: Tensor, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        # Not P w: a w parallel to x (the same seed drew both) would leave nothing but rounding to normalise.
        return embed(x, white((k, len(x), event_size(x) - 1), x, probe, generator))

    random_cotangent = random_tangent

    def lift(self, x: Tensor, w: Tensor) -> Tensor:
        return embed(x, w).to(x.dtype)

    def components(self, x: Tensor, vector: Tensor) -> Tensor:
        point, vectors = x.to(wide(x)), vector.to(wide(x))
        return reflect(point, vectors.reshape(len(vector), len(x), event_size(x)))[..., 1:]

    def colift(self, x: Tensor, w: Tensor) -> Tensor:
        return self.lift(x, w)

    def cocomponents(self, x: Tensor, covector: Tensor) -> Tensor:
        return self.components(x, covector)

    def cholesky(self, x: Tensor) -> tuple[Tensor, Tensor]:
        eye = torch.eye(event_size(x) - 1, dtype=wide(x), device=x.device)
        q = embed(x, eye.unsqueeze(1).expand(-1, len(x), -1)).flatten(2).permute(1, 2, 0)
        return q, eye.expand(len(x), -1, -1)

    def __repr__(self) -> str:
        return f"Sphere(radius={self.radius})"
