"""The laws of a Riemannian manifold, executed: inherit the suite to test a manifold of your own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from georeg.manifolds.base import Manifold, event_size
from georeg.random import PROBES

_VECTOR_FIELDS = ("sharp", "flat", "proju")
_PROBES = ("random_tangent", "random_cotangent")


class _Derived(Manifold):
    """The same geometry by its five abstract methods alone, so that the base class derives the rest."""

    def __init__(self, manifold: Manifold) -> None:
        self.manifold = manifold

    def dim(self, x: Tensor) -> int:
        return self.manifold.dim(x)

    def sharp(self, x: Tensor, covector: Tensor) -> Tensor:
        return self.manifold.sharp(x, covector)

    def flat(self, x: Tensor, vector: Tensor) -> Tensor:
        return self.manifold.flat(x, vector)

    def projx(self, x: Tensor) -> Tensor:
        return self.manifold.projx(x)

    def proju(self, x: Tensor, vector: Tensor) -> Tensor:
        return self.manifold.proju(x, vector)


def _axes(x: Tensor, size: int) -> Tensor:
    """The axes of ℝˢ at each point, ``(size, B, size)``."""
    return torch.eye(size, dtype=x.dtype, device=x.device).unsqueeze(1).expand(-1, len(x), -1)


def _stack(vectors: Tensor) -> Tensor:
    """Vectors ``(k, B, *event)`` as the columns of one matrix for each sample, ``(B, d, k)``."""
    return vectors.flatten(2).permute(1, 2, 0)


def _matrix(manifold: Manifold, method: str, x: Tensor) -> Tensor:
    """A field of linear maps (``"flat"``, ``"sharp"`` or ``"proju"``) as matrices ``(B, d, d)``."""
    d = event_size(x)
    return _stack(getattr(manifold, method)(x, _axes(x, d).reshape(d, *x.shape)))


def _within_standard_errors(samples: Tensor, expected: Tensor, what: str) -> None:
    """Mean of independent samples ``(N, ...)`` within 4 standard errors; rounding is forgiven."""
    error = (samples.mean(0) - expected).abs()
    bound = 4 * samples.std(0) / len(samples) ** 0.5 + 1e-9
    worst = (error / bound).max().item()
    assert worst <= 1, f"{what}: {4 * worst:.1f} standard errors from what it estimates"


class ManifoldContract:
    """Executes every law in the docstring of :class:`georeg.Manifold`. For pytest, but without importing it.

    Attributes:
        manifold: an instance of yours.
        events: shapes of one sample; every law runs on each.
        dtypes: the dtypes in which the laws must hold, to ``tolerance``.
        fixed_norm: the probe methods whose ``probe="sphere"`` has the exact squared norm dim in a G-orthonormal
            frame. Leave one out where a manifold colours probes without a factorisation, and say so.

    Override :meth:`points` where projx of Gaussian noise is no good sample of your manifold.

    Example:
        A whole test file is such a class; pytest runs its tests, and each can be called:

        >>> import georeg
        >>> from georeg.testing import ManifoldContract
        >>> class TestMine(ManifoldContract):
        ...     manifold = georeg.CustomMetric(lambda x: 1 + x.flatten(1) ** 2)
        >>> TestMine().test_sharp_inverts_flat()
    """

    manifold: Manifold
    events: ClassVar[tuple[tuple[int, ...], ...]] = ((4,), (2, 2))
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float64, torch.float32)
    tolerance: ClassVar[dict[torch.dtype, float]] = {torch.float64: 1e-8, torch.float32: 2e-3}
    fixed_norm: ClassVar[tuple[str, ...]] = _PROBES

    def points(self, event: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Three points ``(3, *event)`` on the manifold."""
        noise = torch.randn(3, *event, generator=self.generator(), dtype=torch.float64).to(dtype)
        return self.manifold.projx(noise)

    @staticmethod
    def generator(seed: int = 0) -> torch.Generator:
        """A seeded generator."""
        return torch.Generator().manual_seed(seed)

    def cases(self, dtypes: tuple[torch.dtype, ...] | None = None) -> Iterator[Tensor]:
        """Points for each event shape and dtype."""
        for dtype in dtypes or self.dtypes:
            for event in self.events:
                yield self.points(event, dtype)

    def close(self, actual: Tensor, expected: Tensor) -> None:
        """Equality to the tolerance of the dtype, relative to the largest entry."""
        assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
        assert actual.dtype == expected.dtype, f"dtype {actual.dtype}, expected {expected.dtype}"
        largest = expected.detach().abs().max().item() if expected.numel() else 1.0
        torch.testing.assert_close(actual, expected, rtol=0, atol=self.tolerance[actual.dtype] * max(1.0, largest))

    def test_tangent_projection(self) -> None:
        """``proju`` is a symmetric idempotent map of rank ``dim``."""
        for x in self.cases():
            projector = _matrix(self.manifold, "proju", x)
            self.close(projector.mT, projector)
            self.close(projector @ projector, projector)
            trace = projector.diagonal(dim1=1, dim2=2).sum(1)
            self.close(trace, torch.full_like(trace, self.manifold.dim(x)))

    def test_sharp_inverts_flat(self) -> None:
        """On tangent vectors and on their covectors."""
        for x in self.cases():
            metric, cometric, projector = (_matrix(self.manifold, name, x) for name in ("flat", "sharp", "proju"))
            self.close(cometric @ metric, projector)
            self.close(metric @ cometric, projector)

    def test_metric_is_symmetric_and_positive(self) -> None:
        """So is the cometric."""
        for x in self.cases():
            for name in ("flat", "sharp"):
                matrix = _matrix(self.manifold, name, x)
                self.close(matrix.mT, matrix)
                eigenvalues = torch.linalg.eigvalsh(matrix.double())
                rank = (eigenvalues > 1e-5 * eigenvalues[:, -1:]).sum(1)
                assert (rank == self.manifold.dim(x)).all(), f"{name} is not positive on the tangent space"

    def test_point_projection(self) -> None:
        """``projx`` is idempotent, lands where ``check_point`` accepts, and leaves points of the manifold alone."""
        for x in self.cases():
            projected = self.manifold.projx(x + 0.1)
            self.manifold.check_point(projected)
            self.manifold.check_point(x)
            self.close(self.manifold.projx(projected), projected)
            self.close(self.manifold.projx(x), x)

    def test_inner_and_norm(self) -> None:
        """⟨a, b⟩ = aᵀGb; the norm's gradient at the zero vector is 0."""
        for x in self.cases():
            a, b = torch.randn(2, *x.shape, generator=self.generator(), dtype=torch.float64).to(x.dtype)
            lowered = self.manifold.flat(x, b)
            self.close(self.manifold.inner(x, a, b), (a * lowered).flatten(1).sum(1))
            self.close(self.manifold.norm(x, b).square(), (b * lowered).flatten(1).sum(1))
            zero = torch.zeros_like(x, requires_grad=True)
            (gradient,) = torch.autograd.grad(self.manifold.norm(x, zero).sum(), zero)
            assert (gradient == 0).all(), "the gradient of norm(x, 0) is not 0"

    def test_frames(self) -> None:
        """``lift`` maps onto a G-orthonormal basis, ``colift`` onto its dual; components invert both."""
        for x in self.cases():
            manifold, axes = self.manifold, _axes(x, self.manifold.dim(x))
            metric, cometric = _matrix(manifold, "flat", x), _matrix(manifold, "sharp", x)
            frame, coframe = manifold.lift(x, axes), manifold.colift(x, axes)
            eye = axes.permute(1, 2, 0).contiguous()
            q, c = _stack(frame), _stack(coframe)
            self.close(q.mT @ metric @ q, eye)
            self.close(c.mT @ cometric @ c, eye)
            self.close(c.mT @ q, eye)
            self.close(q @ q.mT, cometric)
            self.close(c @ c.mT, metric)
            w = torch.randn(axes.shape, generator=self.generator(), dtype=torch.float64).to(x.dtype)
            self.close(manifold.components(x, manifold.lift(x, w)), w)
            self.close(manifold.cocomponents(x, manifold.colift(x, w)), w)

    def test_probe_moments(self) -> None:
        """In a G-orthonormal frame every probe has mean 0 and covariance I."""
        for x in self.cases((torch.float64,)):
            for name, whiten in zip(_PROBES, (self.manifold.components, self.manifold.cocomponents), strict=True):
                for probe in PROBES:
                    draw = getattr(self.manifold, name)
                    w = whiten(x, draw(x, 3000, self.generator(1), probe=probe))
                    what = f"{name}, probe={probe!r}"
                    _within_standard_errors(w, torch.zeros_like(w[0]), f"mean of {what}")
                    outer = (w.unsqueeze(-1) * w.unsqueeze(-2)).mean(1)
                    _within_standard_errors(outer, torch.eye(w.shape[-1], dtype=w.dtype), f"covariance of {what}")

    def test_fixed_norm_probes(self) -> None:
        """‖w‖² = dim for ``probe="sphere"``: fixed before it is coloured, on the tangent space."""
        for x in self.cases():
            for name in self.fixed_norm:
                whiten = self.manifold.components if name == "random_tangent" else self.manifold.cocomponents
                squared = whiten(x, getattr(self.manifold, name)(x, 5, self.generator(), probe="sphere")).square().sum(-1)
                self.close(squared, torch.full_like(squared, self.manifold.dim(x)))

    def test_probes_are_determined_by_the_generator(self) -> None:
        """A generator for each sample makes the draw independent of how the batch is split."""
        for x in self.cases():
            for name in _PROBES:
                for probe in PROBES:
                    draw = getattr(self.manifold, name)
                    first, again, other = (draw(x, 2, self.generator(seed), probe=probe) for seed in (3, 3, 4))
                    assert torch.equal(first, again), f"{name} is not deterministic under a generator"
                    assert not torch.equal(first, other), f"{name} ignores its generator"
                    whole = draw(x, 2, [self.generator(i) for i in range(len(x))], probe=probe)
                    parts = [draw(x[i : i + 1], 2, [self.generator(i)], probe=probe) for i in range(len(x))]
                    self.close(whole, torch.cat(parts, dim=1))

    def test_gradient_through_the_metric_of_cotangents(self) -> None:
        """E ∇ₓ uᵀAu = ∇ₓ Tr(A G(x)) along the manifold: the probe keeps its graph through x."""
        for x in self.cases((torch.float64,)):
            d, n = event_size(x), 2000
            weight = torch.randn(d, d, generator=self.generator(), dtype=x.dtype)
            weight = weight + weight.mT
            point = x[:1].clone().requires_grad_()
            trace = (weight * _matrix(self.manifold, "flat", point)).sum()
            truth = self._tangent_gradient(trace, point)
            copies = x[:1].repeat(n, *[1] * (x.ndim - 1)).requires_grad_()
            u = self.manifold.random_cotangent(copies, 1, self.generator()).reshape(n, d)
            samples = self._tangent_gradient(((u @ weight) * u).sum(), copies)
            _within_standard_errors(samples, truth[0], "gradient through random_cotangent")

    def _tangent_gradient(self, scalar: Tensor, x: Tensor) -> Tensor:
        if not scalar.requires_grad:  # a flat metric
            return torch.zeros_like(x)
        gradient = torch.autograd.grad(scalar, x, allow_unused=True, materialize_grads=True)[0]
        return self.manifold.proju(x.detach(), gradient)

    def test_leading_probe_axes(self) -> None:
        """Vectors ``(k, l, B, *event)`` give what each gives alone, also at a shared :meth:`~Manifold.at`."""
        for x in self.cases():
            v = torch.randn(2, 3, *x.shape, generator=self.generator(), dtype=torch.float64).to(x.dtype)
            at = self.manifold.at(x)
            for name in _VECTOR_FIELDS:
                method = getattr(self.manifold, name)
                together = method(x, v)
                self.close(together, torch.stack([torch.stack([method(x, p) for p in row]) for row in v]))
                if name != "proju":
                    self.close(getattr(at, name)(v), together)
            assert self.manifold.inner(x, v, v).shape == (2, 3, len(x))

    def test_vectors_wider_than_the_points(self) -> None:
        """Moments are kept in float64, so float64 vectors at float32 points stay float64."""
        for x in self.cases((torch.float32,)):
            v = torch.randn(2, *x.shape, generator=self.generator(), dtype=torch.float64)
            for name in _VECTOR_FIELDS:
                wide, narrow = (getattr(self.manifold, name)(x, p) for p in (v, v.to(x.dtype)))
                assert wide.dtype == torch.float64
                self.close(wide.to(x.dtype), narrow)

    def test_samples_do_not_mix(self) -> None:
        """A batch gives what its samples give alone."""
        for x in self.cases():
            for name in _VECTOR_FIELDS:
                alone = [_matrix(self.manifold, name, x[i : i + 1]) for i in range(len(x))]
                self.close(_matrix(self.manifold, name, x), torch.cat(alone))

    def test_empty_batch(self) -> None:
        """B = 0 gives empty results of the right shape."""
        for x in self.cases():
            empty, v = x[:0], x.new_zeros(2, 0, *x.shape[1:])
            self.manifold.check_point(empty)
            assert self.manifold.dim(empty) == self.manifold.dim(x)
            for name in _VECTOR_FIELDS:
                assert getattr(self.manifold, name)(empty, v).shape == v.shape
            for name in _PROBES:
                assert getattr(self.manifold, name)(empty, 2, self.generator()).shape == v.shape
            w = x.new_zeros(2, 0, self.manifold.dim(x))
            for name, back in (("lift", "components"), ("colift", "cocomponents")):
                lifted = getattr(self.manifold, name)(empty, w)
                assert lifted.shape == v.shape
                assert getattr(self.manifold, back)(empty, lifted).shape == w.shape

    def test_overrides_agree_with_the_derived_defaults(self) -> None:
        """What is overridden for speed equals what the five abstract methods imply."""
        derived = _Derived(self.manifold)
        for x in self.cases():
            axes = _axes(x, self.manifold.dim(x))
            v = torch.randn(2, *x.shape, generator=self.generator(), dtype=torch.float64).to(x.dtype)
            self.close(self.manifold.inner(x, v, v), derived.inner(x, v, v))
            self.close(self.manifold.norm(x, v), derived.norm(x, v))
            for name in ("lift", "colift"):
                ours, theirs = (_stack(getattr(m, name)(x, axes)) for m in (self.manifold, derived))
                self.close(ours @ ours.mT, theirs @ theirs.mT)
            for name, whiten in (("random_tangent", "components"), ("random_cotangent", "cocomponents")):
                arguments: tuple[Any, ...] = (x, getattr(derived, name)(x, 5, self.generator(), probe="sphere"))
                squared = getattr(self.manifold, whiten)(*arguments).square().sum(-1)
                self.close(squared, torch.full_like(squared, self.manifold.dim(x)))

    def test_gradients_are_finite_at_zero_vectors(self) -> None:
        """Through the point and through the vector."""
        for x in self.cases():
            for name in _VECTOR_FIELDS:
                point, vector = x.clone().requires_grad_(), torch.zeros_like(x).requires_grad_()
                out = getattr(self.manifold, name)(point, vector).sum()
                gradients = torch.autograd.grad(out, (point, vector), allow_unused=True, materialize_grads=True)
                assert all(torch.isfinite(g).all() for g in gradients), f"{name} has no finite gradient at v = 0"
