"""Group normalisation, alone and followed by SiLU, with first- and second-order rules.

Within each group x̂ = (x − μ)ρ with ρ = (σ² + ε)^(−1/2); z = w x̂ + b; y = φ(z), φ the identity or SiLU. With the
self-adjoint Π v = v − mean(v) − x̂ mean(v x̂), the Jacobian is J = φ′(z) w ρ Π:

    T(v) = φ′(z) w p with p = ρ Π v            V(c) = ρ Π e with e = w φ′(z) c

Only x, μ and ρ are kept. PyTorch's own first-order kernels do the passes over memory: ρ Π v is a backward of its group
norm without weights, φ′(z) c one of its SiLU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import silu

from georeg.kernels.rules import Maybe, Operator
from georeg.kernels.triton import is_used

aten = torch.ops.aten

CACHE_BYTES = 2**20
"""On a CPU the second-order rule works through a batch in parts of this size for each thread, which stay in its cache."""


@dataclass(frozen=True)
class GroupNorm(Operator):
    """Of x ``(B, C, ...)``, with weights and biases ``(C,)`` or None."""

    groups: int
    eps: float
    has_silu: bool

    points: ClassVar[int] = 1
    parameters: ClassVar[int] = 2

    def plain(self, x: Tensor, w: Maybe, b: Maybe) -> Tensor:
        values = x.reshape(len(x), self.groups, x.shape[1:].numel() // self.groups)
        centred = values - values.mean(-1, keepdim=True)
        scaled = centred * (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        z = scaled.reshape(x.shape)
        z = z if w is None else z * _channels(w, x)
        z = z if b is None else z + _channels(b, x)
        return z * torch.sigmoid(z) if self.has_silu else z

    def forward(self, x: Tensor, w: Maybe, b: Maybe) -> tuple[Tensor, tuple[Tensor, ...]]:
        z, mean, rho = self._normalised(x, w, b)
        return silu(z) if self.has_silu else z, (mean, rho)

    def _normalised(self, x: Tensor, w: Maybe, b: Maybe) -> tuple[Tensor, Tensor, Tensor]:
        return aten.native_group_norm(x, w, b, *_sizes(x), self.groups, self.eps)

    def _projected(
        self, v: Tensor, x: Tensor, stats: Sequence[Tensor], w: Maybe = None, *, sums: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ρ Π (w v); with ``sums`` also Σ v x̂ and Σ v over batch and space, ``(C,)``."""
        weight = x.new_ones(x.shape[1]) if sums and w is None else w
        return aten.native_group_norm_backward(v, x, *stats, weight, *_sizes(x), self.groups, [True, sums, sums])

    def _by_sample(
        self, v: Tensor, x: Tensor, stats: Sequence[Tensor], w: Maybe = None, *, dx: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of what :meth:`_grouped` gives, ρ Π (w v) if ``dx``, and Σ v x̂ and Σ v over the space, ``(B, G, C / G)``.

        PyTorch's kernel sums over the batch too; so the batch is presented to it as one sample with more groups.
        """
        size, groups, width, space = x.shape
        channels = size * groups * width
        weight = x.new_ones(channels) if w is None or not dx else torch.cat([w] * size)
        found, along_x, along_1 = aten.native_group_norm_backward(
            v, x, *stats, weight, 1, channels, space, size * groups, [dx, True, True]
        )
        return found, along_x.view(size, groups, width), along_1.view(size, groups, width)

    def _slope(self, c: Tensor, x: Tensor, w: Maybe, b: Maybe) -> Tensor:
        """φ′(z) c."""
        return aten.silu_backward(c, self._normalised(x, w, b)[0]) if self.has_silu else c

    def pullback(
        self, c: Tensor, primals: Sequence[Any], stats: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Maybe, ...]:
        x, w, b = primals
        slope = self._slope(c.contiguous(), x, w, b)
        dx, dw, db = self._projected(slope, x, stats, w, sums=wanted[1] or wanted[2])
        return dx, dw if wanted[1] else None, db if wanted[2] else None

    def pushforward(self, tangents: Sequence[Maybe], primals: Sequence[Any], stats: Sequence[Tensor]) -> Tensor:
        (v,), (x, w, b) = tangents, primals
        assert v is not None  # the only point
        p = self._projected(v.contiguous(), x, stats)[0]
        return self._slope(p if w is None else p.mul_(_channels(w, x)), x, w, b)

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
        """B = ⟨c, φ′(z) w p⟩ = Σ e p depends on x through z, through x̂ in Π, and through ρ.

        With k = φ″(z) c w p, the derivative of B by z, s = φ′(z) c, e = w s, and dρ = −ρ² mean(x̂ dx), dx̂ = ρ Π dx:

            ∂B/∂b = Σ k        ∂B/∂w = Σ s p + Σ k x̂
            ∂B/∂x = ρ Π(w k − ρ mean(v x̂) e − ρ mean(e x̂) v) − ρ x̂ mean(e p)
                  = ρ Π w (k − ρ mean(v x̂) s) − ρ mean(e x̂) p − (x − μ) ρ² mean(e p)
        """
        (v,), (x, w, b) = tangents, primals
        assert v is not None  # the only point
        part_bytes = CACHE_BYTES * torch.get_num_threads()
        rows = len(x) if x.device.type != "cpu" else max(part_bytes // (x.shape[1:].numel() * x.element_size()), 1)
        pushed, dx = to = [torch.empty_like(x) if want else None for want in (push, wanted[0])]
        at = self._grouped(x)
        work = at.new_empty(3, min(rows, len(at)), *at.shape[1:])
        rest = [t if t is None else self._grouped(t) for t in (c.contiguous(), v.contiguous(), *to)]
        found = []
        for x_, c_, v_, pushed_, dx_, mean, rho in _parts((at, *rest, *stats), rows):
            to_ = (pushed_, dx_, work[:, : len(x_)].unbind())
            found.append(self._second(c_, v_, (x_, w, b), (mean, rho), to_, pull=pull))
        pulled, dw, db = zip(*found, strict=True)
        whole = (torch.cat(pulled) if len(pulled) > 1 else pulled[0]).view(x.shape) if pull else None
        summed = (sum(parts[1:], parts[0]) if want else None for parts, want in zip((dw, db), wanted[1:], strict=True))
        return pushed, (whole,), (dx, *summed)

    def _second(
        self,
        c: Tensor,
        v: Tensor,
        primals: Sequence[Any],
        stats: Sequence[Tensor],
        to: tuple[Maybe, Maybe, Sequence[Tensor]],
        *,
        pull: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """V(c) if ``pull``, ∂B/∂w and ∂B/∂b. T(v) and ∂B/∂x go ``to`` their places, None where they are not wanted.

        The last of those is memory to work in, three tensors like x: to obtain it anew for every operation would cost as
        much as they do. So would a call for each of the sums ``(B, G, C / G)``, which are worked on side by side.
        """
        (x, w, b), (mean, rho), (pushed, dx, work) = primals, stats, to
        size, groups, width, space = x.shape
        by_channels = x.view(size, groups * width, space)
        in_one = mean.view(1, -1), rho.view(1, -1)
        p, v_x, _ = self._by_sample(v, x, in_one)
        if self.has_silu:
            z = self._normalised(by_channels, w, b)[0].view(x.shape)
            s, k, free = _bent(c, z, p, w, pushed, work)
        else:
            s, k, free = c, None, work[0]
            if pushed is not None:
                torch.mul(p, 1 if w is None else w.reshape(groups, width, 1), out=pushed)
        pulled, s_x, s_1 = self._by_sample(s, x, in_one, w, dx=pull)
        s_p = torch.mul(s, p, out=free).sum(-1)

        # By groups −ρ times the means of v x̂, e x̂ and e p: what s, p and x − μ (ρ times it) are added with.
        along = torch.stack((v_x, s_x, s_p))
        if w is not None:
            along[1:].mul_(w.reshape(groups, width))
        each = (size, groups, 1, 1)
        toward_s, toward_p, toward_x = along.sum(-1).mul_(rho * (-1 / (width * space))).view(3, *each).unbind()
        k = torch.mul(s, toward_s, out=free) if k is None else k.addcmul_(s, toward_s)
        bent, bent_x, bent_1 = self._projected(k.view(by_channels.shape), by_channels, (mean, rho), w, sums=True)
        if dx is not None:
            toward_x = toward_x * rho.view(each)
            torch.sub(bent.view(x.shape).addcmul_(p, toward_p).addcmul_(x, toward_x), toward_x * mean.view(each), out=dx)
        toward_s = toward_s.squeeze(-1)
        dw = torch.addcmul(s_p, toward_s, s_x, value=-1).sum(0).view(-1).add_(bent_x)
        return pulled, dw, bent_1.sub_((toward_s * s_1).sum(0).view(-1))

    def _grouped(self, x: Tensor) -> Tensor:
        """``(B, G, C / G, space)``, a view: what a number or a weight of each group goes with."""
        return x.view(len(x), self.groups, x.shape[1] // self.groups, -1)


def _bent(c: Tensor, z: Tensor, p: Tensor, w: Maybe, pushed: Maybe, work: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """s = φ′(z) c, k = φ″(z) c w p and memory that is free again, z being used up; ``pushed`` gets φ′(z) w p.

    With σ the sigmoid and σ′ = σ(1 − σ): φ′ = σ + zσ′ and φ″ = 2σ′ + zσ′(1 − 2σ).
    """
    sigmoid = torch.sigmoid(z, out=work[0])
    slope = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1, out=work[1])
    z_slope = z.mul_(slope)
    first = torch.add(sigmoid, z_slope, out=work[2])
    k = torch.add(z_slope, slope, alpha=2, out=slope).addcmul_(z_slope, sigmoid, value=-2).mul_(c)
    weighted = p if w is None else torch.mul(p, w.reshape(*z.shape[1:3], 1), out=z)
    if pushed is not None:
        torch.mul(first, weighted, out=pushed)
    k.mul_(weighted)
    return torch.mul(first, c, out=work[0]), k, first


def _channels(parameter: Tensor, x: Tensor) -> Tensor:
    """``(C,)`` that broadcasts over ``(B, C, *space)``."""
    return parameter.reshape(-1, *[1] * (x.ndim - 2))


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Of a batch ``(B, C, ...)``, its channels and its space."""
    return len(x), x.shape[1], x.shape[2:].numel()


def _parts(batch: Sequence[Maybe], rows: int) -> Iterator[tuple[Any, ...]]:
    """Tensors of a batch, so many samples at a time."""
    size = next(len(t) for t in batch if t is not None)
    if rows >= size:
        return iter([tuple(batch)])
    parts = [[None] * -(-size // rows) if t is None else t.split(rows) for t in batch]
    return zip(*parts, strict=True)


def _rules_for(point: Tensor) -> type[GroupNorm]:
    if not is_used(point):
        return GroupNorm
    from georeg.kernels.triton.group_norm import TritonGroupNorm

    return TritonGroupNorm


def _apply(x: Tensor, num_groups: int, weight: Maybe, bias: Maybe, eps: float, *, has_silu: bool) -> Tensor:
    if x.ndim < 2 or num_groups < 1 or x.shape[1] % num_groups:
        raise ValueError(
            f"num_groups: got {num_groups} for x of shape {tuple(x.shape)}, expected a divisor of its channels, (B, C, ...)"
        )
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != x.shape[1:2]:
            raise ValueError(f"{name}: got shape {tuple(parameter.shape)}, expected ({x.shape[1]},), one for each channel")
    # Statistics of half precision are taken in float32, as torch's own kernels do.
    wide = torch.promote_types(x.dtype, torch.float32)
    point = x.to(wide).contiguous()
    parameters = [p if p is None else p.to(wide) for p in (weight, bias)]
    operator = _rules_for(point)(num_groups, eps, has_silu)
    y = operator(point, *parameters) if x.numel() else operator.plain(point, *parameters)
    return y.to(x.dtype)


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Group normalisation (Wu & He 2018), as ``torch.nn.functional.group_norm``, whose derivatives are cheap as well.

    y = w (x − μ)/√(σ² + ε) + b with mean and variance over each sample's group of channels. Tensors of any strides are
    accepted, also as tangents, where torch's own forward mode fails.

    Args:
        x: ``(B, C, *space)``.
        num_groups: a divisor of C.
        weight, bias: ``(C,)`` or None.
        eps: ε > 0.

    Raises:
        ValueError: a number of groups that does not divide the channels; parameters of another length.

    Example:
        >>> import torch
        >>> from georeg.kernels.group_norm import group_norm
        >>> x = torch.randn(2, 4, 3, 3)
        >>> torch.allclose(group_norm(x, 2), torch.nn.functional.group_norm(x, 2), atol=1e-6)
        True
    """
    return _apply(x, num_groups, weight, bias, eps, has_silu=False)


def group_norm_silu(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """``silu(group_norm(x))`` as one operator: one tensor is kept for the backward passes instead of four.

    Args and errors as of :func:`group_norm`.

    Raises:
        ValueError: a number of groups that does not divide the channels; parameters of another length.

    Example:
        >>> import torch
        >>> from georeg.kernels.group_norm import group_norm, group_norm_silu
        >>> x = torch.randn(2, 4, 3, 3)
        >>> torch.allclose(group_norm_silu(x, 2), torch.nn.functional.silu(group_norm(x, 2)), atol=1e-6)
        True
    """
    return _apply(x, num_groups, weight, bias, eps, has_silu=True)
