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
    bent_,
    blocks,
    centred_,
    filled,
    mask_future_,
    moved_,
    pulled,
    scores_tangent,
    transposed,
    weighted_,
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

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.plain(q, k), ()

    def pullback(
        self, c: Tensor, primals: Sequence[Any], stats: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Maybe, ...]:
        q, k = primals
        return torch.bmm(c, k).mul_(self.scale), transposed(c, q).mul_(self.scale)

    def pushforward(self, tangents: Sequence[Maybe], primals: Sequence[Any], stats: Sequence[Tensor]) -> Tensor:
        (q, k), (tq, tk) = primals, filled(tangents, primals)
        return scores_tangent(q, k, tq, tk, self.scale)

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
        sides = [torch.cat(pair, -1) for pair in zip(primals, moving, strict=True)]
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

    def _masked(self, scores: Tensor, rows: slice) -> Tensor:
        return mask_future_(scores, rows.start) if self.causal else scores

    def _blocks(
        self, scores: Tensor, log_sums: Tensor, count: int
    ) -> Iterator[tuple[slice, slice, Tensor, Sequence[Tensor]]]:
        """Heads, rows, P and ``count`` matrices more."""
        for n, i, (p, *work) in blocks(self.block_bytes, scores, scores.shape[1], scores.shape[2], count + 1):
            yield n, i, self._masked(torch.sub(scores[n, i], log_sums[n, i], out=p), i).exp_(), work

    def forward(self, scores: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, log_sums = v.new_empty(*scores.shape[:2], v.shape[2]), v.new_empty(*scores.shape[:2], 1)
        for n, i, (p,) in blocks(self.block_bytes, scores, scores.shape[1], scores.shape[2], 1):
            y[n, i], log_sums[n, i] = weighted_(self._masked(p.copy_(scores[n, i]), i), v[n])
        return y, (log_sums,)

    def pullback(
        self, c: Tensor, primals: Sequence[Any], stats: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Maybe, ...]:
        scores, v = primals
        toward, dv = torch.empty_like(scores), torch.zeros_like(v)
        for n, i, p, _ in self._blocks(scores, stats[0], 0):
            dv[n] += transposed(p, c[n, i])
            pulled(c[n, i], v[n], p, toward[n, i])
        return toward, dv

    def pushforward(self, tangents: Sequence[Maybe], primals: Sequence[Any], stats: Sequence[Tensor]) -> Tensor:
        scores, v = primals
        moving, tv = filled(tangents, primals)
        y = v.new_empty(*scores.shape[:2], v.shape[2])
        for n, i, p, (moved,) in self._blocks(scores, stats[0], 1):
            centred_(torch.mul(moving[n, i], p, out=moved), p)
            y[n, i] = torch.baddbmm(torch.bmm(p, tv[n]), moved, v[n])
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
        gs, gv = torch.empty_like(scores), torch.zeros_like(v)
        pushed = torch.empty_like(c) if push else None
        ps, pv = (torch.empty_like(scores), torch.zeros_like(v)) if pull else (None, None)
        for n, i, p, (tangent, a, work) in self._blocks(scores, stats[0], 3):
            a = pulled(c[n, i], v[n], p, a if ps is None else ps[n, i])
            moved = moved_(tangent.copy_(moving[n, i]), p, work)
            if pushed is not None:
                pushed[n, i] = torch.baddbmm(torch.bmm(p, tv[n]), moved, v[n])
            if pv is not None:
                pv[n] += transposed(p, c[n, i])
            gv[n] += transposed(moved, c[n, i])
            bent_(tangent, a, p, c[n, i], tv[n], work, gs[n, i])
        return pushed, (ps, pv), (gs, gv)
