"""The programs of GroupNorm + SiLU, see :mod:`georeg.kernels.triton.group_norm` for their formulas.

Arguments in capitals are known when a program is compiled: what there is (``HAS_W``, ``HAS_B``, ``HAS_C``, ``HAS_V``), what
it computes (``VALUE``, ``PUSH``, ``PULL``, ``BEND`` for the derivative of B), and sizes that are powers of two.
"""

import triton
import triton.language as tl


@triton.jit
def moments(x, mean, rho, n, eps, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """μ and ρ of a group, by sums of differences to its first element: exact for a mean far from 0."""
    group = tl.program_id(0)
    x += group.to(tl.int64) * n
    first = tl.load(x).to(ACC)
    offsets = tl.arange(0, BLOCK)
    total, squares = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    for start in range(0, n, BLOCK):
        inside = start + offsets < n
        d = tl.where(inside, tl.load(x + start + offsets, mask=inside, other=0).to(ACC) - first, 0)
        total += d
        squares += d * d
    shift = tl.sum(total, 0) / n
    variance = tl.maximum(tl.sum(squares, 0) / n - shift * shift, 0)
    tl.store(mean + group, first + shift)
    tl.store(rho + group, 1 / tl.sqrt(variance + eps))


@triton.jit
def _point(x, w, b, mean, rho, row, channels, groups, offsets, inside, HAS_W: tl.constexpr, HAS_B: tl.constexpr):
    """x̂, ρ, w and z at some positions of a channel; row is sample · channels + channel."""
    channel = row % channels
    group = (row // channels) * groups + channel // (channels // groups)
    rho_ = tl.load(rho + group)
    hat = (tl.load(x + offsets, mask=inside, other=0) - tl.load(mean + group)) * rho_
    weight = tl.load(w + channel) if HAS_W else rho_ * 0 + 1
    z = hat * weight
    if HAS_B:
        z += tl.load(b + channel)
    return hat, rho_, weight, z


@triton.jit
def _slopes(z, SILU: tl.constexpr):
    """φ, φ′ and φ″, see `georeg.kernels.group_norm`."""
    if SILU:
        sigma = 1 / (1 + tl.exp(-z))
        slope = sigma * (1 - sigma)
        return z * sigma, sigma + z * slope, slope * (2 + z * (1 - 2 * sigma))
    else:
        return z, z * 0 + 1, z * 0


@triton.jit
def sums(
    x, w, b, mean, rho, c, v, out, space, channels, groups, stride,
    HAS_W: tl.constexpr, HAS_B: tl.constexpr, SILU: tl.constexpr, HAS_C: tl.constexpr, HAS_V: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums of a channel over one block of its positions, into ``out[sum, row, block]``."""
    row, part = tl.program_id(0), tl.program_id(1)
    positions = part * BLOCK + tl.arange(0, BLOCK)
    inside = positions < space
    offsets = row.to(tl.int64) * space + positions
    hat, _, _, z = _point(x, w, b, mean, rho, row, channels, groups, offsets, inside, HAS_W, HAS_B)
    hat = tl.where(inside, hat, 0)
    _, first, second = _slopes(z, SILU)
    out += row * tl.num_programs(1) + part
    if HAS_V:
        v_ = tl.load(v + offsets, mask=inside, other=0)
        tl.store(out, tl.sum(v_, 0))
        tl.store(out + stride, tl.sum(v_ * hat, 0))
    if HAS_C:
        c_ = tl.load(c + offsets, mask=inside, other=0)
        s = first * c_
        tl.store(out + 2 * stride, tl.sum(s, 0))
        tl.store(out + 3 * stride, tl.sum(s * hat, 0))
        if HAS_V:
            a = second * c_
            tl.store(out + 4 * stride, tl.sum(s * v_, 0))
            tl.store(out + 5 * stride, tl.sum(a, 0))
            tl.store(out + 6 * stride, tl.sum(a * hat, 0))
            tl.store(out + 7 * stride, tl.sum(a * v_, 0))
            tl.store(out + 8 * stride, tl.sum(a * v_ * hat, 0))
            tl.store(out + 9 * stride, tl.sum(a * hat * hat, 0))


@triton.jit
def values(
    x, w, b, mean, rho, c, v, sums, y, pushed, pulled, dx, dw, db, space, channels, groups, stride,
    HAS_W: tl.constexpr, HAS_B: tl.constexpr, SILU: tl.constexpr, VALUE: tl.constexpr, PUSH: tl.constexpr,
    PULL: tl.constexpr, BEND: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y, T(v), V(c), ∂B/∂x and each sample's gradients of w and b, of one block of a channel's positions."""
    row, part = tl.program_id(0), tl.program_id(1)
    positions = part * BLOCK + tl.arange(0, BLOCK)
    inside = positions < space
    offsets = row.to(tl.int64) * space + positions
    hat, rho_, weight, z = _point(x, w, b, mean, rho, row, channels, groups, offsets, inside, HAS_W, HAS_B)
    value, first, second = _slopes(z, SILU)
    if VALUE:
        tl.store(y + offsets, value, mask=inside)
    if PUSH or PULL or BEND:
        # The group's channels, all sums of them that are needed, and its means.
        width = channels // groups
        place = tl.arange(0, WIDTH)
        present = place < width
        of_group = sums + (row // width) * width + place
        count = width * space
        weights = tl.load(w + (row % channels // width) * width + place, mask=present, other=0) if HAS_W else present * 1
        if PUSH or BEND:
            v_mean = tl.sum(tl.load(of_group, mask=present, other=0), 0) / count
            v_hat = tl.sum(tl.load(of_group + stride, mask=present, other=0), 0) / count
            v_ = tl.load(v + offsets, mask=inside, other=0)
            p = (v_ - v_mean - hat * v_hat) * rho_
        if PULL or BEND:
            s_all = tl.load(of_group + 2 * stride, mask=present, other=0)
            s_hat_all = tl.load(of_group + 3 * stride, mask=present, other=0)
            e_mean = tl.sum(weights * s_all, 0) / count
            e_hat = tl.sum(weights * s_hat_all, 0) / count
            c_ = tl.load(c + offsets, mask=inside, other=0)
            s = first * c_
        if PUSH:
            tl.store(pushed + offsets, first * weight * p, mask=inside)
        if PULL:
            tl.store(pulled + offsets, (weight * s - e_mean - hat * e_hat) * rho_, mask=inside)
        if PULL and not BEND and part == 0:
            tl.store(dw + row, tl.load(sums + 3 * stride + row))
            tl.store(db + row, tl.load(sums + 2 * stride + row))
        if BEND:
            sv = tl.load(of_group + 4 * stride, mask=present, other=0)
            a = tl.load(of_group + 5 * stride, mask=present, other=0)
            a_hat = tl.load(of_group + 6 * stride, mask=present, other=0)
            av = tl.load(of_group + 7 * stride, mask=present, other=0)
            av_hat = tl.load(of_group + 8 * stride, mask=present, other=0)
            a_hat_hat = tl.load(of_group + 9 * stride, mask=present, other=0)
            sp = rho_ * (sv - v_mean * s_all - v_hat * s_hat_all)
            k_all = weights * rho_ * (av - v_mean * a - v_hat * a_hat)
            k_hat_all = weights * rho_ * (av_hat - v_mean * a_hat - v_hat * a_hat_hat)
            toward_s = -rho_ * v_hat
            f_mean = tl.sum(weights * (k_all + toward_s * s_all), 0) / count
            f_hat = tl.sum(weights * (k_hat_all + toward_s * s_hat_all), 0) / count
            e_p = tl.sum(weights * sp, 0) / count
            f = weight * (second * c_ * weight * p + toward_s * s)
            bent = rho_ * (f - f_mean - hat * f_hat) - rho_ * e_hat * p - hat * rho_ * e_p
            tl.store(dx + offsets, bent, mask=inside)
            if part == 0:
                here = (row // width) * width + place == row
                tl.store(dw + row, tl.sum(tl.where(here, sp + k_hat_all, 0), 0))
                tl.store(db + row, tl.sum(tl.where(here, k_all, 0), 0))
