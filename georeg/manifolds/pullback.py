"""The metric that a map induces on its domain."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from georeg.linearize import Map, linearize
from georeg.linearize.base import in_functorch
from georeg.manifolds.base import Manifold, MetricAt, dot, event_size, expand, unreadable
from georeg.manifolds.coordinate import CoordinateMetric
from georeg.manifolds.custom import CustomMetric, CustomMetricAt
from georeg.manifolds.euclidean import Euclidean
from georeg.manifolds.solve import conjugate_gradients, implicit_solve
from georeg.random import Generator, Probe, white


class PullbackMetric(CoordinateMetric):
    """ℝᵈ with the metric that a map f into (N, H) induces, G(x) = Jᵀ H(f(x)) J, e.g. of a feature network.

    *As a codomain* it is matrix-free: ``flat`` is one product with J and one with Jᵀ, and a probe is
    u = Jᵀu′ with u′ a random cotangent of N, whose covariance is JᵀHJ; nothing is factorised.
    *As a domain* it needs G⁻¹: dense, by a Cholesky factor (d products a point, d² memory), or by conjugate
    gradients (matrix-free, some products for each probe; exact first derivatives, no second), and must be positive
    definite: f an immersion, dim N ≥ d. The graph through x and through the parameters of f is kept.

    Fixed-norm probes (``probe="sphere"``): tangent vectors have the exact whitened norm √d. Cotangents
    fix the norm of u′ to √dim N instead, since ‖L⁻¹u‖ would cost a solve; that is unbiased, and without
    variance where the composite map into N is a scaled isometry onto its tangent space.

    Args:
        f: the map, acting on each sample alone; its Jacobian must itself be differentiable.
        codomain: N with its metric H; default Euclidean.
        damping: δ ≥ 0 for G = JᵀHJ + δI, everywhere.
        solver: ``"cholesky"`` or ``"cg"``; used as a domain only.
        tolerance: of conjugate gradients, the relative residual; default eps^¾ of the dtype.
        max_iterations: of conjugate gradients; default 10 d.
        chunk_size: probes per vectorised product with J.

    Raises:
        TypeError: f not callable, codomain not a manifold.
        ValueError: damping < 0, an unknown solver; as a domain, a singular metric. As a codomain a singular
            one (dim N < d, or a Jacobian that loses rank) is a seminorm: usable, and not noticed.

    Example:
        >>> import torch, georeg
        >>> metric = georeg.PullbackMetric(lambda x: x * torch.tensor([3.0, 1.0]))
        >>> metric.flat(torch.zeros(1, 2), torch.ones(1, 2)).tolist()
        [[9.0, 1.0]]
        >>> metric.norm(torch.zeros(1, 2), torch.tensor([[1.0, 4.0]])).tolist()
        [5.0]

    References:
        Shao, Kumar, Fletcher 2018, The Riemannian geometry of deep generative models; Arvanitidis et al. 2018,
        Latent space oddity.
    """

    def __init__(
        self,
        f: Map,
        codomain: Manifold | None = None,
        *,
        damping: float = 0.0,
        solver: Literal["cholesky", "cg"] = "cholesky",
        tolerance: float | None = None,
        max_iterations: int | None = None,
        chunk_size: int | None = None,
    ) -> None:
        if not callable(f):
            raise TypeError(f"f: got {type(f).__name__}, expected a callable or torch.nn.Module")
        if codomain is not None and not isinstance(codomain, Manifold):
            raise TypeError(f"codomain: got {type(codomain).__name__}, expected a georeg manifold such as georeg.Sphere()")
        if not damping >= 0:
            raise ValueError(f"damping: got {damping}, expected a number ≥ 0")
        if solver not in ("cholesky", "cg"):
            raise ValueError(f"solver: got {solver!r}, expected 'cholesky' (dense) or 'cg' (conjugate gradients)")
        if tolerance is not None and not tolerance > 0:
            raise ValueError(f"tolerance: got {tolerance}, expected a positive relative residual")
        if max_iterations is not None and max_iterations < 1:
            raise ValueError(f"max_iterations: got {max_iterations}, expected at least 1")
        self.f, self.codomain, self.damping, self.solver = f, codomain or Euclidean(), damping, solver
        self.tolerance, self.max_iterations, self.chunk_size = tolerance, max_iterations, chunk_size

    def at(self, x: Tensor) -> PullbackAt:
        return PullbackAt(self, x)

    def cholesky(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.frame(x), self.at(x).dense.factor

    def __repr__(self) -> str:
        name = getattr(self.f, "__name__", type(self.f).__name__)
        return f"PullbackMetric({name}, codomain={self.codomain}, damping={self.damping}, solver={self.solver!r})"


class PullbackAt(MetricAt):
    """A pullback metric at a batch of points: f runs once, and G is formed and factorised once if at all.

    ``dim`` is the rank that G can have: min(d, dim N) without damping.
    """

    manifold: PullbackMetric

    def __init__(self, manifold: PullbackMetric, x: Tensor) -> None:
        super().__init__(manifold, x)
        self.lin = linearize(manifold.f, x, chunk_size=manifold.chunk_size)
        manifold.codomain.check_point(self.lin.value, "the value of f")
        self.target = manifold.codomain.at(self.lin.value)
        if not manifold.damping:
            self.dim = min(self.dim, self.target.dim)

    def flat(self, vector: Tensor) -> Tensor:
        probes = vector.reshape(-1, *self.x.shape) if vector.numel() else vector.reshape(1, *self.x.shape)
        product = self.lin.vjp(self.target.flat(self.lin.jvp(probes)))
        return product.reshape(vector.shape).to(vector.dtype) + self.manifold.damping * vector

    @cached_property
    def dense(self) -> CustomMetricAt:
        """G ``(B, d, d)`` with its Cholesky factor."""
        d = event_size(self.x)
        self._refuse_rank(self.dim, d)
        axes = torch.eye(d, dtype=self.x.dtype, device=self.x.device).reshape(d, 1, *self.x.shape[1:])
        columns = self.lin.jvp(axes.expand(d, *self.x.shape))
        lowered = self.target.flat(columns)
        left, right = (c.reshape(d, len(self.x), event_size(c[0])).movedim(0, 1) for c in (columns, lowered))
        gram = left @ right.mT
        metric = (gram + gram.mT) / 2 + self.manifold.damping * torch.eye(d, dtype=gram.dtype, device=gram.device)
        at = CustomMetric(lambda _: metric).at(self.x)
        try:
            pivots = at.factor.detach().diagonal(dim1=1, dim2=2).square()
        except ValueError:
            self._refuse_rank(0, d)
        # Rounding lets a factorisation of a singular matrix succeed with pivots of the size of eps.
        if not unreadable(pivots):
            smallest = d * torch.finfo(pivots.dtype).eps * pivots.amax(1, keepdim=True)
            self._refuse_rank(int((pivots > smallest).sum(1).min()), d)
        return at

    @staticmethod
    def _refuse_rank(rank: int, d: int) -> None:
        if rank < d:
            raise ValueError(
                f"f: induces a singular metric JᵀHJ (rank below {d}), which has no inverse and cannot be a domain's; pass "
                "damping > 0 (the metric then is JᵀHJ + damping·I), or an f that is an immersion"
            )

    def sharp(self, covector: Tensor) -> Tensor:
        if self.manifold.solver == "cholesky":
            return self.dense.sharp(covector)
        if in_functorch():
            raise RuntimeError(
                "solver: got 'cg' inside a torch.func transform, expected 'cholesky' there: conjugate gradients stop by "
                "value, which a transform hides"
            )
        self._refuse_rank(self.dim, event_size(self.x))
        probes = covector.reshape(-1, *self.x.shape) if covector.numel() else covector.reshape(1, *self.x.shape)
        solved = implicit_solve(self.flat, probes.to(self.x.dtype), self._solve)
        return solved.reshape(covector.shape).to(covector.dtype)

    def _solve(self, covector: Tensor) -> Tensor:
        tolerance = self.manifold.tolerance or torch.finfo(covector.dtype).eps ** 0.75
        iterations = self.manifold.max_iterations or 10 * event_size(self.x)
        return conjugate_gradients(self.x, self.flat, covector, tolerance=tolerance, max_iterations=iterations)

    def random_tangent(self, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        if self.manifold.solver == "cholesky":
            return self.dense.random_tangent(k, generator, probe=probe)
        # G⁻¹u has covariance G⁻¹ G G⁻¹; its whitened norm is uᵀG⁻¹u, and a Gaussian's direction is independent of it.
        u = self.random_cotangent(k, generator, probe="gaussian" if probe == "sphere" else probe)
        v = self.sharp(u)
        if probe != "sphere":
            return v
        squared = dot(self.x, u, v)
        return v * expand((self.dim / torch.where(squared > 0, squared, 1)).sqrt(), self.x).to(v.dtype)

    def random_cotangent(self, k: int, generator: Generator = None, *, probe: Probe = "gaussian") -> Tensor:
        u = self.lin.vjp(self.target.random_cotangent(k, generator, probe=probe))
        if not self.manifold.damping:
            return u
        return u + self.manifold.damping**0.5 * white((k, *self.x.shape), self.x, probe, generator)
