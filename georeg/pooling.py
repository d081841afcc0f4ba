"""How per-sample statistics become pooled means with the right gradient: groups, ranks, running means.

A functional F of pooled means has ∇F = Σ_k ∂F/∂m_k ∇m_k. So the *value* of every m_k is pooled without a
graph, and its *gradient* is that of this process's samples, scaled to add up to the gradient of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn


def count_groups(groups: Tensor, batch: int, num_groups: int | None, *, needs_number: bool) -> int:
    """Check labels ``(B,)`` and return the number of groups G, by default one more than the highest label.

    Raises:
        ValueError: labels of another shape or dtype, or outside [0, G); no ``num_groups`` where one is needed.
    """
    if groups.shape != (batch,) or groups.is_floating_point() or groups.dtype == torch.bool:
        raise ValueError(
            f"groups: got shape {tuple(groups.shape)} and dtype {groups.dtype}, expected one integer label for each of "
            f"the {batch} samples"
        )
    if num_groups is None and needs_number:
        raise ValueError(
            "num_groups: got None, expected the number of groups: a batch need not show all of them, and momentum and "
            "scope='global' keep means for each"
        )
    if groups.numel() == 0 or groups.is_meta:
        return num_groups or 1
    highest, lowest = int(groups.max()), int(groups.min())
    if lowest < 0 or (num_groups is not None and highest >= num_groups):
        raise ValueError(f"groups: got labels from {lowest} to {highest}, expected them in [0, {num_groups or highest + 1})")
    return num_groups or highest + 1


@dataclass(frozen=True)
class Totals:
    """Sums of S statistics over the samples of each of G groups.

    Attributes:
        sums: ``(G, S)``.
        counts: samples in each group, ``(G,)``.
        world: number of ranks that were summed over.
    """

    sums: Tensor
    counts: Tensor
    world: int = 1

    @classmethod
    def of(cls, statistics: Tensor, groups: Tensor | None, num_groups: int) -> Totals:
        """Totals, with graph, of statistics ``(B, S)`` by labels ``(B,)``; B may be 0."""
        labels = (
            torch.zeros(len(statistics), dtype=torch.long, device=statistics.device)
            if groups is None
            else groups.to(statistics.device)
        )
        sums = statistics.new_zeros(num_groups, statistics.shape[1]).index_add(0, labels, statistics)
        ones = statistics.detach().new_ones(len(statistics))
        return cls(sums, statistics.new_zeros(num_groups).index_add(0, labels, ones))

    def __add__(self, other: Totals) -> Totals:
        return replace(self, sums=self.sums + other.sums, counts=self.counts + other.counts)

    def detach(self) -> Totals:
        """The same numbers without their graph."""
        return replace(self, sums=self.sums.detach())

    def all_reduced(self) -> Totals:
        """Detached totals over all ranks of torch.distributed; every rank must call, samples or not."""
        if not (dist.is_available() and dist.is_initialized()):
            return self.detach()
        together = torch.cat([self.sums.detach(), self.counts.unsqueeze(-1)], dim=-1)
        dist.all_reduce(together)
        return Totals(together[:, :-1], together[:, -1], dist.get_world_size())

    def means(self) -> Tensor:
        """``(G, S)``, 0 in an empty group."""
        return self.sums / self.counts.clamp_min(1).unsqueeze(-1)


@dataclass(frozen=True)
class Pooled:
    """Pooled means, detached, and what they were pooled over: all that a local surrogate needs.

    Attributes:
        means: the value ``(G, S)`` at which a functional is evaluated: this step's means, or running ones.
        totals: this step's detached totals over the whole scope.
        share: the part of F's value that one surrogate carries; 1 unless there are several micro-batches.
    """

    means: Tensor
    totals: Totals
    share: float = 1.0

    def surrogate(self, functional: Callable[[Tensor], Tensor], local: Totals) -> Tensor:
        """share·Σ_g (N_g/N) F_g in value; in gradient (W/N) Σ_g Σ_local Σ_k ∂F_g/∂m_k ∇s_k.

        Averaged over W ranks (DDP does) and added over micro-batches, that is the gradient of the pooled F,
        also with unequal counts: averaged gradients of local means are not. An exact 0 with a graph without
        any samples.
        """
        counts = self.totals.counts
        mine = local.sums * (self.totals.world / counts.clamp_min(1)).unsqueeze(-1)
        per_group = functional(self.means.to(mine) + (mine - mine.detach()))
        loss = (counts / counts.sum().clamp_min(1) * torch.where(counts > 0, per_group, 0)).sum()
        return loss - (1 - self.share) * loss.detach()


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
    def update(self, totals: Totals) -> Tensor:
        """Take in one step's totals (in training mode) and return the means ``(G, S)``."""
        sums, counts = totals.sums, totals.counts
        if self.numerator.device != sums.device and not sums.is_meta:
            # They follow the samples, as a loss need not be moved along with the network that it regularises.
            self.numerator, self.weight = self.numerator.to(sums), self.weight.to(sums)
        decay = self.momentum ** (counts > 0).to(sums.dtype)
        numerator = self.numerator.to(sums.device) * decay.unsqueeze(-1) + sums
        weight = self.weight.to(sums.device) * decay + counts
        if self.training and not sums.is_meta:
            sound = torch.isfinite(sums).all()
            try:
                self.numerator.copy_(torch.where(sound, numerator, self.numerator))
                self.weight.copy_(torch.where(sound, weight, self.weight))
            except RuntimeError as error:
                if "vmap" not in str(error) and "mutate a captured Tensor" not in str(error):
                    raise
                raise ValueError(
                    "momentum: running means are one state, which calls inside torch.func.vmap and grad cannot update; pass "
                    "momentum=None, or call .eval() on the loss"
                ) from error
        return numerator / torch.where(weight > 0, weight, 1).unsqueeze(-1)
