"""Scaled dot-product attention with first- and second-order rules, in blocks that never hold the whole L × S matrix.

    S = s q kᵀ,  P = softmax(S) by rows,  y = P v

For tangents (q̇, k̇, v̇) and a cotangent c, with E = c vᵀ, Ṡ = s(q̇ kᵀ + q k̇ᵀ), and the row sums D = Σ P E, m = Σ P Ṡ:

    pushforward   T = Ṗ v + P v̇            with Ṗ = P (Ṡ − m)
    pullback      V = (s A k, s Aᵀ q, Pᵀ c)  with A = P (E − D)

The row sums need no pass over the matrix: D = ⟨c, P v⟩ and m = s(⟨q̇, P k⟩ + ⟨q, P k̇⟩). Only q, k and v are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from georeg.kernels.mode import autocast
from georeg.kernels.rules import Maybe, Operator

BLOCK_BYTES = {"cpu": 2**20, "cuda": 2**26}
"""Size of a block of the L × S matrices: what fits into a cache, or fills a GPU."""


@dataclass(frozen=True)
class _Attention(Operator):
    """q ``(N, L, D)``, k ``(N, S, D)``, v ``(N, S, M)``: N heads of all samples."""

    scale: float
    causal: bool
    block_bytes: int

    points: ClassVar[int] = 3
    parameters: ClassVar[int] = 0

    def plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q * self.scale) @ k.transpose(-1, -2)
        if self.causal:
            scores = scores.masked_fill(_future(q.shape[-2], k.shape[-2], 0, q.device), -torch.inf)
        return torch.softmax(scores, -1) @ v

    def _blocks(self, q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
        """Heads and rows that go together: several heads, or some rows of one."""
        size, rows = q.shape[:2]
        per_row = max(k.shape[1] * q.element_size(), 1)
        budget = max(self.block_bytes // per_row, 1)
        heads, length = max(budget // max(rows, 1), 1), min(budget, rows)
        for n in range(0, size, heads):
            for i in range(0, rows, max(length, 1)):
                yield slice(n, n + heads), slice(i, i + length)

    def _probabilities(self, q: Tensor, k: Tensor, first: int) -> Tensor:
        """P of some rows of some heads, of which the first row is number ``first``."""
        scores = torch.bmm(q, k.mT).mul_(self.scale)
        if self.causal:
            scores.masked_fill_(_future(q.shape[1], k.shape[1], first, q.device), -torch.inf)
        return torch.softmax(scores, -1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y = q.new_empty(*q.shape[:2], v.shape[2])
        for n, i in self._blocks(q, k):
            y[n, i] = torch.bmm(self._probabilities(q[n, i], k[n], i.start), v[n])
        return y, ()

    def pullback(
        self, c: Tensor, primals: Sequence[Any], stats: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Maybe, ...]:
        q, k, v = primals
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for n, i in self._blocks(q, k):
            p = self._probabilities(q[n, i], k[n], i.start)
            dv[n] += torch.bmm(p.mT, c[n, i])
            a = torch._softmax_backward_data(torch.bmm(c[n, i], v[n].mT), p, -1, p.dtype)
            dq[n, i] = torch.bmm(a, k[n]).mul_(self.scale)
            dk[n].add_(torch.bmm(a.mT, q[n, i]), alpha=self.scale)
        return dq, dk, dv

    def pushforward(self, tangents: Sequence[Maybe], primals: Sequence[Any], stats: Sequence[Tensor]) -> Tensor:
        q, k, v = primals
        dq, dk, dv = _filled(tangents, primals)
        y = torch.empty_like(q[..., :1]).expand(*q.shape[:2], v.shape[2]).contiguous()
        for n, i in self._blocks(q, k):
            p = self._probabilities(q[n, i], k[n], i.start)
            moved = self._moved(q[n, i], k[n], dq[n, i], dk[n])
            y[n, i] = torch.bmm(torch._softmax_backward_data(moved, p, -1, p.dtype), v[n]) + torch.bmm(p, dv[n])
        return y

    def _moved(self, q: Tensor, k: Tensor, dq: Tensor, dk: Tensor, shift: Maybe = None) -> Tensor:
        """Ṡ, with ``shift`` added to each row, by one matrix product."""
        left, right = torch.cat([dq, q], -1), torch.cat([k, dk], -1).mT
        if shift is None:
            return torch.bmm(left, right).mul_(self.scale)
        return torch.baddbmm(shift, left, right, alpha=self.scale)

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
        """B = ⟨c, Ṗ v + P v̇⟩ = Σ P (E − D)(Ṡ − m) + Σ P F with F = c v̇ᵀ (D m drops out, rows of Ṗ sum to 0).

        Its derivative by S is Z = R − P Σ R, rows, with R = A (Ṡ − m) + P F. Through Ṡ it is A. So

            ∂q = s(Z k + A k̇)        ∂k = s(Zᵀq + Aᵀq̇)        ∂v = Ṗᵀc

        and Σ R = s(⟨q̇, A k⟩ + ⟨q, A k̇⟩) + ⟨c, P v̇⟩, as rows of A sum to 0.
        """
        q, k, v = primals
        tq, tk, tv = _filled(tangents, primals)
        gq, gk, gv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        pushed = torch.empty_like(c) if push else None
        pq, pk, pv = (torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)) if pull else (None, None, None)
        s = self.scale
        for n, i in self._blocks(q, k):
            q_, k_, v_, c_, tq_, tk_, tv_ = q[n, i], k[n], v[n], c[n, i], tq[n, i], tk[n], tv[n]
            p = self._probabilities(q_, k_, i.start)
            D = _dot(c_, torch.bmm(p, v_))
            m = s * (_dot(tq_, torch.bmm(p, k_)) + _dot(q_, torch.bmm(p, tk_)))
            a = torch.baddbmm(-D, c_, v_.mT).mul_(p)
            centred = self._moved(q_, k_, tq_, tk_, -m)
            a_k, a_tk, p_tv = torch.bmm(a, k_), torch.bmm(a, tk_), torch.bmm(p, tv_)
            moved = centred * p
            if pushed is not None:
                pushed[n, i] = torch.baddbmm(p_tv, moved, v_)
            gv[n] += torch.bmm(moved.mT, c_)
            total = s * (_dot(tq_, a_k) + _dot(q_, a_tk)) + _dot(c_, p_tv)
            z = centred.mul_(a).addcmul_(p, torch.baddbmm(-total, c_, tv_.mT))
            gq[n, i] = torch.baddbmm(a_tk, z, k_).mul_(s)
            gk[n].add_(torch.baddbmm(torch.bmm(a.mT, tq_), z.mT, q_), alpha=s)
            if pq is not None and pk is not None and pv is not None:
                pq[n, i] = a_k.mul_(s)
                pk[n].add_(torch.bmm(a.mT, q_), alpha=s)
                pv[n] += torch.bmm(p.mT, c_)
        return pushed, (pq, pk, pv), (gq, gk, gv)


def _filled(tangents: Sequence[Maybe], primals: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(p) if t is None else t for t, p in zip(tangents, primals, strict=True)]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row by row, ``(N, L, 1)``."""
    return (a * b).sum(-1, keepdim=True)


def _future(rows: int, columns: int, first: int, device: torch.device) -> Tensor:
    """What a causal row does not see, ``(rows, columns)``."""
    i = torch.arange(first, first + rows, device=device).unsqueeze(1)
    return torch.arange(columns, device=device) > i


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    block_bytes: int | None = None,
) -> Tensor:
    """Scaled dot-product attention, as ``torch.nn.functional.scaled_dot_product_attention``, with derivatives of any order.

    Torch's fused kernels have no second derivative, and its mathematical form keeps several L × S matrices for each
    differentiation. Here q, k and v alone are kept, and the matrices exist a block at a time. With a mask, dropout or
    grouped queries, or without elements, the mathematical form is used.

    Args:
        query, key, value: ``(..., L, D)``, ``(..., S, D)``, ``(..., S, M)``.
        attn_mask, dropout_p, is_causal, scale, enable_gqa: as of torch's own.
        block_bytes: size of a block of an L × S matrix; default 1 MiB on a CPU, 64 MiB on a GPU.

    Raises:
        ValueError: shapes that do not belong together; a block of no bytes.

    Example:
        >>> import torch
        >>> from georeg.kernels.attention import attention
        >>> q, k, v = torch.randn(3, 2, 4, 16, 8)
        >>> torch.allclose(attention(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v), atol=1e-5)
        True

    References:
        Dao et al. 2022, FlashAttention, whose first-order recomputation this extends to second order.
    """
    if block_bytes is not None and block_bytes < 1:
        raise ValueError(f"block_bytes: got {block_bytes}, expected at least 1")
    query, key, value = autocast(query, key, value)
    tensors = (query, key, value)
    is_special = attn_mask is not None or dropout_p or enable_gqa or query.shape[:-2] != key.shape[:-2]
    if is_special or len({t.dtype for t in tensors}) > 1 or not all(t.numel() and t.is_floating_point() for t in tensors):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return torch.nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
    if query.ndim < 2 or key.shape[:-1] != value.shape[:-1] or query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query, key, value: got shapes {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}, expected "
            "(..., L, D), (..., S, D) and (..., S, M)"
        )
    size = BLOCK_BYTES.get(query.device.type, BLOCK_BYTES["cuda"]) if block_bytes is None else block_bytes
    operator = _Attention(query.shape[-1] ** -0.5 if scale is None else scale, is_causal, size)
    # Probabilities of half precision are taken in float32, as torch's own kernels do.
    wide = torch.promote_types(query.dtype, torch.float32)
    y = operator(*[t.to(wide).reshape(-1, *t.shape[-2:]) for t in tensors])
    return y.reshape(*query.shape[:-1], value.shape[-1]).to(query.dtype)
