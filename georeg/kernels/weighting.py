"""The two halves of attention as operators of their own, for heads whose L × S matrices are worth keeping.

    S = s q kᵀ        y = softmax(S) v

Attention as one operator computes S, and what the derivatives make of it, anew in each of its passes: 42 matrix products
for an isometry step. As two operators it keeps S, its tangent and its cotangent, and takes 31. What flows into S from all
derivatives is added up before it is multiplied by k and q; the matrix P = softmax(S) is made from S again, which is no
product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from georeg.kernels.blocks import (
    Blocks,
    across_,
    bent_,
    beside,
    centred_,
    down_,
    filled,
    laid_out,
    mask_future_,
    put_,
    row_means,
    softmax_,
    spread,
    tall,
)
from georeg.kernels.rules import Maybe, Operator


@dataclass(frozen=True)
class Scores(Operator):
    """S = s q kᵀ, of q ``(N, L, D)`` and k ``(N, S, D)``: bilinear, so that B(c, v) = ⟨c, s(q̇ kᵀ + q k̇ᵀ)⟩."""

    scale: float

    points: ClassVar[int] = 2
    parameters: ClassVar[int] = 0

    def plain(self, q: Tensor, k: Tensor) -> Tensor:
        return (q * self.scale) @ k.mT

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        """s a b, into memory made for it: autocast, which is not for a product within an operator, leaves that alone."""
        return put_(a.new_empty(len(a), a.shape[1], b.shape[2]), a, b, self.scale)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self._product(q, k.mT), ()

    def pullback(
        self, c: Tensor, primals: Sequence[Any], stats: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Maybe, ...]:
        q, k = primals
        dq, dk = laid_out(q.shape[1], q), tall(k.shape[1], k)
        return across_(dq, c, k, self.scale), down_(dk, 0, c, q, self.scale)

    def pushforward(self, tangents: Sequence[Maybe], primals: Sequence[Any], stats: Sequence[Tensor]) -> Tensor:
        (q, k), (tq, tk) = primals, filled(tangents, primals)
        return self._product(beside(tq, q), beside(k, tk).mT)

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
        """∂q = s c k̇ and ∂k = s cᵀq̇: the pullback at the tangents."""
        pushed = self.pushforward(tangents, primals, stats) if push else None
        moving = filled(tangents, primals)
        if not pull:
            return pushed, (None, None), self.pullback(c, moving, stats, wanted)
        # Side by side, so that c is read once.
        sides = [beside(*pair) for pair in zip(primals, moving, strict=True)]
        toward_q, toward_k = (t.chunk(2, -1) for t in self.pullback(c, sides, stats, wanted) if t is not None)
        return pushed, (toward_q[0], toward_k[0]), (toward_q[1], toward_k[1])


@dataclass(frozen=True)
class Weighting(Operator):
    """y = P v with P = softmax(S) by rows, of S ``(N, L, S)`` and v ``(N, S, M)``.

        pushforward   T = Ṗ v + P v̇      with Ṗ = P (Ṡ − m)
        pullback      V = (A, Pᵀ c)       with A = P (E − D)

    The letters are those of :mod:`georeg.kernels.blocks`.
    """

    causal: bool
    block_bytes: int

    points: ClassVar[int] = 2
    parameters: ClassVar[int] = 0
    is_large: ClassVar[bool] = True

    def plain(self, scores: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(mask_future_(scores.clone(), 0) if self.causal else scores, -1) @ v

    def _walk(
        self, scores: Tensor, rows: Sequence[Maybe], keys: Sequence[Maybe], count: int
    ) -> Iterator[tuple[int, Tensor, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]]:
        """Each block's first row, P, parts by rows and by keys, and ``count`` matrices to work in."""
        steps = self._blocks(scores).walk((scores, *rows), keys, scores, count + 1)
        for start, (scores_, *by_rows), by_keys, (p, *work) in steps:
            yield start, self._weights(p, start, scores_), by_rows, by_keys, work

    def _weights(self, p: Tensor, start: int, scores: Tensor) -> Tensor:
        """P of a block, into memory for it."""
        if self.causal:
            return softmax_(mask_future_(p.copy_(scores), start))
        return softmax_(scores, p)

    def _blocks(self, scores: Tensor) -> Blocks:
        return Blocks.of(self.block_bytes, scores, scores.shape[2])

    def forward(self, scores: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y = laid_out(scores.shape[1], v)
        for _, p, (y_,), (v_,), _ in self._walk(scores, (y,), (v,), 0):
            across_(y_, p, v_)
        return y, (y.clone(),)

    def pullback(
        self, c: Tensor, primals: Sequence[Any], stats: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Maybe, ...]:
        scores, v = primals
        toward, dv = scores.new_empty(scores.shape), tall(v.shape[1], v)
        rows = (c, -row_means(c, stats[0]), toward)
        for start, p, (c_, means_, toward_), (v_, dv_), _ in self._walk(scores, rows, (v, dv), 0):
            down_(dv_, start, p, c_)
            spread(c_, v_, means_, toward_).mul_(p)
        return toward, dv

    def pushforward(self, tangents: Sequence[Maybe], primals: Sequence[Any], stats: Sequence[Tensor]) -> Tensor:
        scores, v = primals
        moving, tv = filled(tangents, primals)
        y = laid_out(scores.shape[1], v)
        for _, p, (moving_, y_), (v_, tv_), (moved,) in self._walk(scores, (moving, y), (v, tv), 1):
            centred_(torch.mul(moving_, p, out=moved), p)
            across_(across_(y_, p, tv_), moved, v_, beta=1)
        return y

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
        """∂B/∂S = Z, and ∂B/∂v = Ṗᵀc."""
        scores, v = primals
        moving, tv = filled(tangents, primals)
        gs, gv = scores.new_empty(scores.shape), tall(v.shape[1], v)
        pushed = laid_out(scores.shape[1], v) if push else None
        ps, pv = (scores.new_empty(scores.shape), tall(v.shape[1], v)) if pull else (None, None)
        rows, keys = (moving, c, -row_means(c, stats[0]), gs, pushed, ps), (v, tv, tv.mT, gv, pv)
        for start, p, by_rows, (v_, tv_, tvt_, gv_, pv_), (a, moved, z) in self._walk(scores, rows, keys, 3):
            moving_, c_, means_, gs_, pushed_, ps_ = by_rows
            spread(c_, v_, means_, a)
            centred_(torch.mul(moving_, p, out=moved), p)
            if push:
                across_(across_(pushed_, p, tv_), moved, v_, beta=1)
            if pull:
                torch.mul(a, p, out=ps_)
                down_(pv_, start, p, c_)
            down_(gv_, start, moved, c_)
            bent_(torch.bmm(c_, tvt_, out=z), moved, a, p, gs_)
        return pushed, (ps, pv), (gs, gv)
