"""What every loss of this library is: per-sample statistics of a map's Jacobian, and a function of their means."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, Literal, TypedDict

import torch
from torch import Tensor, nn

from georeg.estimators import Estimator, Hutchinson, as_estimator
from georeg.jackknife import Estimate, M, jackknife
from georeg.kernels.compiling import as_written
from georeg.linearize import Linearization, Map, linearize, linearize_graph
from georeg.linearize.base import check_points, graph_ready, in_functorch, outside_inference_mode
from georeg.manifolds import Euclidean, Manifold
from georeg.moments import Scope, SpectralMoments
from georeg.pooling import Pooled, RunningMeans, Totals, count_groups
from georeg.random import Generator
from georeg.recompute import Pairs, attach, refuse_in_functorch
from georeg.spectral import moments_at

Degenerate = Literal["raise", "zero"]


class Options(TypedDict, total=False):
    """The options that all losses share, see :class:`Regularizer`."""

    domain: Manifold | None
    codomain: Manifold | None
    estimator: Estimator | str | None
    scope: Scope
    momentum: float | None
    num_groups: int | None
    chunk_size: int | None
    recompute: bool
    detach_x: bool
    project: bool
    degenerate: Degenerate


@dataclass(frozen=True)
class LossOutput(Generic[M]):
    """What a regulariser returns.

    Attributes:
        loss: the scalar F, with graph, in the dtype of x (float32 for half precision).
        moments: what was measured at each sample, by most losses :class:`georeg.SpectralMoments`.
        count: samples that were pooled, a tensor (over all ranks and micro-batches when ``scope="global"``).
        functional: the loss itself, for :meth:`estimate`.

    Example:
        >>> import torch, georeg
        >>> weight = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> out = georeg.IsometryLoss(normalize=True, estimator=georeg.Exact())(lambda x: x * weight, torch.zeros(4, 2))
        >>> out.loss.backward()                                    # 2(1 + 2⁴)/(1 + 2²)²
        >>> round(out.loss.item(), 4), int(out.count), [round(g, 3) for g in weight.grad.tolist()]
        (1.36, 4, [-0.768, 0.384])
    """

    loss: Tensor
    moments: M
    count: Tensor
    functional: Regularizer[M]

    def estimate(self) -> Estimate:
        """F of these samples as one group, jackknife-corrected, with its standard error. Moves data to the host."""
        return jackknife(self.functional, self.moments)


class Regularizer(nn.Module, ABC, Generic[M]):
    """A loss F(m₁, …, m_S) of the pooled means m_k of statistics of a map's Jacobian at each sample.

    A loss of your own is one class: ``num_statistics``, ``statistics`` and ``value`` on a
    :class:`SpectralRegularizer`; pooling, gradients, ranks and running means follow from those.

    Args:
        domain, codomain: manifolds of x and of f(x); default Euclidean.
        estimator: default ``Hutchinson(num_probes=1, distribution="sphere", side="auto")``; a name, such as
            ``"auto"`` or ``"exact"``, takes that estimator with its defaults.
        scope: what expectations are pooled over: ``"batch"``, or ``"global"``, all ranks of
            torch.distributed (every rank must then call the loss at each step) and, through
            :func:`georeg.accumulate`, all micro-batches.
        momentum: decay of running detached means, which make small groups and small batches usable; None
            pools each step by itself.
        num_groups: number of groups that labels may name; needed beside groups with ``momentum`` and
            ``scope="global"``.
        chunk_size: probes per vectorised product; with ``recompute``, the (sample, probe) pairs at a time (default 1).
        recompute: measure a chunk at a time without a graph, and run the map again in the backward pass: the
            peak memory grows with neither the batch nor the number of probes, for the price of the first
            pass; gradients are exact. Chunks of probes take a Hutchinson estimator; others are chunked by samples.
        detach_x: cut x from the graph it carries.
        project: measure projx∘f, for a codomain that f(x) does not lie on.
        degenerate: what a Jacobian at which F is undefined gives: ``"raise"`` (default: a ValueError, also for
            NaN and inf, at the price of one device synchronisation) or ``"zero"``, a zero with zero
            gradient and no check.

    Attributes:
        num_statistics: S.
        undefined: the error's text where F is undefined.
        alone: what the loss turns into in a batch of one sample, for a warning; None if it stays itself.

    Raises:
        TypeError: a manifold that is none (a class instead of an instance), an estimator likewise.
        ValueError: an unknown scope, estimator's name or ``degenerate``; a momentum outside [0, 1).

    Example:
        The options are the same for every loss:

        >>> import torch, georeg
        >>> loss = georeg.StrictIsometryLoss(domain=georeg.Sphere(), momentum=0.9, num_groups=2)
        >>> out = loss(torch.nn.Linear(3, 5), torch.randn(6, 3), torch.tensor([0, 0, 0, 0, 1, 1]))
        >>> loss.running.weight.tolist()                           # samples of each group that its means remember
        [4.0, 2.0]
    """

    num_statistics: ClassVar[int]
    undefined: ClassVar[str] = ""
    alone: ClassVar[str | None] = None

    def __init__(
        self,
        *,
        domain: Manifold | None = None,
        codomain: Manifold | None = None,
        estimator: Estimator | str | None = None,
        scope: Scope = "batch",
        momentum: float | None = None,
        num_groups: int | None = None,
        chunk_size: int | None = None,
        recompute: bool = False,
        detach_x: bool = False,
        project: bool = False,
        degenerate: Degenerate = "raise",
    ) -> None:
        super().__init__()
        for name, manifold in (("domain", domain), ("codomain", codomain)):
            if manifold is not None and not isinstance(manifold, Manifold):
                raise TypeError(
                    f"{name}: got {manifold!r}, expected a georeg manifold such as georeg.Sphere() "
                    "(an instance, not the class)"
                )
        if scope not in ("batch", "global"):
            raise ValueError(f"scope: got {scope!r}, expected 'batch' or 'global'")
        if degenerate not in ("raise", "zero"):
            raise ValueError(f"degenerate: got {degenerate!r}, expected 'raise' or 'zero'")
        self.domain, self.codomain = domain or Euclidean(), codomain or Euclidean()
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size: got {chunk_size}, expected at least 1, or None")
        self.estimator, self.recompute = as_estimator(estimator), recompute
        self.scope, self.num_groups = scope, num_groups
        self.chunk_size, self.detach_x, self.project, self.degenerate = chunk_size, detach_x, project, degenerate
        self.running = None if momentum is None else RunningMeans(num_groups or 1, self.num_statistics, momentum)
        self._collected: list[Totals] | None = None
        self._given: Pooled | None = None

    @abstractmethod
    def measure(self, lin: Linearization, generator: Generator = None) -> M:
        """What the statistics are computed from, at each sample of a linearisation."""

    @abstractmethod
    def statistics(self, moments: M) -> Tensor:
        """Per-sample statistics ``(B, S)``."""

    @abstractmethod
    def value(self, means: Tensor, rank: int) -> Tensor:
        """F of the means ``(..., S)``: ``(...)``. No branch on values; where F is undefined, 0 and not NaN."""

    def defined(self, means: Tensor) -> Tensor:
        """Whether F is defined at means ``(G, S)``: ``(G,)``; everywhere, unless a loss says otherwise."""
        return torch.ones_like(means[..., 0], dtype=torch.bool)

    @as_written
    def forward(
        self,
        f: Callable[..., Tensor],
        x: Tensor,
        groups: Tensor | None = None,
        *,
        generator: Generator = None,
        context: tuple[Tensor, ...] = (),
    ) -> LossOutput[M]:
        """The loss of the map f at points x ``(B, ...)``.

        Args:
            f: the map, called as ``f(x, *context)``; its parameters receive the gradient.
            x: points ``(B, ...)``.
            groups: integer labels ``(B,)``: expectations are pooled within each group, and the loss is
                Σ_g (N_g/N) F_g. Use them where the scale of the Jacobian differs by group.
            generator: seeds the probes; one, or one for each sample.
            context: further arguments of f with a row for each sample, such as timesteps: ``recompute`` runs f on
                parts of the batch.

        Raises:
            ValueError: a degenerate map or non-finite statistics (see ``degenerate``); bad labels.
        """

        def map_at(rows: slice) -> Map:
            at_rows = tuple(t[rows] for t in context)
            return lambda p: self.codomain.projx(f(p, *at_rows)) if self.project else f(p, *at_rows)

        if not callable(f):
            raise TypeError(f"f: got {type(f).__name__}, expected a callable or torch.nn.Module")
        if self.recompute:
            return self._recomputed(map_at, x, groups, generator)
        lin = linearize(map_at(slice(None)), x, chunk_size=self.chunk_size, detach_x=self.detach_x)
        return self.of(lin, groups, generator=generator)

    @as_written
    def of_graph(self, x: Tensor, y: Tensor, groups: Tensor | None = None, *, generator: Generator = None) -> LossOutput[M]:
        """The loss from a forward pass y = f(x) that was already run on a tensor x that requires grad.

        Raises:
            ValueError: as in a call; ``detach_x`` with an x that carries a graph.
        """
        if self.recompute:
            raise ValueError(
                "recompute: got True with a forward pass already run, whose graph is there; call the loss with the map and "
                "its points instead"
            )
        if self.detach_x and x.grad_fn is not None:
            raise ValueError(
                "detach_x: got True with points that carry a graph, which a forward pass already run cannot be cut from; "
                "pass x.detach().requires_grad_() to the map"
            )
        value = self.codomain.projx(y) if self.project else y
        return self.of(linearize_graph(x, value, chunk_size=self.chunk_size), groups, generator=generator)

    def of(self, lin: Linearization, groups: Tensor | None = None, *, generator: Generator = None) -> LossOutput[M]:
        """The loss of a linearisation."""
        num_groups = self._num_groups(groups, len(lin.x))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._collected is None):
            moments = self.measure(lin, generator)
            local = Totals.of(self.statistics(moments), groups, num_groups)
        if self._collected is not None:
            self._collected.append(local)
            return LossOutput(lin.x.new_zeros(()), moments, local.counts.sum(), self)
        pooled = self._given or self.pool(local)
        loss = pooled.surrogate(lambda means: self.value(means, moments.rank), local)
        dtype = torch.promote_types(lin.x.dtype, torch.float32)
        return LossOutput(loss.to(dtype), moments, pooled.totals.counts.sum(), self)

    def _recomputed(
        self, f: Callable[[slice], Map], x: Tensor, groups: Tensor | None, generator: Generator
    ) -> LossOutput[M]:
        """The loss by two passes, see :mod:`georeg.recompute`."""
        refuse_in_functorch()
        check_points(x)
        num_groups = self._num_groups(groups, len(x))
        with outside_inference_mode():
            points = graph_ready(x.detach() if self.detach_x else x)
            pairs = Pairs(f, points.detach(), self._measure_part, self._separate_probes(), self.chunk_size or 1, generator)
            moments, leaves = pairs.first_pass()
            with torch.enable_grad():
                terms = self._terms(moments).detach().requires_grad_()
                local = Totals.of(self._of_terms(terms, moments), groups, num_groups)
                if self._collected is not None:
                    self._collected.append(local.detach())
                    return LossOutput(x.new_zeros(()), moments, local.counts.sum(), self)
                pooled = self._given or self.pool(local)
                loss = pooled.surrogate(lambda means: self.value(means, moments.rank), local)
                (weights,) = torch.autograd.grad(loss, terms)
        value = loss.detach().to(torch.promote_types(x.dtype, torch.float32))
        if torch.is_grad_enabled():
            value = attach(value, pairs, weights, self._terms, points, leaves)
        return LossOutput(value, moments, pooled.totals.counts.sum(), self)

    def _measure_part(self, lin: Linearization, generator: Generator, num_probes: int | None) -> M:
        """Moments by some of the probes; of those that cannot be parted, by all."""
        return self.measure(lin, generator)

    def _separate_probes(self) -> int | None:
        """The number of probes that moments are a mean over, if parts of it can be measured apart."""
        return None

    def _terms(self, moments: M) -> Tensor:
        """What of the moments is a mean over probes and carries the gradient, ``(B, T)``."""
        return self.statistics(moments)

    def _of_terms(self, terms: Tensor, moments: M) -> Tensor:
        """The statistics ``(B, S)`` from the terms."""
        return terms

    def pool(self, local: Totals, share: float = 1.0) -> Pooled:
        """Pool one process's totals over the scope, check them, and take them into the running means."""
        totals = local.all_reduced() if self.scope == "global" else local.detach()
        if self.degenerate == "raise" and not totals.sums.is_meta and not in_functorch():
            self._refuse_degenerate(totals)
        return Pooled(totals.means() if self.running is None else self.running.update(totals), totals, share)

    @property
    def is_collecting(self) -> bool:
        """Whether calls only add up their totals, in the first pass of :func:`georeg.accumulate`."""
        return self._collected is not None

    @property
    def share(self) -> float | None:
        """The part of F's value that each call's loss carries in the second pass of :func:`georeg.accumulate`, else None."""
        return None if self._given is None else self._given.share

    @contextmanager
    def collecting(self) -> Iterator[list[Totals]]:
        """Within it, calls only add their detached totals to the list that is returned; see :func:`georeg.accumulate`."""
        self._collected = []
        try:
            yield self._collected
        finally:
            self._collected = None

    @contextmanager
    def given(self, pooled: Pooled) -> Iterator[None]:
        """Within it, calls differentiate F at these pooled means instead of their own."""
        self._given = pooled
        try:
            yield
        finally:
            self._given = None

    def _num_groups(self, groups: Tensor | None, batch: int) -> int:
        if groups is None:
            if batch == 1 and self.alone and self.running is None and self.scope == "batch":
                warnings.warn(
                    f"x: a batch of one sample without running means pools nothing, so this is {self.alone}; "
                    "use a larger batch or momentum=0.9",
                    stacklevel=6,  # _num_groups, of, forward, and two frames of nn.Module
                )
            return self.num_groups or 1
        needs_number = self.running is not None or self.scope == "global"
        return count_groups(groups, batch, self.num_groups, needs_number=needs_number)

    def _refuse_degenerate(self, totals: Totals) -> None:
        finite = torch.isfinite(totals.sums).all()
        sound = (self.defined(totals.means()) | (totals.counts == 0)).all()
        is_finite, is_sound = torch.stack([finite, sound]).tolist()
        if not is_finite:
            raise ValueError(
                "x: the Jacobian's moments are not finite; x or the map's parameters or output hold NaN or inf "
                "(degenerate='zero' switches this check off)"
            )
        if not is_sound:
            raise ValueError(f"f: {self.undefined}. Pass degenerate='zero' to leave it out with a loss of 0 instead")

    def extra_repr(self) -> str:
        return f"domain={self.domain}, codomain={self.codomain}, estimator={self.estimator}, scope={self.scope!r}"


class SpectralRegularizer(Regularizer[SpectralMoments]):
    """A loss of the spectral moments τ₁ = Tr R and τ₂ = Tr R² of R = G⁻¹JᵀHJ, estimated by any estimator.

    ``statistics`` turns :class:`georeg.SpectralMoments` into ``(B, S)`` and ``value`` means ``(..., S)`` into ``(...)``;
    ``georeg.testing.FunctionalContract`` holds a loss of your own to its laws.

    Example:
        >>> import torch, georeg
        >>> class DensityVariance(georeg.SpectralRegularizer):
        ...     num_statistics = 2
        ...     def statistics(self, moments):
        ...         return torch.stack([moments.trace, moments.trace**2], dim=-1)
        ...     def value(self, means, rank):
        ...         return means[..., 1] - means[..., 0] ** 2      # Var τ₁
        >>> DensityVariance(estimator=georeg.Exact())(torch.square, torch.tensor([[1.0], [2.0]])).loss.item()
        36.0
    """

    def measure(self, lin: Linearization, generator: Generator = None) -> SpectralMoments:
        return moments_at(lin, self.domain, self.codomain, self.estimator, generator)

    def _measure_part(self, lin: Linearization, generator: Generator, num_probes: int | None) -> SpectralMoments:
        estimator = self.estimator
        if num_probes is not None and isinstance(estimator, Hutchinson):
            estimator = Hutchinson(num_probes, estimator.distribution, estimator.side)
        return moments_at(lin, self.domain, self.codomain, estimator, generator)

    def _separate_probes(self) -> int | None:
        return self.estimator.num_probes if type(self.estimator) is Hutchinson else None

    def _terms(self, moments: SpectralMoments) -> Tensor:
        return torch.stack([moments.trace, moments.trace_sq], dim=-1)

    def _of_terms(self, terms: Tensor, moments: SpectralMoments) -> Tensor:
        return self.statistics(replace(moments, trace=terms[:, 0], trace_sq=terms[:, 1]))
