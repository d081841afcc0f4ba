"""Scaled dot-product attention with first- and second-order rules, in blocks that never hold the whole L × S matrix.

    S = s q kᵀ,  P = softmax(S) by rows,  y = P v

For tangents (q̇, k̇, v̇) and a cotangent c, with E = c vᵀ, Ṡ = s(q̇ kᵀ + q k̇ᵀ), and the row sums D = Σ P E, m = Σ P Ṡ:

    pushforward   T = Ṗ v + P v̇            with Ṗ = P (Ṡ − m)
    pullback      V = (s A k, s Aᵀ q, Pᵀ c)  with A = P (E − D)

Of long sequences only q, k, v and y are kept, of shorter ones also P. Where heads are so wide that more matrices are worth
their memory, two operators take this one's place, see :mod:`georeg.kernels.weighting`.
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
    down_,
    filled,
    laid_out,
    mask_future_,
    put_,
    row_means,
    softmax_,
    spread,
    tall,
    weighed_,
)
from georeg.kernels.mode import autocast, in_functorch, is_frugal
from georeg.kernels.rules import Maybe, Operator
from georeg.kernels.triton import is_used
from georeg.kernels.weighting import Scores, Weighting

BLOCK_BYTES = {"cpu": 2**20, "cuda": 2**26}
"""Size of a block of the L × S matrices: what fits into the cache of each of the CPU's threads, or fills a GPU."""

WIDTH = 32
"""Heads of this width are worth keeping S, its tangent and its cotangent for. Computing a number of S again is a sum over
the width, in the cache, while keeping it is moving it to memory and back: of narrower heads P alone is kept, whose
exponentials cost more than that."""

LENGTH = 32
"""So many times as many keys as features are kept matrices for: such a matrix is at most that many times the size of q."""

TRITON_WIDTH = 32
"""The widest heads that Triton takes: at 64 registers are short, and a matrix in memory is faster than one made anew."""


@dataclass(frozen=True)
class Attention(Operator):
    """q ``(N, L, D)``, k ``(N, S, D)``, v ``(N, S, M)``: N heads of all samples."""

    scale: float
    causal: bool
    block_bytes: int

    points: ClassVar[int] = 3
    parameters: ClassVar[int] = 0

    def plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q * self.scale) @ k.mT
        return torch.softmax(mask_future_(scores, 0) if self.causal else scores, -1) @ v

    def _blocks(self, q: Tensor, k: Tensor) -> Blocks:
        return Blocks.of(self.block_bytes, q, k.shape[1])

    def _weights(self, p: Tensor, start: int, q: Tensor, kt: Tensor) -> Tensor:
        """P of a block, into memory for it."""
        put_(p, q, kt, self.scale)
        return softmax_(mask_future_(p, start) if self.causal else p)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y = laid_out(q.shape[1], v)
        for _, p, (y_,), (v_,), _ in self._walk((q, k, v), (), (y,), (v,), 0):
            across_(y_, p, v_)
        return y, (y.clone(),)

    def _room(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For gradients of q, k and v."""
        return laid_out(q.shape[1], q), tall(k.shape[1], k), tall(v.shape[1], v)

    def _walk(
        self, primals: Sequence[Any], stats: Sequence[Tensor], rows: Sequence[Maybe], keys: Sequence[Maybe], count: int
    ) -> Iterator[tuple[int, Tensor, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]]:
        """Each block's first row, P, parts by rows and by keys, and ``count`` matrices to work in."""
        q, k, _ = primals
        steps = self._blocks(q, k).walk((q, *rows), (k.mT, *keys), q, count + 1)
        for start, (q_, *at_rows), (kt_, *at_keys), (p, *work) in steps:
            yield start, self._weights(p, start, q_, kt_), at_rows, at_keys, work

    def pullback(
        self, c: Tensor, primals: Sequence[Any], stats: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Maybe, ...]:
        (q, k, v), y, s = primals, stats[-1], self.scale
        dq, dk, dv = self._room(q, k, v)
        rows, keys = (-row_means(c, y), q, c, dq), (k, v, dk, dv)
        for start, p, (means_, q_, c_, dq_), (k_, v_, dk_, dv_), (a,) in self._walk(primals, stats, rows, keys, 1):
            down_(dv_, start, p, c_)
            spread(c_, v_, means_, a).mul_(p)
            across_(dq_, a, k_, s)
            down_(dk_, start, a, q_, s)
        return dq, dk, dv

    def _moved(self, both_q: Tensor, both_k: Tensor, p: Tensor, out: Tensor) -> Tensor:
        """Ṗ of a block, with Ṡ = s(q̇ kᵀ + q k̇ᵀ) by one matrix product, (q̇, q) by (k, k̇)ᵀ."""
        return weighed_(put_(out, both_q, both_k, self.scale), p)

    def pushforward(self, tangents: Sequence[Maybe], primals: Sequence[Any], stats: Sequence[Tensor]) -> Tensor:
        q, k, v = primals
        tq, tk, tv = filled(tangents, primals)
        y = laid_out(q.shape[1], v)
        rows, keys = (beside(tq, q), y), (beside(k, tk).mT, v, tv)
        for _, p, (qs_, y_), (ks_, v_, tv_), (moved,) in self._walk(primals, stats, rows, keys, 1):
            self._moved(qs_, ks_, p, moved)
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
        """The derivative of B by S is Z, see :func:`georeg.kernels.blocks.bent_`; through Ṡ it is A. So

        ∂q = s(Z k + A k̇)        ∂k = s(Zᵀq + Aᵀq̇)        ∂v = Ṗᵀc
        """
        (q, k, v), y, s = primals, stats[-1], self.scale
        tq, tk, tv = filled(tangents, primals)
        pushed = laid_out(q.shape[1], v) if push else None
        bent = gq, gk, gv = self._room(q, k, v)
        pulled = pq, pk, pv = self._room(q, k, v) if pull else (None, None, None)
        rows = (-row_means(c, y), q, c, tq, beside(tq, q), gq, pushed, pq)
        keys = (k, v, tk, beside(k, tk).mT, tv, tv.mT, gk, gv, pk, pv)
        for start, p, at_rows, at_keys, (a, moved, z) in self._walk(primals, stats, rows, keys, 3):
            means_, q_, c_, tq_, qs_, gq_, pushed_, pq_ = at_rows
            k_, v_, tk_, ks_, tv_, tvt_, gk_, gv_, pk_, pv_ = at_keys
            spread(c_, v_, means_, a)
            self._moved(qs_, ks_, p, moved)
            if push:
                across_(across_(pushed_, p, tv_), moved, v_, beta=1)
            down_(gv_, start, moved, c_)
            bent_(torch.bmm(c_, tvt_, out=z), moved, a, p)
            a.mul_(p)
            across_(across_(gq_, a, tk_, s), z, k_, s, beta=1)
            down_(down_(gk_, start, a, tq_, s), 1, z, q_, s)
            if pull:
                across_(pq_, a, k_, s)
                down_(pk_, start, a, q_, s)
                down_(pv_, start, p, c_)
        return pushed, pulled, bent


class _Keeping(Attention):
    """The same with P kept: to read it again takes a fifth of the time of its exponentials.

    Each block is a tensor of its own: memory of tens of megabytes is the system's, to be had page by page for twice the time
    that it takes to fill it.
    """

    is_large: ClassVar[bool] = True

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, kept = laid_out(q.shape[1], v), []
        for start, (q_, y_), (kt_, v_), _ in self._blocks(q, k).walk((q, y), (k.mT, v), q, 0):
            kept.append(self._weights(q.new_empty(*q_.shape[:2], k.shape[1]), start, q_, kt_))
            across_(y_, kept[-1], v_)
        return y, (*kept, y.clone())

    def _walk(
        self, primals: Sequence[Any], stats: Sequence[Tensor], rows: Sequence[Maybe], keys: Sequence[Maybe], count: int
    ) -> Iterator[tuple[int, Tensor, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]]:
        q, k, _ = primals
        steps = self._blocks(q, k).walk(rows, keys, q, count)
        for p, (start, at_rows, at_keys, work) in zip(stats[:-1], steps, strict=True):
            yield start, p, at_rows, at_keys, work


def _keeps(q: Tensor, k: Tensor) -> bool:
    """Whether L × S matrices are kept for the derivatives, by the shapes alone."""
    has_derivatives = torch.is_grad_enabled() or in_functorch()
    return has_derivatives and not is_frugal() and k.shape[-2] <= LENGTH * q.shape[-1]


def _in_triton(scale: float, causal: bool, block_bytes: int, dtype: torch.dtype) -> Attention:
    """Products of half precision's numbers are exact in one tf32; those of float32 follow torch's own setting."""
    from georeg.kernels.triton.attention import TritonAttention

    is_half = dtype in (torch.float16, torch.bfloat16)
    is_exact = not is_half and torch.get_float32_matmul_precision() == "highest"
    return TritonAttention(scale, causal, block_bytes, "tf32x3" if is_exact else "tf32")


def _block_bytes(device: str) -> int:
    return BLOCK_BYTES["cpu"] * torch.get_num_threads() if device == "cpu" else BLOCK_BYTES["cuda"]


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
    differentiation. Here q, k and v alone are kept, and the matrices exist a block at a time. With at most 32 times as many
    keys as features one is kept as well, P, or for heads of at least 32 features S and its tangent and cotangent, which
    saves a quarter of the work. With a mask, dropout, grouped queries or batch axes that broadcast, or without elements, the
    mathematical form is used.

    Args:
        query, key, value: ``(..., L, D)``, ``(..., S, D)``, ``(..., S, M)``.
        attn_mask, dropout_p, is_causal, scale, enable_gqa: as of torch's own.
        block_bytes: size of a block of an L × S matrix; default 1 MiB for each thread of a CPU, 64 MiB on a GPU.

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
    broadcasts = len({t.shape[:-2] for t in tensors}) > 1
    is_special = attn_mask is not None or dropout_p or enable_gqa or broadcasts
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
    size = _block_bytes(query.device.type) if block_bytes is None else block_bytes
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    # Probabilities of half precision are taken in float32, as torch's own kernels do.
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (t.to(wide).reshape(-1, *t.shape[-2:]) for t in tensors)
    is_narrow = q.shape[-1] < WIDTH
    if is_used(q) and max(q.shape[-1], v.shape[-1]) <= TRITON_WIDTH:
        y = _in_triton(factor, is_causal, size, query.dtype)(q, k, v)
    elif not _keeps(q, k) or (is_narrow and in_functorch()):  # vmap folds points and what is kept alike, but not blocks
        y = Attention(factor, is_causal, size)(q, k, v)
    elif is_narrow:
        y = _Keeping(factor, is_causal, size)(q, k, v)
    else:
        y = Weighting(is_causal, size)(Scores(factor)(q, k), v)
    return y.reshape(*query.shape[:-1], value.shape[-1]).to(query.dtype)
