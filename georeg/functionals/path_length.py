"""Path-length regularisation, StyleGAN2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Unpack

import torch
from torch import Tensor

from georeg.estimators import Hutchinson
from georeg.estimators.base import unit
from georeg.linearize import Linearization
from georeg.manifolds.base import dot
from georeg.random import Generator
from georeg.registry import register
from georeg.regularizer import LossOutput, Options, Regularizer
from georeg.spectral import metrics_at


@dataclass(frozen=True)
class PathLengths:
    """Lengths ℓ = ‖Jᵀu‖ for random covectors u, averaged over the probes at each sample.

    Attributes:
        length: mean of ℓ ``(B,)``.
        length_sq: mean of ℓ² ``(B,)``, an estimate of τ₁ = Tr R.
        rank: d = min(dim M, dim N).
        num_products: Jacobian products spent.
    """

    length: Tensor
    length_sq: Tensor
    rank: int
    num_products: int

    def detach(self) -> PathLengths:
        """The same numbers without their graph."""
        return replace(self, length=self.length.detach(), length_sq=self.length_sq.detach())


@register("functional", "path_length")
class PathLengthLoss(Regularizer[PathLengths]):
    """Make steps of one size in M have one size in N: F = E(‖Jᵀu‖ − a)², a = E‖Jᵀu‖, u ~ (0, H).

    With the running means that it needs (``momentum``, default 0.99) a is the running mean of the lengths,
    and the gradient is StyleGAN2's, E[2(‖Jᵀu‖ − a)∇‖Jᵀu‖]; the value is the running E[ℓ²] − E[ℓ]². One
    product per probe, where losses of τ₂ take two.

    Minimum: 0 where ‖Jᵀu‖ is one number for all x and u, that is, with fixed-norm probes (the default), JJᵀ
    = c²·I, dim N ≤ dim M. A length of Gaussian probes varies even then: the least is c²·Var[χ_d], which is
    close to c²/2 for large d, and so it is with any probe where dim N > dim M. Constant maps have 0.

    Invariant to: isometries of either manifold. F(c·f) = c²·F(f).

    Args:
        every: lazy regularisation: in training only each ``every``-th call (of the module, or of
            ``of_graph``) is computed, and counts ``every`` times; the others return a zero and do not run f.
        **options: see :class:`Regularizer`. ``momentum`` (default 0.99) is the decay of the running means, None
            takes a from the batch alone. ``estimator`` must be a :class:`Hutchinson`, for its number and
            distribution of probes; ``distribution="gaussian"`` is StyleGAN2's choice (which divides
            u by √(height·width) of the image as well).

    Raises:
        ValueError: another estimator; probes on the domain side; ``every`` below 1.

    Example:
        >>> import torch, georeg
        >>> loss = georeg.PathLengthLoss()
        >>> abs(loss(lambda x: 3 * x, torch.randn(8, 4)).loss.item()) < 1e-6
        True

    References:
        Karras et al. 2020, Analyzing and improving the image quality of StyleGAN, section 3.2.
    """

    num_statistics = 2
    alone = "the variance over the probes of that sample alone"

    def __init__(self, *, every: int = 1, **options: Unpack[Options]) -> None:
        options.setdefault("momentum", 0.99)
        super().__init__(**options)
        if every < 1:
            raise ValueError(f"every: got {every}, expected a number of calls, 1 for each")
        if not isinstance(self.estimator, Hutchinson) or self.estimator.side == "domain":
            raise ValueError(
                f"estimator: got {self.estimator}, expected georeg.Hutchinson with its probes on the codomain, since "
                "path lengths are ‖Jᵀu‖"
            )
        self.every, self.calls = every, 0

    def forward(
        self,
        f: Callable[..., Tensor],
        x: Tensor,
        groups: Tensor | None = None,
        *,
        generator: Generator = None,
        context: tuple[Tensor, ...] = (),
    ) -> LossOutput[PathLengths]:
        if self._rests():
            return self._nothing(x)
        return self._weighted(super().forward(f, x, groups, generator=generator, context=context))

    def of_graph(
        self, x: Tensor, y: Tensor, groups: Tensor | None = None, *, generator: Generator = None
    ) -> LossOutput[PathLengths]:
        if self._rests():
            return self._nothing(x)
        return self._weighted(super().of_graph(x, y, groups, generator=generator))

    def measure(self, lin: Linearization, generator: Generator = None) -> PathLengths:
        assert isinstance(self.estimator, Hutchinson)
        domain, codomain = metrics_at(lin, self.domain, self.codomain)
        before = lin.num_vjps
        u = codomain.random_cotangent(self.estimator.num_probes, generator, probe=self.estimator.distribution)
        g, scale = unit(lin.x, lin.vjp(u))
        squared = dot(lin.x, g, domain.sharp(g)).to(scale.dtype)
        # A double where: the square root has an infinite slope at 0.
        length = scale * torch.where(squared > 0, torch.where(squared > 0, squared, 1).sqrt(), squared)
        rank = min(domain.dim, codomain.dim)
        return PathLengths(length.mean(0), length.square().mean(0), rank, lin.num_vjps - before)

    def statistics(self, moments: PathLengths) -> Tensor:
        return torch.stack([moments.length, moments.length_sq], dim=-1)

    def value(self, means: Tensor, rank: int) -> Tensor:
        length, length_sq = means.unbind(-1)
        return length_sq - length.square()

    def _rests(self) -> bool:
        if not self.training or self.every == 1:
            return False
        if self._collected is not None or self._given is not None:
            raise ValueError(
                f"every: got {self.every}, expected 1 within georeg.accumulate: its calls are one step; "
                "run it at every k-th step instead, with k times the weight"
            )
        self.calls += 1
        return (self.calls - 1) % self.every != 0

    def _weighted(self, out: LossOutput[PathLengths]) -> LossOutput[PathLengths]:
        return replace(out, loss=out.loss * self.every) if self.training else out

    def _nothing(self, x: Tensor) -> LossOutput[PathLengths]:
        """The output of a call on no samples, without running anything."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        zero, none = torch.zeros((), dtype=dtype, device=x.device, requires_grad=True), x.new_zeros(0)
        return LossOutput(zero, PathLengths(none, none, 0, 0), none.sum(), self)
