"""Spectral moments of R = G⁻¹JᵀHJ, and how they are pooled over a batch, its groups and all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

Scope = Literal["batch", "global"]


@dataclass(frozen=True)
class SpectralMoments:
    """τ₁ = Tr R and τ₂ = Tr R² for each sample, R = G⁻¹JᵀHJ.

    Attributes:
        trace: τ₁ ``(B,)``, float64 (float32 where the device has no float64), with graph.
        trace_sq: τ₂ ``(B,)``, likewise.
        rank: d = min(dim M, dim N), the largest rank R can have.
        trace_stderr: standard error of ``trace`` ``(B,)`` over the probes; None from one probe, zeros
            when the trace is exact.
        trace_sq_stderr: likewise for ``trace_sq``.
        num_products: Jacobian products (J or Jᵀ times one vector for the whole batch) that were spent.
    """

    trace: Tensor
    trace_sq: Tensor
    rank: int
    trace_stderr: Tensor | None = None
    trace_sq_stderr: Tensor | None = None
    num_products: int = 0

    def detach(self) -> SpectralMoments:
        """The same numbers without their graph."""
        return SpectralMoments(
            self.trace.detach(),
            self.trace_sq.detach(),
            self.rank,
            self.trace_stderr,
            self.trace_sq_stderr,
            self.num_products,
        )


@dataclass(frozen=True)
class Pooled:
    """Means of S statistics in each of G groups.

    Attributes:
        means: ``(G, S)``. Their *value* is the pooled (and, with running means, the running) mean; their
            *gradient* is that of this process's samples, scaled so that the average over ranks, which
            DDP takes, is the gradient of the pooled mean.
        counts: samples of this step in each group, over the scope, ``(G,)``.
    """

    means: Tensor
    counts: Tensor

    def combine(self, per_group: Tensor) -> Tensor:
        """Σ_g (N_g/N) F_g, an exact 0 with a graph when there are no samples at all."""
        weights = self.counts / self.counts.sum().clamp_min(1)
        return (weights * torch.where(self.counts > 0, per_group, 0)).sum()


class RunningMeans(nn.Module):
    """Running means of detached statistics per group: Σ ρ^age·statistic / Σ ρ^age.

    Weighted by sample counts, so that a group seen with few samples counts for few. They are buffers:
    saved with the module's state and restored on resume, and they stay float64 when the model is cast
    to half precision (τ₂ reaches 1e17). A step that is not finite shows in the value it returns, and is
    not kept.

    Args:
        num_groups: number of groups G.
        num_statistics: number of statistics S.
        momentum: ρ in [0, 1), the decay of a group's past at each step in which the group is seen.
    """

    numerator: Tensor
    weight: Tensor

    def __init__(self, num_groups: int, num_statistics: int, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: got {momentum}, expected a decay in [0, 1), such as 0.9, or None for none")
        self.momentum = momentum
        self.register_buffer("numerator", torch.zeros(num_groups, num_statistics, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros(num_groups, dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RunningMeans:
        def move(buffer: Tensor) -> Tensor:
            moved = fn(buffer)
            return moved if moved.dtype == buffer.dtype else buffer.to(moved.device)

        super()._apply(move, recurse)
        return self

    @torch.no_grad()
    def update(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Take in one step's sums ``(G, S)`` and counts ``(G,)`` (in training mode) and return the means."""
        sums, counts = sums.to(self.numerator), counts.to(self.weight)
        decay = self.momentum ** (counts > 0).to(self.weight)
        numerator = self.numerator * decay.unsqueeze(-1) + sums
        weight = self.weight * decay + counts
        if self.training:
            sound = torch.isfinite(sums).all()
            self.numerator.copy_(torch.where(sound, numerator, self.numerator))
            self.weight.copy_(torch.where(sound, weight, self.weight))
        return numerator / torch.where(weight > 0, weight, 1).unsqueeze(-1)


def pool(
    statistics: Tensor,
    groups: Tensor | None = None,
    *,
    num_groups: int = 1,
    scope: Scope = "batch",
    running: RunningMeans | None = None,
) -> Pooled:
    """Pool per-sample statistics ``(B, S)`` into group means with the right gradient.

    A functional F of pooled means has ∇F = Σ_k ∂F/∂m_k ∇m_k. The value of every m_k is pooled over the
    scope without a graph; its gradient is the local (W/N_g)·∇Σ_local, which averages over W ranks to the
    gradient of the global mean, also with unequal counts (local means averaged by DDP are wrong).

    Args:
        statistics: ``(B, S)``, B may be 0 (every rank must call, samples or not).
        groups: labels in [0, num_groups) ``(B,)``, or None for one group.
        num_groups: number of groups G.
        scope: ``"batch"``, this process's samples; ``"global"``, those of all ranks.
        running: running means that replace the step's own means as the value.
    """
    labels = (
        torch.zeros(len(statistics), dtype=torch.long, device=statistics.device)
        if groups is None
        else groups.to(statistics.device)
    )
    local = statistics.new_zeros(num_groups, statistics.shape[1]).index_add(0, labels, statistics)
    ones = statistics.new_ones(len(statistics)).detach()
    counts = statistics.new_zeros(num_groups).index_add(0, labels, ones)
    sums, world = local.detach(), 1
    if scope == "global" and dist.is_available() and dist.is_initialized():
        together = torch.cat([sums, counts.unsqueeze(-1)], dim=-1)
        dist.all_reduce(together)
        sums, counts, world = together[:, :-1], together[:, -1], dist.get_world_size()
    mine = local * (world / counts.clamp_min(1)).unsqueeze(-1)
    value = sums / counts.clamp_min(1).unsqueeze(-1) if running is None else running.update(sums, counts)
    return Pooled(value.to(mine) + (mine - mine.detach()), counts)
