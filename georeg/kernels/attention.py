"""Scaled dot-product attention with first- and second-order rules, in blocks that never hold the whole L × S matrix.

    S = s q kᵀ,  P = softmax(S) by rows,  y = P v

For tangents (q̇, k̇, v̇) and a cotangent c, with E = c vᵀ, Ṡ = s(q̇ kᵀ + q k̇ᵀ), and the row sums D = Σ P E, m = Σ P Ṡ:

    pushforward   T = Ṗ v + P v̇            with Ṗ = P (Ṡ − m)
    pullback      V = (s A k, s Aᵀ q, Pᵀ c)  with A = P (E − D)

Only q, k, v and the logarithm of each row's sum of exponentials are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from georeg.kernels.mode import autocast
from georeg.kernels.rules import Maybe, Operator

BLOCK_BYTES = {"cpu": 2**19, "cuda": 2**26}
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

    def _blocks(self, q: Tensor, k: Tensor, count: int) -> Iterator[tuple[slice, slice, Tensor]]:
        """Heads and rows that go together, several heads or some rows of one, with ``count`` L × S matrices to work in.

        The matrices are the same for all blocks: memory of this size costs more to obtain than to compute with.
        """
        size, rows = q.shape[:2]
        budget = max(self.block_bytes // max(k.shape[1] * q.element_size(), 1), 1)
        heads, length = min(max(budget // rows, 1), size), min(budget, rows)
        matrices = q.new_empty(count, heads, length, k.shape[1])
        for n in range(0, size, heads):
            for i in range(0, rows, length):
                yield slice(n, n + heads), slice(i, i + length), matrices[:, : size - n, : rows - i]

    def _scores(self, q: Tensor, k: Tensor, first: int, shift: Maybe, out: Tensor) -> Tensor:
        """S + shift of some rows of some heads, of which the first row is number ``first``."""
        if shift is None:
            torch.bmm(q * self.scale, k.mT, out=out)
        else:
            torch.baddbmm(shift, q, k.mT, alpha=self.scale, out=out)
        return out.masked_fill_(_future(q.shape[1], k.shape[1], first, q.device), -torch.inf) if self.causal else out

    def _probabilities(self, q: Tensor, k: Tensor, first: int, log_sums: Tensor, out: Tensor) -> Tensor:
        return self._scores(q, k, first, -log_sums, out).exp_()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, log_sums = q.new_empty(*q.shape[:2], v.shape[2]), q.new_empty(*q.shape[:2], 1)
        for n, i, (out,) in self._blocks(q, k, 1):
            scores = self._scores(q[n, i], k[n], i.start, None, out)
            largest = scores.amax(-1, keepdim=True)
            sums = scores.sub_(largest).exp_().sum(-1, keepdim=True)
            y[n, i] = torch.bmm(scores, v[n]) / sums
            log_sums[n, i] = largest + sums.log()
        return y, (log_sums,)

    def pullback(
        self, c: Tensor, primals: Sequence[Any], stats: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Maybe, ...]:
        (q, k, v), (log_sums,), s = primals, stats, self.scale
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for n, i, (p, a) in self._blocks(q, k, 2):
            self._probabilities(q[n, i], k[n], i.start, log_sums[n, i], p)
            dv[n] += _transposed(p, c[n, i])
            _centred(torch.bmm(c[n, i], v[n].mT, out=a).mul_(p), p)
            dq[n, i] = torch.bmm(a, k[n]).mul_(s)
            dk[n].add_(_transposed(a, q[n, i]), alpha=s)
        return dq, dk, dv

    def pushforward(self, tangents: Sequence[Maybe], primals: Sequence[Any], stats: Sequence[Tensor]) -> Tensor:
        (q, k, v), (log_sums,) = primals, stats
        tq, tk, tv = _filled(tangents, primals)
        y = q.new_empty(*q.shape[:2], v.shape[2])
        for n, i, (p, moved) in self._blocks(q, k, 2):
            self._probabilities(q[n, i], k[n], i.start, log_sums[n, i], p)
            _centred(self._moved(q[n, i], k[n], tq[n, i], tk[n], moved).mul_(p), p)
            y[n, i] = torch.baddbmm(torch.bmm(p, tv[n]), moved, v[n])
        return y

    def _moved(self, q: Tensor, k: Tensor, tq: Tensor, tk: Tensor, out: Tensor) -> Tensor:
        """Ṡ by one matrix product."""
        return torch.bmm(torch.cat([tq, q], -1).mul_(self.scale), torch.cat([k, tk], -1).mT, out=out)

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
        """
        (q, k, v), (log_sums,), s = primals, stats, self.scale
        tq, tk, tv = _filled(tangents, primals)
        gq, gk, gv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        pushed = torch.empty_like(c) if push else None
        pq, pk, pv = (torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)) if pull else (None, None, None)
        for n, i, (p, a, centred, other) in self._blocks(q, k, 4):
            q_, k_, v_, c_, tq_, tk_, tv_ = q[n, i], k[n], v[n], c[n, i], tq[n, i], tk[n], tv[n]
            self._probabilities(q_, k_, i.start, log_sums[n, i], p)
            _centred(torch.bmm(c_, v_.mT, out=a).mul_(p), p)
            self._moved(q_, k_, tq_, tk_, centred)
            mean = torch.mul(centred, p, out=other).sum(-1, keepdim=True)
            moved = torch.mul(centred.sub_(mean), p, out=other)
            if pushed is not None:
                pushed[n, i] = torch.baddbmm(torch.bmm(p, tv_), moved, v_)
            gv[n] += _transposed(moved, c_)
            z = _centred(centred.mul_(a).addcmul_(p, torch.bmm(c_, tv_.mT, out=other)), p)
            gq[n, i] = torch.baddbmm(torch.bmm(a, tk_), z, k_).mul_(s)
            gk[n].add_(_transposed(a, tq_) + _transposed(z, q_), alpha=s)
            if pq is not None and pk is not None and pv is not None:
                pq[n, i] = torch.bmm(a, k_).mul_(s)
                pk[n].add_(_transposed(a, q_), alpha=s)
                pv[n] += _transposed(p, c_)
        return pushed, (pq, pk, pv), (gq, gk, gv)


def _centred(matrix: Tensor, p: Tensor) -> Tensor:
    """In place, matrix − P Σ matrix by rows: sums over what is in the cache cost less than matrix products would."""
    return matrix.addcmul_(p, matrix.sum(-1, keepdim=True), value=-1)


def _transposed(matrix: Tensor, right: Tensor) -> Tensor:
    """matrixᵀ right, in the order in which the large factor is read along its rows."""
    return torch.bmm(right.mT, matrix).mT


def _filled(tangents: Sequence[Maybe], primals: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(p) if t is None else t for t, p in zip(tangents, primals, strict=True)]


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
        block_bytes: size of a block of an L × S matrix; default 512 KiB on a CPU, 64 MiB on a GPU.

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
