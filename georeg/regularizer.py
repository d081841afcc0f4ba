"""The regularisers that users add to their loss: nn.Modules around a functional."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from georeg.estimators import Estimator, Hutchinson
from georeg.functionals import Estimate, Functional, Isometry, jackknife
from georeg.linearize import Linearization, Map, linearize, linearize_graph
from georeg.linearize.base import in_functorch
from georeg.manifolds import Euclidean, Manifold
from georeg.moments import RunningMeans, Scope, SpectralMoments, pool
from georeg.random import Generator
from georeg.spectral import moments_at


@dataclass(frozen=True)
class LossOutput:
    """What a regulariser returns.

    Attributes:
        loss: the scalar F, with graph, in the dtype of x (float32 for half precision).
        moments: the samples' spectral moments.
        count: samples that were pooled in this step, a tensor (over all ranks when ``scope="global"``).
        functional: the functional, for :meth:`estimate`.
    """

    loss: Tensor
    moments: SpectralMoments
    count: Tensor
    functional: Functional

    def estimate(self) -> Estimate:
        """F of this batch as one group, jackknife-corrected, with its standard error. Moves data to the host."""
        return jackknife(self.functional, self.moments)


class Regularizer(nn.Module):
    """A functional of pooled spectral moments of a map, as a loss.

    Args:
        functional: the loss as a function of pooled means.
        domain, codomain: manifolds of x and of f(x); default Euclidean.
        estimator: default ``Hutchinson(num_probes=1, distribution="sphere", side="auto")``.
        scope: what expectations are pooled over: ``"batch"``, or ``"global"``, all ranks of
            torch.distributed (every rank must then call the loss at each step).
        momentum: decay of running detached means, which make small groups and small batches usable; None
            pools each step by itself.
        num_groups: number of groups that labels may name; needed beside groups with ``momentum`` and ``scope="global"``.
        chunk_size: probes per vectorised product.
        detach_x: cut x from the graph it carries.
        project: measure projx∘f, for a codomain that f(x) does not lie on.
        degenerate: what a map whose Jacobian vanishes everywhere gives: ``"raise"`` (default: a ValueError,
            also for NaN and inf, at the price of one device synchronisation) or ``"zero"``, a loss of 0 with
            zero gradient and no check.
    """

    def __init__(
        self,
        functional: Functional,
        *,
        domain: Manifold | None = None,
        codomain: Manifold | None = None,
        estimator: Estimator | None = None,
        scope: Scope = "batch",
        momentum: float | None = None,
        num_groups: int | None = None,
        chunk_size: int | None = None,
        detach_x: bool = False,
        project: bool = False,
        degenerate: Literal["raise", "zero"] = "raise",
    ) -> None:
        super().__init__()
        for name, manifold in (("domain", domain), ("codomain", codomain)):
            if manifold is not None and not isinstance(manifold, Manifold):
                raise TypeError(
                    f"{name}: got {manifold!r}, expected a georeg manifold such as georeg.Sphere() "
                    "(an instance, not the class)"
                )
        if estimator is not None and not isinstance(estimator, Estimator):
            raise TypeError(f"estimator: got {estimator!r}, expected an estimator such as georeg.Hutchinson(num_probes=4)")
        if scope not in ("batch", "global"):
            raise ValueError(f"scope: got {scope!r}, expected 'batch' or 'global'")
        if degenerate not in ("raise", "zero"):
            raise ValueError(f"degenerate: got {degenerate!r}, expected 'raise' or 'zero'")
        self.functional = functional
        self.domain, self.codomain = domain or Euclidean(), codomain or Euclidean()
        self.estimator = estimator or Hutchinson()
        self.scope, self.num_groups = scope, num_groups
        self.chunk_size, self.detach_x, self.project, self.degenerate = chunk_size, detach_x, project, degenerate
        self.running = None
        if momentum is not None:
            self.running = RunningMeans(num_groups or 1, functional.num_statistics, momentum)

    def forward(self, f: Map, x: Tensor, groups: Tensor | None = None, *, generator: Generator = None) -> LossOutput:
        """The loss of the map f at points x ``(B, ...)``.

        Args:
            f: the map; its parameters receive the gradient.
            x: points ``(B, ...)``.
            groups: integer labels ``(B,)``: expectations are pooled within each group, and the loss is
                Σ_g (N_g/N) F_g. Use them where the scale of the Jacobian differs by group.
            generator: seeds the probes; one, or one for each sample.

        Raises:
            ValueError: a degenerate map or non-finite moments (see ``degenerate``); bad labels.
        """
        map_ = (lambda p: self.codomain.projx(f(p))) if self.project else f
        lin = linearize(map_, x, chunk_size=self.chunk_size, detach_x=self.detach_x)
        return self.of(lin, groups, generator=generator)

    def of_graph(self, x: Tensor, y: Tensor, groups: Tensor | None = None, *, generator: Generator = None) -> LossOutput:
        """The loss from a forward pass y = f(x) that was already run on a tensor x that requires grad."""
        value = self.codomain.projx(y) if self.project else y
        return self.of(linearize_graph(x, value, chunk_size=self.chunk_size), groups, generator=generator)

    def of(self, lin: Linearization, groups: Tensor | None = None, *, generator: Generator = None) -> LossOutput:
        """The loss of a linearisation."""
        num_groups = self._num_groups(groups, len(lin.x))
        moments = moments_at(lin, self.domain, self.codomain, self.estimator, generator)
        if self.degenerate == "raise" and len(lin.x) and lin.x.device.type != "meta" and not in_functorch():
            self._refuse_degenerate(moments)
        pooled = pool(
            self.functional.statistics(moments),
            groups,
            num_groups=num_groups,
            scope=self.scope,
            running=self.running,
        )
        loss = pooled.combine(self.functional.value(pooled.means, moments.rank))
        dtype = torch.promote_types(lin.x.dtype, torch.float32)
        return LossOutput(loss.to(dtype), moments, pooled.counts.sum(), self.functional)

    def _num_groups(self, groups: Tensor | None, batch: int) -> int:
        if groups is None:
            if batch == 1 and self.running is None and self.scope == "batch":
                warnings.warn(
                    "x: a batch of one sample without running means pools nothing, so this is the conformal loss "
                    "τ₂/τ₁², which lets the scale vary; use a larger batch or momentum=0.9",
                    stacklevel=4,
                )
            return self.num_groups or 1
        if groups.shape != (batch,) or groups.is_floating_point() or groups.dtype == torch.bool:
            raise ValueError(
                f"groups: got shape {tuple(groups.shape)} and dtype {groups.dtype}, expected one integer label for each of "
                f"the {batch} samples"
            )
        if self.num_groups is None and (self.running is not None or self.scope == "global"):
            raise ValueError(
                "num_groups: got None, expected the number of groups: a batch need not show all of them, and momentum and "
                "scope='global' keep means for each"
            )
        if groups.numel() == 0 or groups.device.type == "meta":
            return self.num_groups or 1
        highest, lowest = int(groups.max()), int(groups.min())
        if lowest < 0 or (self.num_groups is not None and highest >= self.num_groups):
            raise ValueError(
                f"groups: got labels from {lowest} to {highest}, expected them in [0, {self.num_groups or highest + 1})"
            )
        return self.num_groups or highest + 1

    def _refuse_degenerate(self, moments: SpectralMoments) -> None:
        trace = moments.trace.detach()
        finite, sound = torch.stack(
            [torch.isfinite(trace).all() & torch.isfinite(moments.trace_sq.detach()).all(), (trace > 0).any()]
        ).tolist()
        if not finite:
            raise ValueError(
                "x: the Jacobian's moments are not finite; x or the map's parameters or output hold NaN or inf "
                "(degenerate='zero' switches this check off)"
            )
        if not sound:
            raise ValueError(
                "f: the Jacobian vanishes at every point (τ₁ = 0), so a scaled isometry is undefined; f may ignore x "
                "or be constant. Pass degenerate='zero' to get a loss of 0 instead"
            )

    def extra_repr(self) -> str:
        return f"domain={self.domain}, codomain={self.codomain}, estimator={self.estimator}, scope={self.scope!r}"


class IsometryLoss(Regularizer):
    """Pull a map towards a scaled isometry: F = E[Tr R²] / E[Tr R]², R = G⁻¹JᵀHJ (Eq. 6).

    Args:
        normalize: multiply by d = min(dim M, dim N), so that 1 is a perfect scaled isometry whatever the
            dimensions; the bare ratio's floor is 1/d, and a weight tuned for one d does nothing at another.
        **options: see :class:`Regularizer`: ``domain, codomain, estimator, scope, momentum, num_groups,
            chunk_size, detach_x, project, degenerate``.

    The gradient from one batch carries a bias of O(1/(B·K)), as any ratio of means does; a batch of one
    without running means is the conformal loss, and warns.

    Example:
        >>> import torch, georeg
        >>> encoder = torch.nn.Linear(8, 2, bias=False)
        >>> torch.nn.init.orthogonal_(encoder.weight) is encoder.weight
        True
        >>> loss = georeg.IsometryLoss(normalize=True)(encoder, torch.randn(16, 8)).loss
        >>> round(loss.item(), 5)
        1.0

    References:
        Hahm et al., Isometric Diffusion, Eq. 6; Lee et al. 2021, Regularized autoencoders for isometric
        representation learning.
    """

    def __init__(
        self,
        *,
        domain: Manifold | None = None,
        codomain: Manifold | None = None,
        estimator: Estimator | None = None,
        normalize: bool = False,
        scope: Scope = "batch",
        momentum: float | None = None,
        num_groups: int | None = None,
        chunk_size: int | None = None,
        detach_x: bool = False,
        project: bool = False,
        degenerate: Literal["raise", "zero"] = "raise",
    ) -> None:
        super().__init__(
            Isometry(normalize),
            domain=domain,
            codomain=codomain,
            estimator=estimator,
            scope=scope,
            momentum=momentum,
            num_groups=num_groups,
            chunk_size=chunk_size,
            detach_x=detach_x,
            project=project,
            degenerate=degenerate,
        )
