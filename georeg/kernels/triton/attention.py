"""Attention in Triton: tiles of the L × S matrices live in registers, none of them ever in memory.

The letters are those of :mod:`georeg.kernels.attention` and :mod:`georeg.kernels.blocks`: S = s q kᵀ, P = softmax(S),
E = c vᵀ, F = c v̇ᵀ, Ṡ = s(q̇ kᵀ + q k̇ᵀ), D = Σ P E and m = Σ P Ṡ by rows. One pass over the keys has the value and its
tangent at once, by the running softmax of FlashAttention, since both are linear in P:

    y = Σⱼ P v        T = Σⱼ (P Ṡ v + P v̇) − m y

The second-order rule goes over the keys twice for each tile of rows, for m and r = Σ P (Ṡ (E − D) + F), then for

    Z = P ((Ṡ − m)(E − D) + F − r)        A = P (E − D)        ∂q = s(Z k + A k̇)        V_q = s A k

and once over the rows for each tile of keys. There are no atomic additions: a run repeats to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from georeg.kernels.attention import Attention
from georeg.kernels.blocks import filled, row_means
from georeg.kernels.rules import Maybe
from georeg.kernels.triton import attention_programs as programs
from georeg.kernels.triton.support import accumulator, operator, pointer, power_of_two


def _settings(q: Tensor, k: Tensor, v: Tensor, causal: bool, precision: str, rows: int, keys: int) -> dict[str, Any]:
    wide_d, wide_m = (max(power_of_two(t.shape[2]), 16) for t in (q, v))
    rows, keys = (min(tile, max(power_of_two(t.shape[1]), 16)) for tile, t in zip((rows, keys), (q, k), strict=True))
    return {
        "CAUSAL": causal, "PRECISION": precision, "ACC": accumulator(q),
        "ROWS": rows, "KEYS": keys, "WIDE_D": wide_d, "WIDE_M": wide_m,
    }  # fmt: skip


def _like_forward(
    q: Tensor, k: Tensor, v: Tensor, tq: Maybe, tk: Maybe, tv: Maybe, y: Maybe, log_sums: Maybe, scale: float, causal: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    nothing = (0, 0, 0)
    shape = (*q.shape[:2], v.shape[2])
    y_shape, sums_shape = (shape, (*q.shape[:2], 1)) if y is None else (nothing, nothing)
    return q.new_empty(y_shape), q.new_empty(sums_shape), q.new_empty(nothing if tq is None else shape)


@operator(
    "attention_forward(Tensor q, Tensor k, Tensor v, Tensor? tq, Tensor? tk, Tensor? tv, Tensor? y, Tensor? log_sums, "
    "float scale, bool causal, str precision) -> (Tensor, Tensor, Tensor)",
    _like_forward,
)
def _value_and_tangent(
    q: Tensor, k: Tensor, v: Tensor, tq: Maybe, tk: Maybe, tv: Maybe, y: Maybe, log_sums: Maybe, scale: float, causal: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y and the logarithms of the rows' sums, unless they are given, and T, if there are tangents."""
    value, sums, pushed = outputs = _like_forward(q, k, v, tq, tk, tv, y, log_sums, scale, causal, precision)
    width = max(q.shape[2], v.shape[2])
    settings = _settings(q, k, v, causal, precision, 64, 64 if width <= 32 else 32)
    programs.forward[(len(q) * triton.cdiv(q.shape[1], settings["ROWS"]),)](
        q, k, v, *(pointer(t, q) for t in (tq, tk, tv)), value if y is None else y,
        sums if log_sums is None else log_sums, pushed, q.shape[1], k.shape[1], q.shape[2], v.shape[2], scale,
        PRIMAL=y is None, TANGENT=tq is not None, num_warps=4, num_stages=2 if width <= 32 else 1, **settings,
    )  # fmt: skip
    return outputs


def _like_backward(
    q: Tensor, k: Tensor, v: Tensor, c: Tensor, tq: Maybe, tk: Maybe, tv: Maybe, y: Tensor, log_sums: Tensor, means: Tensor,
    scale: float, causal: bool, precision: str, push: bool, pull: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    pulled, bent = (
        [torch.empty_like(t) if wanted else t.new_empty(0) for t in (q, k, v)] for wanted in (pull, tq is not None)
    )
    return torch.empty_like(y) if push else y.new_empty(0), *pulled, *bent


@operator(
    "attention_backward(Tensor q, Tensor k, Tensor v, Tensor c, Tensor? tq, Tensor? tk, Tensor? tv, Tensor y, "
    "Tensor log_sums, Tensor means, float scale, bool causal, str precision, bool push, bool pull) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _like_backward,
)
def _derivatives(
    q: Tensor, k: Tensor, v: Tensor, c: Tensor, tq: Maybe, tk: Maybe, tv: Maybe, y: Tensor, log_sums: Tensor, means: Tensor,
    scale: float, causal: bool, precision: str, push: bool, pull: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """T if ``push``, V_q, V_k and V_v if ``pull``, and ∂q, ∂k and ∂v of B(c, v) if there are tangents."""
    outputs = _like_backward(q, k, v, c, tq, tk, tv, y, log_sums, means, scale, causal, precision, push, pull)
    pushed, pq, pk, pv, gq, gk, gv = outputs
    bend, width = tq is not None, max(q.shape[2], v.shape[2])
    m, r = torch.empty_like(log_sums), torch.empty_like(log_sums)
    # What a program owns, and what it goes over: as large as the registers of sm_90 take without spilling much.
    own, others = (64, 32) if not bend else (64, 16) if width <= 32 else (16, 32)
    by_rows = _settings(q, k, v, causal, precision, own, others)
    by_keys = _settings(q, k, v, causal, precision, others, own)
    points = (q, k, v, c, *(pointer(t, q) for t in (tq, tk, tv)), log_sums, means)
    sizes = (q.shape[1], k.shape[1], q.shape[2], v.shape[2], scale)
    flags: dict[str, Any] = {"PULL": pull, "BEND": bend, "num_warps": 4, "num_stages": 1}
    programs.by_rows[(len(q) * triton.cdiv(q.shape[1], by_rows["ROWS"]),)](
        *points, y, m, r, pushed, pq, gq, *sizes, PUSH=push, **flags, **by_rows
    )  # fmt: skip
    programs.by_keys[(len(q) * triton.cdiv(k.shape[1], by_keys["KEYS"]),)](
        *points, m, r, pk, pv, gk, gv, *sizes, **flags, **by_keys
    )
    return outputs


def _product(q: Sequence[int], k: Sequence[int], v: Sequence[int]) -> tuple[int, int]:
    """Operations of a product of an L × S matrix with something of q's width, and of v's."""
    size = 2 * q[0] * q[1] * k[1]
    return size * q[2], size * v[2]


@register_flop_formula(torch.ops.georeg.attention_forward)
def _forward_work(
    q: Any, k: Any, v: Any, tq: Any, tk: Any, tv: Any, y: Any, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    d, m = _product(q, k, v)
    work = d + (m if y is None else 0)
    return work if tq is None else work + 2 * d + 2 * m


@register_flop_formula(torch.ops.georeg.attention_backward)
def _backward_work(q: Any, k: Any, v: Any, c: Any, tq: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    *_ignored, push, pull = rest
    d, m = _product(q, k, v)
    if tq is None:
        return 2 * (d + m) + (2 * d + m)  # S and E for rows and for keys, then V
    # S, Ṡ twice, E and F thrice; T; ∂q and ∂k twice each, ∂v; V
    return 3 * (3 * d + 2 * m) + (2 * m if push else 0) + 4 * d + m + (2 * d + m if pull else 0)


def _tell_counters() -> None:
    """A counter that is at work already took its formulas from torch's register when it was made."""
    for mode in _get_current_dispatch_mode_stack():
        counter = getattr(mode, "counter", None)
        if isinstance(counter, FlopCounterMode):
            operators = (torch.ops.georeg.attention_forward, torch.ops.georeg.attention_backward)
            counter.flop_registry |= {operator: flop_registry[operator] for operator in operators}


_tell_counters()


def _dense(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.contiguous() for t in tensors]


@dataclass(frozen=True)
class TritonAttention(Attention):
    """:class:`georeg.kernels.attention.Attention` with its rules in Triton."""

    precision: str = "tf32x3"
    """How matrix products take float32: as three of tf32, exact to rounding, or as one."""

    def _shared(self) -> tuple[float, bool, str]:
        return self.scale, self.causal, self.precision

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        nothing = (None,) * 5
        y, log_sums, _ = _value_and_tangent(*_dense((q, k, v)), *nothing, *self._shared())
        return y, (log_sums, y.clone())

    def pullback(
        self, c: Tensor, primals: Sequence[Any], stats: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Maybe, ...]:
        log_sums, y = _dense(stats)
        points, nothing = _dense((*primals, c)), (None,) * 3
        _, *pulled = _derivatives(*points, *nothing, y, log_sums, row_means(c, y), *self._shared(), False, True)
        return tuple(pulled[:3])

    def pushforward(self, tangents: Sequence[Maybe], primals: Sequence[Any], stats: Sequence[Tensor]) -> Tensor:
        log_sums, y = _dense(stats)
        points = _dense((*primals, *filled(tangents, primals)))
        pushed: Tensor = _value_and_tangent(*points, y, log_sums, *self._shared())[2]
        return pushed

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
        log_sums, y = _dense(stats)
        points = _dense((*primals, c, *filled(tangents, primals)))
        pushed, *rest = _derivatives(*points, y, log_sums, row_means(c, y), *self._shared(), push, pull)
        return pushed if push else None, tuple(rest[:3]) if pull else (None,) * 3, tuple(rest[3:])
