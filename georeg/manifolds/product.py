"""A product of manifolds: a latent made of several factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from georeg.manifolds.base import Manifold, MetricAt, event_size
from georeg.random import Generator, Probe


def _join(parts: list[Tensor], shape: Sequence[int]) -> Tensor:
    return torch.cat(parts, dim=-1).reshape(shape)


def _block_diagonal(blocks: list[Tensor]) -> Tensor:
    """Matrices ``(B, mᵢ, nᵢ)`` as one ``(B, Σ mᵢ, Σ nᵢ)``."""
    columns = sum(block.shape[2] for block in blocks)
    rows, before = [], 0
    for block in blocks:
        rows.append(torch.nn.functional.pad(block, (before, columns - before - block.shape[2])))
        before += block.shape[2]
    return torch.cat(rows, dim=1)


class Product(Manifold):
    """M₁ × … × M_m with the block-diagonal metric G = diag(G₁, …, G_m).

    The coordinates of an event, flattened, are those of the factors one after the other. Fixed-norm
    probes have the norm √dim Mᵢ in each factor, hence √dim M in all: unbiased, and without variance
    wherever R is a multiple of the identity on each factor.

    Args:
        manifolds: the factors.
        sizes: how many coordinates each factor takes; a sphere Sⁿ⁻¹ takes n.

    Raises:
        TypeError: a factor that is not a manifold.
        ValueError: sizes that do not match the factors, or the event.

    Example:
        Two circles and a line:

        >>> import torch, georeg
        >>> torus = georeg.Product([georeg.Sphere(), georeg.Sphere(), georeg.Euclidean()], sizes=[2, 2, 1])
        >>> x = torch.tensor([[1.0, 0.0, 0.0, 2.0, 5.0]])
        >>> torus.dim(x), torus.sharp(x, torch.ones(1, 5))
        (3, tensor([[0., 1., 1., 0., 1.]]))
    """

    def __init__(self, manifolds: Sequence[Manifold], *, sizes: Sequence[int]) -> None:
        for factor in manifolds:
            if not isinstance(factor, Manifold):
                raise TypeError(
                    f"manifolds: got {type(factor).__name__}, expected georeg manifolds such as georeg.Sphere() (instances)"
                )
        if not manifolds or len(manifolds) != len(sizes):
            raise ValueError(f"sizes: got {len(sizes)} for {len(manifolds)} manifolds, expected one for each, at least one")
        if min(sizes) < 1:
            raise ValueError(f"sizes: got {list(sizes)}, expected positive numbers of coordinates")
        self.manifolds, self.sizes = tuple(manifolds), tuple(sizes)

    def factors(self, x: Tensor) -> list[tuple[Manifold, Tensor]]:
        """Each factor with its part of the points, ``(B, size)``."""
        if event_size(x) != sum(self.sizes):
            raise ValueError(
                f"x: got events of {event_size(x)} coordinates, expected {sum(self.sizes)}, the sum of "
                f"sizes={list(self.sizes)}"
            )
        return list(zip(self.manifolds, self.split(x, x), strict=True))

    def split(self, x: Tensor, vector: Tensor) -> list[Tensor]:
        """The factors' parts ``(..., B, size)`` of vectors ``(..., B, *event)`` at x."""
        leading = vector.shape[: vector.ndim - x.ndim]
        return list(vector.reshape(*leading, len(x), sum(self.sizes)).split(self.sizes, dim=-1))

    def at(self, x: Tensor) -> ProductAt:
        return ProductAt(self, x)

    def dim(self, x: Tensor) -> int:
        return sum(m.dim(p) for m, p in self.factors(x))

    def sharp(self, x: Tensor, covector: Tensor) -> Tensor:
        return self.at(x).sharp(covector)

    def flat(self, x: Tensor, vector: Tensor) -> Tensor:
        return self.at(x).flat(vector)

    def proju(self, x: Tensor, vector: Tensor) -> Tensor:
        parts = zip(self.factors(x), self.split(x, vector), strict=True)
        return _join([m.proju(p, v) for (m, p), v in parts], vector.shape)

    def projx(self, x: Tensor) -> Tensor:
        return _join([m.projx(p) for m, p in self.factors(x)], x.shape)

    def check_point(self, x: Tensor, name: str = "x") -> None:
        for i, (factor, point) in enumerate(self.factors(x)):
            factor.check_point(point, f"{name} (factor {i})")

    def random_tangent(self, x: Tensor, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        return self.at(x).random_tangent(k, generator, probe=probe)

    def random_cotangent(self, x: Tensor, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        return self.at(x).random_cotangent(k, generator, probe=probe)

    def cholesky(self, x: Tensor) -> tuple[Tensor, Tensor]:
        blocks = [m.cholesky(p) for m, p in self.factors(x)]
        return _block_diagonal([q for q, _ in blocks]), _block_diagonal([factor for _, factor in blocks])

    def __repr__(self) -> str:
        return f"Product([{', '.join(map(repr, self.manifolds))}], sizes={list(self.sizes)})"


class ProductAt(MetricAt):
    """A product's metric at a batch of points: each factor's own."""

    def __init__(self, manifold: Product, x: Tensor) -> None:
        super().__init__(manifold, x)
        self._split = manifold.split
        self.factors = [m.at(p) for m, p in manifold.factors(x)]

    def sharp(self, covector: Tensor) -> Tensor:
        parts = zip(self.factors, self._split(self.x, covector), strict=True)
        return _join([factor.sharp(c) for factor, c in parts], covector.shape)

    def flat(self, vector: Tensor) -> Tensor:
        parts = zip(self.factors, self._split(self.x, vector), strict=True)
        return _join([factor.flat(v) for factor, v in parts], vector.shape)

    def random_tangent(self, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        return _join([f.random_tangent(k, generator, probe=probe) for f in self.factors], (k, *self.x.shape))

    def random_cotangent(self, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        return _join([f.random_cotangent(k, generator, probe=probe) for f in self.factors], (k, *self.x.shape))
