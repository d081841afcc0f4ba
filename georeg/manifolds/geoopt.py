"""Any geoopt manifold as one of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.jit._fuser import optimized_execution

from georeg.manifolds.base import Manifold, event_size, expand, unreadable

if TYPE_CHECKING:
    import geoopt


def from_geoopt(manifold: geoopt.Manifold) -> Manifold:
    """A geoopt manifold as a domain or codomain.

    The metric is geoopt's ``inner``, the tangent space the range of its ``proju``. An event with more axes than
    ``manifold.ndim`` is a product of copies, as in geoopt: ``Sphere`` on events (3, 4) is three 2-spheres.

    ``egrad2rgrad`` serves as G⁻¹ wherever it inverts ``inner`` and ``proju`` is an orthogonal projection, which
    is verified once for each event shape. Where not (geoopt 0.5: ``Lorentz``, ``CanonicalStiefel``,
    ``BirkhoffPolytope``), the same is derived from ``inner`` by dense algebra, d² memory a point. ``projx`` is
    geoopt's: on ``Stiefel`` it has no finite derivative where singular values coincide, as on the manifold
    itself, so ``project=True`` cannot serve there.

    Args:
        manifold: an instance, on real coordinates. Curvature and other parameters stay its own.

    Raises:
        TypeError: not an instance of ``geoopt.Manifold``.
        ValueError: from ``check_point``, where geoopt's own check fails (to 1e-3, in half precision 1e-2).

    Example:
        >>> import geoopt, torch, georeg
        >>> ball = georeg.from_geoopt(geoopt.PoincareBall())
        >>> ball.flat(torch.zeros(1, 2), torch.ones(1, 2))
        tensor([[4., 4.]])

    References:
        Kochurov, Karimov, Kozlukov 2020, Geoopt: Riemannian optimization in PyTorch.
    """
    import geoopt  # Here, because it compiles its formulas when imported: most of a second.

    if not isinstance(manifold, geoopt.Manifold):
        raise TypeError(
            f"manifold: got {type(manifold).__name__}, expected an instance of geoopt.Manifold, such as geoopt.Sphere()"
        )
    return GeooptManifold(manifold)


class GeooptManifold(Manifold):
    """See :func:`from_geoopt`."""

    def __init__(self, manifold: geoopt.Manifold) -> None:
        self.manifold = manifold
        self._known: dict[torch.Size, tuple[int, bool]] = {}

    def _example(self, event: torch.Size) -> Tensor:
        """Two points that do not depend on data, ``(2, *event)``; the global generator is left alone."""
        with torch.random.fork_rng([]), torch.no_grad():
            torch.manual_seed(0)
            try:
                point = self.manifold.random(2, *event)
            except NotImplementedError:
                point = self.manifold.projx(torch.randn(2, *event))
        return point.as_subclass(Tensor)

    def _call(self, method: str, x: Tensor, vector: Tensor) -> Tensor:
        """geoopt's ``method(x, vector)`` for vectors ``(..., B, *event)``: one point for each, since not all broadcast."""
        if vector.numel() == 0:
            return vector
        points = x.to(vector.dtype).expand(vector.shape).reshape(-1, *x.shape[1:])
        # A copy, because geoopt.Lorentz.egrad2rgrad overwrites its argument.
        with optimized_execution(False):
            return getattr(self.manifold, method)(points, vector.reshape(points.shape).clone()).reshape(vector.shape)

    def _lowered(self, x: Tensor, vector: Tensor) -> Tensor:
        """The covector ⟨·, v⟩, read off ``inner``, which is linear in its first argument: no NaN at 0."""
        if vector.numel() == 0:
            return vector
        points = x.to(vector.dtype).expand(vector.shape).reshape(-1, *x.shape[1:])
        v = vector.reshape(points.shape)

        def pairing(u: Tensor) -> Tensor:
            # keepdim, because geoopt 0.5's Stereographic.inner mixes samples without it.
            return self.manifold.inner(points, u, v, keepdim=True).sum()

        # geoopt's formulas are TorchScript, whose profiled form silently drops gradients inside torch.func.
        with optimized_execution(False):
            return torch.func.grad(pairing)(torch.zeros_like(v)).reshape(vector.shape)

    def _spans(self, x: Tensor) -> Tensor:
        """geoopt's ``proju`` as matrices ``(B, d, d)``, whatever map onto the tangent space it is."""
        d = event_size(x)
        axes = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:]).expand(d, *x.shape)
        return self._call("proju", x, axes).reshape(d, len(x), d).permute(1, 2, 0)

    def _geometry(self, x: Tensor) -> tuple[int, bool]:
        """Dimension, and whether geoopt's own formulas obey the laws, for events of x's shape."""
        event = x.shape[1:]
        if event not in self._known:
            point = self._example(event)
            with torch.no_grad():
                spans = self._spans(point)
                dim = int(torch.linalg.matrix_rank(spans, rtol=1e-4).max())
                d = event_size(point)
                axes = torch.eye(d, dtype=point.dtype, device=point.device).reshape(d, 1, *event).expand(d, 2, *event)
                returned = self._call("egrad2rgrad", point, self._lowered(point, self._call("proju", point, axes)))
                inverse = returned.reshape(d, 2, d).permute(1, 2, 0)
            lawful = all(torch.allclose(a, spans, atol=1e-4) for a in (spans.mT, spans @ spans, inverse))
            self._known[event] = dim, lawful
        return self._known[event]

    def _lawful(self, x: Tensor) -> bool:
        return self._geometry(x)[1]

    def dim(self, x: Tensor) -> int:
        return self._geometry(x)[0]

    def frame(self, x: Tensor) -> Tensor:
        if self._lawful(x):
            return super().frame(x)
        spans, dim = self._spans(x), self.dim(x)
        # As in Manifold.frame: the choice of directions carries no graph, what spans the tangent space does.
        frozen = spans.detach()
        leading = torch.linalg.eigh(frozen @ frozen.mT).eigenvectors[..., -dim:]
        return torch.linalg.qr(spans @ (frozen.mT @ leading)).Q

    def _columns(self, x: Tensor, vector: Tensor) -> Tensor:
        return vector.reshape(*vector.shape[: vector.ndim - x.ndim], len(x), event_size(x), 1)

    def proju(self, x: Tensor, vector: Tensor) -> Tensor:
        if self._lawful(x):
            return self._call("proju", x, vector)
        q = self.frame(x).to(vector.dtype)
        return (q @ (q.mT @ self._columns(x, vector))).reshape(vector.shape)

    def flat(self, x: Tensor, vector: Tensor) -> Tensor:
        return self.proju(x, self._lowered(x, self.proju(x, vector)))

    def sharp(self, x: Tensor, covector: Tensor) -> Tensor:
        if self._lawful(x):
            return self._call("egrad2rgrad", x, covector)
        q, factor = (matrix.to(covector.dtype) for matrix in self.cholesky(x))
        solved = torch.cholesky_solve(q.mT @ self._columns(x, covector), factor)
        return (q @ solved).reshape(covector.shape)

    def projx(self, x: Tensor) -> Tensor:
        # Twice, because geoopt's projection of some points, as of 0 onto the sphere, is NaN with a NaN gradient.
        with torch.no_grad():
            bad = ~torch.isfinite(self.manifold.projx(x.clone())).flatten(1).all(1)
        safe = self._example(x.shape[1:])[:1].to(x)
        bad = expand(bad, x)
        return torch.where(bad, x, self.manifold.projx(torch.where(bad, safe, x)))

    def check_point(self, x: Tensor, name: str = "x") -> None:
        if unreadable(x):
            return
        tolerance = 1e-2 if x.dtype in (torch.float16, torch.bfloat16) else 1e-3
        # In the dtype of geoopt's own parameters: Lorentz compares with them and wants no other.
        own = next(self.manifold.parameters(), x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32)))
        point = x.detach().to(own.dtype)
        good, reason = self.manifold.check_point_on_manifold(point, explain=True, atol=tolerance, rtol=tolerance)
        if not good or not bool(torch.isfinite(x).all()):
            raise ValueError(
                f"{name}: got points off geoopt's {self.manifold.name} ({reason or 'not finite'}), expected them on it to "
                f"{tolerance:g}; project first (projx, or project=True for a codomain)"
            )

    def __repr__(self) -> str:
        return f"from_geoopt({self.manifold})"
