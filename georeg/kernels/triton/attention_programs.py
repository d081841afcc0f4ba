"""The programs of attention, see :mod:`georeg.kernels.triton.attention` for their formulas.

Arguments in capitals are known when a program is compiled: what it computes (``PRIMAL``, ``TANGENT``, ``PUSH``, ``PULL``,
``BEND`` for the derivative of B), its tiles (``ROWS`` × ``KEYS``), and widths that are powers of two.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(pointer, head, rows, columns, place, across):
    """Rows ``place`` of a head's matrix, zero outside of it."""
    at = pointer + (head.to(tl.int64) * rows + place[:, None]) * columns + across[None, :]
    return tl.load(at, mask=(place[:, None] < rows) & (across[None, :] < columns), other=0)


@triton.jit
def _put(pointer, value, head, rows, columns, place, across):
    at = pointer + (head.to(tl.int64) * rows + place[:, None]) * columns + across[None, :]
    tl.store(at, value, mask=(place[:, None] < rows) & (across[None, :] < columns))


@triton.jit
def _row(pointer, head, rows, place):
    return tl.load(pointer + head.to(tl.int64) * rows + place, mask=place < rows, other=0)


@triton.jit
def _program(length, TILE: tl.constexpr):
    """Head and tile, of one axis of programs: a second one would end at 65,535 heads."""
    tiles = tl.cdiv(length, TILE)
    return tl.program_id(0) // tiles, tl.program_id(0) % tiles


@triton.jit
def _times(a, b, PRECISION: tl.constexpr, ACC: tl.constexpr):
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def _seen(rows, columns, L, S, CAUSAL: tl.constexpr):
    seen = (rows[:, None] < L) & (columns[None, :] < S)
    if CAUSAL:
        seen = seen & (columns[None, :] <= rows[:, None])
    return seen


@triton.jit
def forward(
    q, k, v, tq, tk, tv, y, log_sums, pushed, L, S, D, M, scale,
    PRIMAL: tl.constexpr, TANGENT: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDE_D: tl.constexpr, WIDE_M: tl.constexpr,
):  # fmt: skip
    """y and the logarithms of the sums of exponentials if ``PRIMAL``, which are read elsewhere, and T if ``TANGENT``."""
    head, tile = _program(L, ROWS)
    rows = tile * ROWS + tl.arange(0, ROWS)
    in_d, in_m = tl.arange(0, WIDE_D), tl.arange(0, WIDE_M)
    q_ = _tile(q, head, L, D, rows, in_d)
    if TANGENT:
        tq_ = _tile(tq, head, L, D, rows, in_d)
    largest, total = tl.full((ROWS,), float("-inf"), ACC), tl.zeros((ROWS,), ACC)
    value, moved, m = tl.zeros((ROWS, WIDE_M), ACC), tl.zeros((ROWS, WIDE_M), ACC), tl.zeros((ROWS,), ACC)
    if not PRIMAL:
        log_sums_ = _row(log_sums, head, L, rows)
    last = S
    if CAUSAL:
        last = tl.minimum(S, (tile + 1) * ROWS)
    for start in range(0, last, KEYS):
        columns = start + tl.arange(0, KEYS)
        seen = _seen(rows, columns, L, S, CAUSAL)
        k_, v_ = _tile(k, head, S, D, columns, in_d), _tile(v, head, S, M, columns, in_m)
        scores = _times(q_, tl.trans(k_), PRECISION, ACC) * scale
        if PRIMAL:
            scores = tl.where(seen, scores, float("-inf"))
            higher = tl.maximum(largest, tl.max(scores, 1))
            # A row that has seen nothing yet would compute ∞ − ∞.
            base = tl.where(higher == float("-inf"), 0, higher)
            p = tl.exp(scores - base[:, None])
            factor = tl.exp(largest - base)
            total = total * factor + tl.sum(p, 1)
            value = value * factor[:, None] + _times(p, v_, PRECISION, ACC)
            moved = moved * factor[:, None]
            m = m * factor
            largest = higher
        else:
            p = tl.where(seen, tl.exp(scores - log_sums_[:, None]), 0)
        if TANGENT:
            tk_, tv_ = _tile(tk, head, S, D, columns, in_d), _tile(tv, head, S, M, columns, in_m)
            ps = _times(tq_, tl.trans(k_), PRECISION, ACC) + _times(q_, tl.trans(tk_), PRECISION, ACC)
            ps = ps * scale * p
            m += tl.sum(ps, 1)
            moved += _times(ps, v_, PRECISION, ACC) + _times(p, tv_, PRECISION, ACC)
    if PRIMAL:
        total = tl.where(rows < L, total, 1)
        value = value / total[:, None]
        moved = moved / total[:, None]
        m = m / total
        _put(y, value, head, L, M, rows, in_m)
        tl.store(log_sums + head.to(tl.int64) * L + rows, largest + tl.log(total), mask=rows < L)
    if TANGENT:
        if not PRIMAL:
            value = _tile(y, head, L, M, rows, in_m)
        _put(pushed, moved - m[:, None] * value, head, L, M, rows, in_m)


@triton.jit
def _matrices(
    q_, k_, v_, c_, tq_, tk_, tv_, log_sums_, means_, seen, scale,
    BEND: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """P, E − D, Ṡ and F on a tile."""
    keys = tl.trans(k_)
    p = tl.exp(_times(q_, keys, PRECISION, ACC) * scale - log_sums_[:, None])
    p = tl.where(seen, p, 0)
    e = _times(c_, tl.trans(v_), PRECISION, ACC) - means_[:, None]
    if BEND:
        moved = (_times(tq_, keys, PRECISION, ACC) + _times(q_, tl.trans(tk_), PRECISION, ACC)) * scale
        f = _times(c_, tl.trans(tv_), PRECISION, ACC)
    else:
        moved, f = p, p
    return p, e, moved, f


@triton.jit
def by_rows(
    q, k, v, c, tq, tk, tv, log_sums, means, y, m, r, pushed, pq, gq, L, S, D, M, scale,
    PUSH: tl.constexpr, PULL: tl.constexpr, BEND: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    ACC: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, WIDE_D: tl.constexpr, WIDE_M: tl.constexpr,
):  # fmt: skip
    """What has a number for each row: m, r and T in a first pass over the keys, V_q and ∂q in a second."""
    head, tile = _program(L, ROWS)
    rows = tile * ROWS + tl.arange(0, ROWS)
    in_d, in_m = tl.arange(0, WIDE_D), tl.arange(0, WIDE_M)
    q_, c_ = _tile(q, head, L, D, rows, in_d), _tile(c, head, L, M, rows, in_m)
    log_sums_, means_ = _row(log_sums, head, L, rows), _row(means, head, L, rows)
    last = S
    if CAUSAL:
        last = tl.minimum(S, (tile + 1) * ROWS)
    tq_, m_, r_ = q_, means_ * 0, means_ * 0
    if BEND:
        tq_ = _tile(tq, head, L, D, rows, in_d)
        moved_y = tl.zeros((ROWS, WIDE_M), ACC)
        for start in range(0, last, KEYS):
            columns = start + tl.arange(0, KEYS)
            k_, v_ = _tile(k, head, S, D, columns, in_d), _tile(v, head, S, M, columns, in_m)
            tk_, tv_ = _tile(tk, head, S, D, columns, in_d), _tile(tv, head, S, M, columns, in_m)
            p, e, moved, f = _matrices(
                q_, k_, v_, c_, tq_, tk_, tv_, log_sums_, means_, _seen(rows, columns, L, S, CAUSAL), scale,
            BEND, PRECISION, ACC,
            )  # fmt: skip
            ps = p * moved
            m_ += tl.sum(ps, 1)
            r_ += tl.sum(ps * e + p * f, 1)
            if PUSH:
                moved_y += _times(ps, v_, PRECISION, ACC) + _times(p, tv_, PRECISION, ACC)
        tl.store(m + head.to(tl.int64) * L + rows, m_, mask=rows < L)
        tl.store(r + head.to(tl.int64) * L + rows, r_, mask=rows < L)
        if PUSH:
            _put(pushed, moved_y - m_[:, None] * _tile(y, head, L, M, rows, in_m), head, L, M, rows, in_m)
    pull_q, bent_q = tl.zeros((ROWS, WIDE_D), ACC), tl.zeros((ROWS, WIDE_D), ACC)
    for start in range(0, last, KEYS):
        columns = start + tl.arange(0, KEYS)
        k_, v_ = _tile(k, head, S, D, columns, in_d), _tile(v, head, S, M, columns, in_m)
        tk_, tv_ = k_, v_
        if BEND:
            tk_, tv_ = _tile(tk, head, S, D, columns, in_d), _tile(tv, head, S, M, columns, in_m)
        p, e, moved, f = _matrices(
            q_, k_, v_, c_, tq_, tk_, tv_, log_sums_, means_, _seen(rows, columns, L, S, CAUSAL), scale,
            BEND, PRECISION, ACC,
        )  # fmt: skip
        a = p * e
        if PULL:
            pull_q += _times(a, k_, PRECISION, ACC)
        if BEND:
            z = p * ((moved - m_[:, None]) * e + f - r_[:, None])
            bent_q += _times(z, k_, PRECISION, ACC) + _times(a, tk_, PRECISION, ACC)
    if PULL:
        _put(pq, pull_q * scale, head, L, D, rows, in_d)
    if BEND:
        _put(gq, bent_q * scale, head, L, D, rows, in_d)


@triton.jit
def by_keys(
    q, k, v, c, tq, tk, tv, log_sums, means, m, r, pk, pv, gk, gv, L, S, D, M, scale,
    PULL: tl.constexpr, BEND: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDE_D: tl.constexpr, WIDE_M: tl.constexpr,
):  # fmt: skip
    """What has a number for each key: V_k and V_v, ∂k = s(Zᵀq + Aᵀq̇) and ∂v = Ṗᵀc."""
    head, tile = _program(S, KEYS)
    columns = tile * KEYS + tl.arange(0, KEYS)
    in_d, in_m = tl.arange(0, WIDE_D), tl.arange(0, WIDE_M)
    k_, v_ = _tile(k, head, S, D, columns, in_d), _tile(v, head, S, M, columns, in_m)
    tk_, tv_ = k_, v_
    if BEND:
        tk_, tv_ = _tile(tk, head, S, D, columns, in_d), _tile(tv, head, S, M, columns, in_m)
    pull_k, bent_k = tl.zeros((KEYS, WIDE_D), ACC), tl.zeros((KEYS, WIDE_D), ACC)
    pull_v, bent_v = tl.zeros((KEYS, WIDE_M), ACC), tl.zeros((KEYS, WIDE_M), ACC)
    first = 0
    if CAUSAL:
        first = tile * KEYS // ROWS * ROWS
    for start in range(first, L, ROWS):
        rows = start + tl.arange(0, ROWS)
        q_, c_ = _tile(q, head, L, D, rows, in_d), _tile(c, head, L, M, rows, in_m)
        log_sums_, means_ = _row(log_sums, head, L, rows), _row(means, head, L, rows)
        tq_ = q_
        if BEND:
            tq_ = _tile(tq, head, L, D, rows, in_d)
        p, e, moved, f = _matrices(
            q_, k_, v_, c_, tq_, tk_, tv_, log_sums_, means_, _seen(rows, columns, L, S, CAUSAL), scale,
            BEND, PRECISION, ACC,
        )  # fmt: skip
        a = tl.trans(p * e)
        if PULL:
            pull_k += _times(a, q_, PRECISION, ACC)
            pull_v += _times(tl.trans(p), c_, PRECISION, ACC)
        if BEND:
            m_, r_ = _row(m, head, L, rows), _row(r, head, L, rows)
            centred = p * (moved - m_[:, None])
            z = centred * e + p * (f - r_[:, None])
            bent_k += _times(tl.trans(z), q_, PRECISION, ACC) + _times(a, tq_, PRECISION, ACC)
            bent_v += _times(tl.trans(centred), c_, PRECISION, ACC)
    if PULL:
        _put(pk, pull_k * scale, head, S, D, columns, in_d)
        _put(pv, pull_v, head, S, M, columns, in_m)
    if BEND:
        _put(gk, bent_k * scale, head, S, D, columns, in_d)
        _put(gv, bent_v, head, S, M, columns, in_m)
