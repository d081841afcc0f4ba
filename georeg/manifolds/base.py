"""The abstraction of a Riemannian manifold, and its metric at a batch of points."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from georeg.linearize.base import in_functorch
from georeg.random import Generator, Probe, white


def event_dims(x: Tensor) -> tuple[int, ...]:
    """The trailing axes of a batch ``(B, ...)`` that make up one sample."""
    return tuple(range(-(x.ndim - 1), 0))


def expand(per_sample: Tensor, x: Tensor) -> Tensor:
    """Append axes to ``(..., B)`` until it broadcasts against ``(..., B, *event)``."""
    return per_sample.reshape(per_sample.shape + (1,) * (x.ndim - 1))


def dot(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Coordinate-wise pairing ⟨a, b⟩ per sample, accumulated in float32 or better.

    Args:
        x: the base points ``(B, ...)``; only their number of axes is used.
        a: ``(..., B, *event)``.
        b: ``(..., B, *event)``.

    Returns:
        ``(..., B)`` in float64 for float64 input and float32 otherwise, because sums of squares of
        a real network's Jacobian leave the range of half precision.
    """
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    product = a.to(dtype) * b.to(dtype)
    dims = event_dims(x)
    return product.sum(dims) if dims else product


def event_size(x: Tensor) -> int:
    """Number of coordinates of one sample of a batch ``(B, ...)``."""
    return x.shape[1:].numel()


def unreadable(x: Tensor) -> bool:
    """Whether the values of x cannot be checked: none there, none on the meta device, or none to be read in torch.func."""
    return x.numel() == 0 or x.device.type == "meta" or in_functorch()


def wide(x: Tensor) -> torch.dtype:
    """The dtype of factorisations, which half precision has none of: x's own or float32."""
    return torch.promote_types(x.dtype, torch.float32)


class Manifold(ABC):
    """A manifold M embedded in (or charted by) coordinates, with a Riemannian metric G.

    A batch of points is ``x (B, ...)``. Vectors and covectors have the shape of the point, with any
    number of leading probe axes: ``(..., B, *event)``.

    Laws, executed by ``georeg.testing.ManifoldContract``:

    * ``proju`` is a symmetric idempotent map onto the tangent space, whose dimension is ``dim(x)``;
    * ``sharp`` inverts ``flat`` on tangent vectors: ``sharp(x, flat(x, v)) = proju(x, v)``;
    * both are symmetric and positive: ``⟨u, flat(x, v)⟩ = ⟨flat(x, u), v⟩``, ``⟨v, flat(x, v)⟩ > 0``;
    * ``projx`` is idempotent;
    * ``random_tangent`` has covariance G⁻¹ and ``random_cotangent`` has covariance G (on the tangent
      space), so that E[v vᵀ] and E[u uᵀ] are what the trace estimators need.

    A subclass implements the five abstract methods; the rest is derived from them by dense algebra
    on a tangent basis and is worth overriding where it can be had more cheaply.

    Example:
        >>> import torch, georeg
        >>> class Magnified(georeg.Manifold):
        ...     dim = lambda self, x: x[0].numel()
        ...     flat = lambda self, x, vector: 4 * vector          # G = 4 I
        ...     sharp = lambda self, x, covector: covector / 4
        ...     projx = lambda self, x: x
        ...     proju = lambda self, x, vector: vector
        >>> Magnified().norm(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
        tensor([10.])
    """

    @abstractmethod
    def dim(self, x: Tensor) -> int:
        """Dimension of the manifold on which one sample of ``x (B, ...)`` lives."""

    @abstractmethod
    def sharp(self, x: Tensor, covector: Tensor) -> Tensor:
        """Raise an index, G(x)⁻¹ c: the cometric applied to a covector ``(..., B, *event)``."""

    @abstractmethod
    def flat(self, x: Tensor, vector: Tensor) -> Tensor:
        """Lower an index, G(x) v: the metric applied to a vector ``(..., B, *event)``."""

    @abstractmethod
    def projx(self, x: Tensor) -> Tensor:
        """Project ambient coordinates ``(B, ...)`` onto the manifold."""

    @abstractmethod
    def proju(self, x: Tensor, vector: Tensor) -> Tensor:
        """Project an ambient vector ``(..., B, *event)`` onto the tangent space at x."""

    def check_point(self, x: Tensor, name: str = "x") -> None:  # noqa: B027 (most manifolds accept all of R^d)
        """Raise ValueError when x is not on the manifold. Manifolds that fill R^d accept anything."""

    def inner(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Inner product aᵀ G(x) b of two vectors, ``(..., B)`` in float32 or better."""
        return dot(x, a, self.flat(x, b))

    def norm(self, x: Tensor, vector: Tensor) -> Tensor:
        """Length √(vᵀ G v), ``(..., B)``; its gradient at v = 0 is 0 and not NaN."""
        squared = self.inner(x, vector, vector)
        positive = squared > 0
        return torch.where(positive, torch.where(positive, squared, 1).sqrt(), 0)

    def frame(self, x: Tensor) -> Tensor:
        """A basis of each tangent space, orthonormal in the *coordinates*: ``(B, d, dim)``, d the event size.

        Derived: the range of ``proju``, by a differentiable QR decomposition.
        """
        d, dim = event_size(x), self.dim(x)
        basis = torch.eye(d, dtype=wide(x), device=x.device)
        if dim == d:
            return basis.expand(len(x), d, d)
        axes = basis.reshape(d, 1, *x.shape[1:]).expand(d, *x.shape)
        projector = self.proju(x, axes).reshape(d, len(x), d).movedim(0, -1)
        # The leading eigenvectors are only a choice of dim generic directions, so they carry no graph;
        # the basis gets its dependence on x from the projector applied to them.
        directions = torch.linalg.eigh(projector.detach()).eigenvectors[..., -dim:]
        return torch.linalg.qr(projector @ directions).Q

    def cholesky(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The tangent basis Q ``(B, d, dim)`` and L ``(B, dim, dim)`` with Qᵀ G Q = L Lᵀ."""
        q = self.frame(x)
        columns = q.movedim(-1, 0).reshape(q.shape[-1], *x.shape)
        lowered = self.flat(x, columns).reshape(q.shape[-1], len(x), event_size(x)).movedim(0, -1)
        gram = q.mT @ lowered
        return q, torch.linalg.cholesky((gram + gram.mT) / 2)

    def lift(self, x: Tensor, w: Tensor) -> Tensor:
        """Tangent vectors Q L⁻ᵀ w ``(k, B, *event)`` from components ``w (k, B, dim)`` in a G-orthonormal frame."""
        q, factor = self.cholesky(x)
        v = torch.linalg.solve_triangular(factor.mT, w.to(factor.dtype).unsqueeze(-1), upper=True)
        return (q @ v).reshape(len(w), *x.shape).to(x.dtype)

    def colift(self, x: Tensor, w: Tensor) -> Tensor:
        """Covectors Q L w ``(k, B, *event)`` from components ``w (k, B, dim)`` in the dual frame."""
        q, factor = self.cholesky(x)
        return (q @ (factor @ w.to(factor.dtype).unsqueeze(-1))).reshape(len(w), *x.shape).to(x.dtype)

    def components(self, x: Tensor, vector: Tensor) -> Tensor:
        """Components Lᵀ Qᵀ v ``(k, B, dim)`` of tangent vectors in the G-orthonormal frame; inverts ``lift``."""
        q, factor = self.cholesky(x)
        return (factor.mT @ (q.mT @ vector.to(q.dtype).reshape(len(vector), len(x), event_size(x), 1))).squeeze(-1)

    def cocomponents(self, x: Tensor, covector: Tensor) -> Tensor:
        """Components L⁻¹ Qᵀ c ``(k, B, dim)`` of covectors in the dual frame; inverts ``colift``."""
        q, factor = self.cholesky(x)
        c = q.mT @ covector.to(q.dtype).reshape(len(covector), len(x), event_size(x), 1)
        return torch.linalg.solve_triangular(factor, c, upper=False).squeeze(-1)

    def random_tangent(self, x: Tensor, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        """Probe vectors v ``(k, B, *event)`` with mean 0 and covariance G(x)⁻¹ on the tangent space.

        v = Q L⁻ᵀ w with w white in an orthonormal frame and G = L Lᵀ; for ``probe="sphere"`` the
        norm of w is fixed to √dim *before* it is coloured (afterwards would be biased).
        """
        return self.lift(x, white((k, len(x), self.dim(x)), x, probe, generator))

    def random_cotangent(self, x: Tensor, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        """Probe covectors u = Q L w ``(k, B, *event)`` with mean 0 and covariance G(x).

        The graph through x is kept: a metric that depends on f(x) contributes to the gradient.
        """
        return self.colift(x, white((k, len(x), self.dim(x)), x, probe, generator))

    def at(self, x: Tensor) -> MetricAt:
        """The metric at the points x. Override where work can be shared between products at one point."""
        return MetricAt(self, x)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class MetricAt:
    """A manifold's metric bound to a batch of base points: what estimators work with."""

    def __init__(self, manifold: Manifold, x: Tensor) -> None:
        self.manifold, self.x = manifold, x
        self.dim = manifold.dim(x)

    def sharp(self, covector: Tensor) -> Tensor:
        """G⁻¹ c, see :meth:`Manifold.sharp`."""
        return self.manifold.sharp(self.x, covector)

    def flat(self, vector: Tensor) -> Tensor:
        """G v, see :meth:`Manifold.flat`."""
        return self.manifold.flat(self.x, vector)

    def random_tangent(self, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        """See :meth:`Manifold.random_tangent`."""
        return self.manifold.random_tangent(self.x, k, generator, probe=probe)

    def random_cotangent(self, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        """See :meth:`Manifold.random_cotangent`."""
        return self.manifold.random_cotangent(self.x, k, generator, probe=probe)
