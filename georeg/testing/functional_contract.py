"""The laws of a loss, executed: inherit the suite to test a loss of your own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from georeg.accumulate import accumulate
from georeg.estimators import Exact
from georeg.linearize import Map
from georeg.manifolds import CustomMetric
from georeg.moments import SpectralMoments
from georeg.regularizer import Options, Regularizer, SpectralRegularizer
from georeg.testing.gallery import CHANGES, GALLERY, M, N, Network, normal, points
from georeg.testing.oracles import dense_jacobian, dense_moments


def _gradients(loss: Tensor, f: nn.Module) -> list[Tensor]:
    """Of each parameter, zeros where it has none."""
    parameters = list(f.parameters())
    return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True))


def _seeds(rows: range | list[int]) -> list[torch.Generator]:
    """One generator for each sample: probes do not depend on how a batch is split."""
    return [torch.Generator().manual_seed(50 + i) for i in rows]


class FunctionalContract:
    """Executes the laws of a loss, a :class:`georeg.Regularizer`. For pytest, but without importing it.

    Each test is a law: the gradient is the slope of the value and, for a :class:`georeg.SpectralRegularizer`,
    both equal dense autograd; groups, micro-batches, ranks and running means pool what they should; an empty
    batch, a constant map and NaN give an exact zero, a finite value or a ValueError, never a silent NaN.

    Attributes:
        functional: your class, or a function that makes a loss from the options of :class:`georeg.Regularizer`.
        exact: options that make it exact, or as exact as it can be: without running means.
        degree: p where F(c·f) = c^p·F(f), 0 for a loss that ignores scale; None where there is no such law.
        minimisers: which maps of ``georeg.testing.gallery.GALLERY`` reach the minimum; no other may.
        invariant: which of ``georeg.testing.gallery.CHANGES`` leave F as it is.

    Override :meth:`minimum` and :meth:`dense` to have these checked as well.

    Example:
        A whole test file is such a class; pytest runs its tests, and each can be called:

        >>> import georeg
        >>> from georeg.testing import FunctionalContract
        >>> class TestStrict(FunctionalContract):
        ...     functional = georeg.StrictIsometryLoss
        ...     minimisers = ("isometry",)
        ...     def minimum(self, d):
        ...         return 0.0
        >>> TestStrict().test_minimum()
        >>> TestStrict.degree = 0
        >>> TestStrict().test_degree()
        Traceback (most recent call last):
        AssertionError: ...
    """

    functional: Callable[..., Regularizer[Any]]
    exact: ClassVar[Options] = {"estimator": Exact(), "momentum": None}
    degree: ClassVar[float | None] = None
    minimisers: ClassVar[tuple[str, ...]] = ()
    invariant: ClassVar[tuple[str, ...]] = ("isometry before", "isometry behind", "coordinates")

    def minimum(self, d: int) -> float | None:
        """The least value for d = min(dim M, dim N); None (default) declares none."""
        return None

    def dense(self, eigenvalues: Tensor, d: int) -> Tensor | None:
        """F of one group from the d eigenvalues of R, ``(B, d)`` with graph; None (default) declares none."""
        return None

    def build(self, **options: Any) -> Regularizer[Any]:
        """Your loss, exact unless the options say otherwise."""
        make: Any = inspect.getattr_static(self, "functional")
        return make(**{**self.exact, **options})

    def loss(self, f: Map, x: Tensor, groups: Tensor | None = None, **options: Any) -> Tensor:
        """The value of your loss, with graph, from probes that are the same at each call."""
        return self.build(**options)(f, x, groups, generator=_seeds(range(len(x)))).loss

    def test_gradient_is_the_slope_of_the_value(self) -> None:
        """Both finite; each parameter gets the gradient that a central difference shows, so nothing is detached."""
        f, x, step = Network(), points(), 1e-5
        loss = self.loss(f, x)
        assert loss.shape == (), f"shape {tuple(loss.shape)}, expected a scalar"
        assert torch.isfinite(loss), f"the loss is {loss.item()}"
        for (name, parameter), gradient in zip(f.named_parameters(), _gradients(loss, f), strict=True):
            direction, values = normal(*parameter.shape, seed=9), []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.add_(sign * step * direction)
                    values.append(self.loss(f, x))
                    parameter.sub_(sign * step * direction)
            slope, ours = ((values[0] - values[1]) / (2 * step)).item(), (gradient * direction).sum().item()
            allowed = 1e-6 * max(abs(slope), abs(loss.item()))
            assert abs(ours - slope) <= allowed, f"the gradient along {name} is {ours:.6g}, its slope {slope:.6g}"
            assert gradient.abs().max() > 0, f"no gradient reaches {name}"

    def test_gradient_reaches_the_points(self) -> None:
        """Where x carries a graph, unless ``detach_x``."""
        for detach_x in (False, True):
            x = points().requires_grad_()
            moved = 1.0 * x
            loss = self.loss(Network(), moved, detach_x=detach_x)
            (gradient,) = torch.autograd.grad(loss, x, allow_unused=True, materialize_grads=True)
            assert (gradient.abs().max() == 0) == detach_x, f"detach_x={detach_x}: the gradient of x is {gradient}"

    def test_moments_are_used_as_the_dense_ones(self) -> None:
        """``statistics`` and ``value`` of dense τ₁ and τ₂, pooled by label between two metrics: value and gradient."""
        loss = self.build(domain=CustomMetric(lambda p: 1 + p**2), codomain=CustomMetric(torch.exp))
        if not isinstance(loss, SpectralRegularizer):
            return
        f, x, labels = Network(), points(), torch.arange(12) * 2 % 3
        ours = loss(f, x, labels).loss
        trace, trace_sq = dense_moments(
            f, x, lambda p: torch.diag_embed(1 / (1 + p**2)), lambda y: torch.diag_embed(y.exp())
        )
        theirs = ours.new_zeros(())
        for g in range(3):
            inside = labels == g
            statistics = loss.statistics(SpectralMoments(trace[inside], trace_sq[inside], M))
            theirs = theirs + loss.value(statistics.mean(0), M) * len(statistics) / len(x)
        self.close(ours, theirs, f)

    def test_value_equals_the_formula(self) -> None:
        """That of :meth:`dense`, with its gradient, into fewer and into more dimensions."""
        for m in (M, 6):
            f, x, d = Network(m=m), points(), min(N, m)
            jacobian = dense_jacobian(f, x)
            gram = jacobian @ jacobian.mT if m < N else jacobian.mT @ jacobian
            theirs = self.dense(torch.linalg.eigvalsh(gram), d)
            if theirs is not None:
                self.close(self.loss(f, x), theirs, f)

    def test_groups(self) -> None:
        """One group is no group, two give Σ N_g/N·F_g, and the names of labels do not matter."""
        f, x = Network(), points()
        self.close(self.loss(f, x, torch.zeros(12, dtype=torch.long)), self.loss(f, x), f)
        labels = (torch.arange(12) >= 5).long()
        parts = (5 * self.loss_of_rows(f, x, range(5)) + 7 * self.loss_of_rows(f, x, range(5, 12))) / 12
        for named in (labels, 1 - labels, 2 * labels):
            self.close(self.loss(f, x, named), parts, f)

    def loss_of_rows(self, f: Map, x: Tensor, rows: range) -> Tensor:
        """The loss of these samples with the probes that they have in the whole batch."""
        return self.build()(f, x[rows.start : rows.stop], generator=_seeds(rows)).loss

    def test_micro_batches_add_up(self) -> None:
        """Through :func:`georeg.accumulate`, in value and gradient, of any sizes, with groups and without."""
        f, x = Network(), points()
        for sizes in ([4, 4, 4], [7, 4, 1], [9, 0, 3]):
            for num_groups in (None, 3):
                inputs = (x, torch.arange(12) * 2 % 3) if num_groups else (x,)
                whole = self.loss(f, *inputs)
                loss = self.build(scope="global", num_groups=num_groups)
                rows = torch.arange(12).split(sizes)
                probes = [_seeds(r.tolist()) for r in rows]
                calls = [partial(loss, f, *(i[r] for i in inputs), generator=p) for r, p in zip(rows, probes, strict=True)]
                total = whole.new_zeros(())
                for out in accumulate(loss, calls, generators=[g for part in probes for g in part]):
                    assert out.count == 12, f"count {out.count}, expected all 12 samples"
                    total = total + out.loss
                self.close(total, whole, f)

    def test_empty_batch(self) -> None:
        """Exactly 0, with a graph, whatever ``degenerate`` says."""
        for degenerate in ("raise", "zero"):
            f = Network()
            loss = self.loss(f, points(0), degenerate=degenerate)
            assert loss.requires_grad, "the loss of no samples has no graph: backward() would fail on such a step"
            assert loss.item() == 0, f"the loss of no samples is {loss.item()}"
            assert all((g == 0).all() for g in _gradients(loss, f)), "no samples give a gradient"

    def test_a_seed_decides_the_loss(self) -> None:
        """With its own default estimator."""
        make: Any = inspect.getattr_static(self, "functional")
        first, again = (make()(Network(), points(), generator=torch.Generator().manual_seed(5)).loss for _ in range(2))
        assert torch.equal(first, again), "the loss is not deterministic under a generator"

    def test_degree(self) -> None:
        """F(c·f) = c^degree·F(f)."""
        f, x, c = Network(), points(), 1.7
        if self.degree is not None:
            self.close(self.loss(lambda p: c * f(p), x), c**self.degree * self.loss(f, x), f)

    def test_invariances(self) -> None:
        """Each declared change of the map, its points or its metrics leaves the loss as it is."""
        for name in self.invariant:
            before, after = CHANGES[name](self.loss)
            off = abs(after.item() - before.item())
            assert off <= 1e-9 * abs(before.item()) + 1e-12, f"{name}: moves the loss from {before:.10g} to {after:.10g}"

    def test_minimum(self) -> None:
        """No map lies below; those declared reach it, and of the gallery no other does."""
        for name, maps in GALLERY.items():
            for f in maps:
                x = points()
                floor = self.minimum(min(N, f(x).shape[1]))
                if floor is None:
                    return
                try:
                    excess = self.loss(f, x).item() - floor
                except ValueError:  # undefined there, so it is no minimiser
                    excess = float("inf")
                if name in self.minimisers:
                    assert abs(excess) <= 1e-10, f"{name}: {excess:.3g} above the minimum, which it should reach"
                else:
                    assert excess > 1e-6, f"{name}: {excess:.3g} above the minimum, which it should not reach"

    def test_degenerate_maps(self) -> None:
        """A constant map: finite with ``"zero"``, also in gradient; with ``"raise"`` refused if F is undefined there."""
        f = Network()
        torch.nn.init.zeros_(f.last)
        loss = self.loss(f, points(), degenerate="zero")
        finite = torch.isfinite(loss) and all(torch.isfinite(g).all() for g in _gradients(loss, f))
        assert finite, "degenerate='zero': a constant map gives no finite value and gradient"
        refused = self.refusal(f, points())
        undefined = self.build().undefined
        assert bool(refused) == bool(undefined), f"a constant map: refused with {refused!r}, undefined says {undefined!r}"

    def test_nan_is_seen(self) -> None:
        """It is refused, or shows in the value where ``degenerate="zero"`` switches the check off."""
        x = points()
        x[1, 1] = torch.nan
        assert "finite" in self.refusal(torch.exp, x), "NaN in x is not refused"
        assert self.loss(torch.exp, x, degenerate="zero").isnan(), "NaN in x does not show in the loss"

    def refusal(self, f: Map, x: Tensor) -> str:
        """The text of the ValueError that the loss raises, empty if none."""
        try:
            self.loss(f, x)
        except ValueError as error:
            return str(error)
        return ""

    def test_state_survives_a_round_trip(self) -> None:
        """Running means are saved and restored, in training as well; in eval mode they stay as they are."""
        f, x, labels = Network(), points(), torch.arange(12) % 3
        first, second = (self.build(momentum=0.9, num_groups=3) for _ in range(2))
        self.run(first, f, x, labels)
        second.load_state_dict(first.state_dict())
        for training in (False, True):
            kept = {k: v.clone() for k, v in first.state_dict().items()}
            ours, theirs = (self.run(loss.train(training), f, 2 * x, labels) for loss in (first, second))
            assert torch.equal(ours, theirs), "a loss restored by load_state_dict goes on differently"
            unchanged = all(torch.equal(v, kept[k]) for k, v in first.state_dict().items())
            assert training or unchanged, "a call in eval mode changes the state"

    def run(self, loss: Regularizer[Any], f: Map, x: Tensor, labels: Tensor) -> Tensor:
        """The value of this instance."""
        return loss(f, x, labels, generator=_seeds(range(len(x)))).loss.detach()

    def test_dtypes(self) -> None:
        """float32 gives what float64 gives, half precision a float32 loss, each at any scale of the map."""
        random = not torch.equal(*(self.build()(Network(), points(), generator=_seeds([s])[0]).loss for s in (0, 1)))
        for dtype in (torch.float32, torch.bfloat16):
            for scale in (1e-6, 1.0, 1e6):
                f = Network()
                with torch.no_grad():
                    f.last.mul_(scale)
                reference = self.loss(f, points())
                loss = self.loss(f.to(dtype), points().to(dtype))
                assert loss.dtype == torch.float32, f"a {dtype} map has a loss in {loss.dtype}, expected float32"
                finite = torch.isfinite(loss) and all(torch.isfinite(g).all() for g in _gradients(loss, f))
                assert finite, f"{dtype} at scale {scale:g} gives no finite value and gradient"
                if dtype == torch.float32 and not random:  # else other probes are drawn
                    torch.testing.assert_close(loss.double(), reference, rtol=2e-4, atol=1e-30)

    def test_meta_device(self) -> None:
        """With ``degenerate="zero"`` no value is read, so the loss can be planned without data."""
        f, x = Network().to("meta"), points().to("meta")
        loss = self.build(degenerate="zero")(f, x).loss
        loss.backward()
        assert loss.is_meta, f"the loss of a meta tensor is on {loss.device}"

    def close(self, ours: Tensor, theirs: Tensor, f: nn.Module) -> None:
        """Equality in value and in the gradient of f's parameters, to 1e-10 of their size."""
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-10, atol=1e-13)
        pairs = [torch.cat([g.flatten() for g in _gradients(loss, f)]) for loss in (ours, theirs)]
        torch.testing.assert_close(*pairs, rtol=0, atol=1e-10 * max(1.0, pairs[1].abs().max().item()))
