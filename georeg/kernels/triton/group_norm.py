"""GroupNorm + SiLU in Triton: two passes over memory for the value, and two for everything that derives from it.

The letters are those of :mod:`georeg.kernels.group_norm`. All its rules follow from sums over the space of each channel,

    Σv, Σv x̂        Σs, Σs x̂, Σs v with s = φ′(z) c        Σa, Σa x̂, Σa v, Σa v x̂, Σa x̂² with a = φ″(z) c,

which one pass over x, c and v takes together. With v̄, m the means of v and v x̂ over the group, p = ρ(v − v̄ − x̂ m) and
k = a w p, what is linear in p is linear in those sums:

    Σ k = wρ(Σav − v̄ Σa − m Σax̂)    Σ k x̂ = wρ(Σavx̂ − v̄ Σax̂ − m Σax̂²)    Σ s p = ρ(Σsv − v̄ Σs − m Σsx̂)

A second pass has T(v), V(c) and ∂B/∂x at once, each from numbers of its channel and group: nine reads and writes of a
tensor like x for the whole second-order rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from georeg.kernels.group_norm import GroupNorm
from georeg.kernels.rules import Maybe
from georeg.kernels.triton import group_norm_programs as programs
from georeg.kernels.triton.support import accumulator, operator, pointer, power_of_two

SUMS = 10
"""Sums of a channel, in the order of `programs.sums`."""
BLOCK = 2048
"""Positions that a program takes; a channel with more of them has several programs."""


def _like_stats(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x), groups), x.new_empty(len(x), groups)


@operator("group_norm_stats(Tensor x, int groups, float eps) -> (Tensor, Tensor)", _like_stats)
def _stats(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    mean, rho = _like_stats(x, groups, eps)
    n = x[0].numel() // groups
    block = min(power_of_two(n), 2 * BLOCK)
    warps = 8 if block > BLOCK else 4
    programs.moments[(len(x) * groups,)](x, mean, rho, n, eps, BLOCK=block, ACC=accumulator(x), num_warps=warps)
    return mean, rho


def _like_values(
    x: Tensor, w: Maybe, b: Maybe, mean: Tensor, rho: Tensor, c: Maybe, v: Maybe, has_silu: bool, want: Sequence[bool]
) -> tuple[Tensor, ...]:
    tensors = tuple(torch.empty_like(x) if wanted else x.new_empty(0) for wanted in want)
    shape = x.shape[:2] if c is not None else (0,)
    return *tensors, x.new_empty(shape), x.new_empty(shape)


@operator(
    "group_norm_values(Tensor x, Tensor? w, Tensor? b, Tensor mean, Tensor rho, Tensor? c, Tensor? v, bool has_silu, "
    "bool[4] want) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _like_values,
)
def _launch(
    x: Tensor, w: Maybe, b: Maybe, mean: Tensor, rho: Tensor, c: Maybe, v: Maybe, has_silu: bool, want: Sequence[bool]
) -> tuple[Tensor, ...]:
    """y, T(v), V(c) and ∂B/∂x as far as ``want``, and each sample's gradients of w and b ``(B, C)``: of B(c, v) where
    ∂B/∂x is wanted, of ⟨c, y⟩ elsewhere."""
    outputs = _like_values(x, w, b, mean, rho, c, v, has_silu, want)
    size, channels = x.shape[:2]
    space, groups, rows = x[0, 0].numel(), mean.shape[1], size * channels
    block = min(power_of_two(space), BLOCK)
    grid = (rows, triton.cdiv(space, block))
    value, push, pull, bend = want
    point = (x, pointer(w, x), pointer(b, x), mean, rho, pointer(c, x), pointer(v, x))
    flags: dict[str, Any] = {"HAS_W": w is not None, "HAS_B": b is not None, "SILU": has_silu, "BLOCK": block}
    flags["num_warps"] = max(1, min(8, block // 256))
    sums = x
    if push or pull or bend:
        parts = x.new_empty(SUMS, rows, grid[1])
        programs.sums[grid](
            *point, parts, space, channels, groups, rows * grid[1], HAS_C=pull or bend, HAS_V=push or bend, **flags
        )  # fmt: skip
        sums = parts if grid[1] == 1 else parts.sum(-1)
    programs.values[grid](
        *point, sums, *(pointer(o, x) for o in outputs), space, channels, groups, rows, VALUE=value, PUSH=push, PULL=pull,
        BEND=bend, WIDTH=power_of_two(channels // groups), **flags,
    )  # fmt: skip
    return outputs


@dataclass(frozen=True)
class TritonGroupNorm(GroupNorm):
    """:class:`georeg.kernels.group_norm.GroupNorm` with its rules in Triton."""

    def forward(self, x: Tensor, w: Maybe, b: Maybe) -> tuple[Tensor, tuple[Tensor, ...]]:
        mean, rho = _stats(x, self.groups, self.eps)
        y, *_ = _launch(x, w, b, mean, rho, None, None, self.has_silu, [True, False, False, False])
        return y, (mean, rho)

    def pullback(
        self, c: Tensor, primals: Sequence[Any], stats: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Maybe, ...]:
        *_, dx, _, dw, db = _launch(
            *primals, *stats, c.contiguous(), None, self.has_silu, [False, False, True, False]
        )  # fmt: skip
        return dx, dw.sum(0) if wanted[1] else None, db.sum(0) if wanted[2] else None

    def pushforward(self, tangents: Sequence[Maybe], primals: Sequence[Any], stats: Sequence[Tensor]) -> Tensor:
        (v,) = tangents
        assert v is not None  # the only point
        return _launch(*primals, *stats, None, v.contiguous(), self.has_silu, [False, True, False, False])[1]

    def second(
        self,
        c: Tensor,
        tangents: Sequence[Maybe],
        primals: Sequence[Any],
        stats: Sequence[Tensor],
        wanted: Sequence[bool],
        *,
        push: bool,
        pull: bool,
    ) -> tuple[Maybe, tuple[Maybe, ...], tuple[Maybe, ...]]:
        (v,) = tangents
        assert v is not None  # the only point
        _, pushed, pulled, dx, dw, db = _launch(
            *primals, *stats, c.contiguous(), v.contiguous(), self.has_silu, [False, push, pull, True]
        )  # fmt: skip
        return (
            pushed if push else None,
            (pulled if pull else None,),
            (dx, dw.sum(0) if wanted[1] else None, db.sum(0) if wanted[2] else None),
        )
