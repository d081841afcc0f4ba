"""Maps whose geometry is known, and changes of a map that a loss may be blind to: what losses are told apart by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from georeg.linearize import Map
from georeg.manifolds import CustomMetric, Sphere, SphereStereographic

N, M = 4, 3
Evaluate = Callable[..., Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    """White noise in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(batch: int = 12, n: int = N) -> Tensor:
    """Points ``(B, n)`` in float64."""
    return normal(batch, n, seed=2)


def orthogonal(n: int, seed: int = 0) -> Tensor:
    """An orthogonal matrix ``(n, n)``."""
    return torch.linalg.qr(normal(n, n, seed=seed)).Q


class Network(nn.Module):
    """C·tanh(A x + a), each parameter of which moves the Jacobian at each point."""

    def __init__(self, n: int = N, m: int = M) -> None:
        super().__init__()
        self.first = nn.Parameter(normal(7, n, seed=3) / n**0.5)
        self.bias = nn.Parameter(normal(7, seed=4))
        self.last = nn.Parameter(normal(m, 7, seed=5) / 7**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first.mT + self.bias) @ self.last.mT


def linear(matrix: Tensor, shift: float = 0.0) -> Map:
    """x ↦ A x + shift."""
    return lambda x: x @ matrix.mT + shift


def inversion(x: Tensor) -> Tensor:
    """R = c(x)² I: conformal everywhere and isometric nowhere."""
    return x / x.square().sum(1, keepdim=True)


def shear(x: Tensor) -> Tensor:
    """det J = 1, with angles and lengths all changed."""
    return torch.cat([x[:, :-1], x[:, -1:] + x[:, :1] ** 2 + x[:, 1:2] ** 3], dim=1)


GALLERY: dict[str, tuple[Map, ...]] = {
    "isometry": (linear(orthogonal(N), 1.0), linear(orthogonal(N)[:M])),
    "similarity": (linear(3 * orthogonal(N)), linear(3 * orthogonal(N)[:M], 1.0)),
    "linear": (linear(normal(N, N, seed=7)),),
    "inversion": (inversion,),
    "shear": (shear,),
    "constant": (lambda x: 0 * x + 2, lambda x: 0 * x[:, :M]),
    "network": (Network(), Network(m=6), lambda x: 0.3 * Network()(x)),
}
"""Maps by name, into as many and into fewer dimensions; "isometry" and "similarity" onto ℝᴹ are so off the kernel."""


def _before(loss: Evaluate) -> tuple[Tensor, Tensor]:
    f, x, turn = Network(), points(), orthogonal(N, seed=8)
    return loss(f, x), loss(lambda p: f(p @ turn), x @ turn.mT)


def _behind(loss: Evaluate) -> tuple[Tensor, Tensor]:
    f, x, turn = Network(), points(), orthogonal(M, seed=8)
    return loss(f, x), loss(lambda p: f(p) @ turn, x)


def _coordinates(loss: Evaluate) -> tuple[Tensor, Tensor]:
    """The sphere in a chart, and the codomain in other coordinates with the metric that belongs to them."""
    radius, f = 1.6, Network()
    x, chart, change = Sphere(radius).projx(points()), SphereStereographic(radius), normal(M, M, seed=8)
    inverse = torch.linalg.inv(change)
    metric = CustomMetric(lambda y: (inverse.mT @ inverse).expand(len(y), M, M))
    moved = loss(lambda z: f(chart.to_ambient(z)) @ change.mT, chart.from_ambient(x), domain=chart, codomain=metric)
    return loss(f, x, domain=Sphere()), moved


def _conformal_metric(loss: Evaluate) -> tuple[Tensor, Tensor]:
    f, x = Network(), points()
    return loss(f, x), loss(f, x, domain=CustomMetric(lambda p: 1 + p.square().sum(1)))


def _constant_determinant(loss: Evaluate) -> tuple[Tensor, Tensor]:
    f, x, change = Network(m=N), points(), normal(N, N, seed=8)
    return loss(f, x), loss(lambda p: shear(f(p) @ change.mT), x)


CHANGES: dict[str, Callable[[Evaluate], tuple[Tensor, Tensor]]] = {
    "isometry before": _before,
    "isometry behind": _behind,
    "coordinates": _coordinates,
    "conformal metric": _conformal_metric,
    "constant determinant": _constant_determinant,
}
"""A loss before and after a change that it may be blind to, by name."""
