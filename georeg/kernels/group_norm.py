"""Group normalisation, alone and followed by SiLU, with first- and second-order rules.

Within each group x̂ = (x − μ)ρ with ρ = (σ² + ε)^(−1/2); z = w x̂ + b; y = φ(z), φ the identity or SiLU. With the
self-adjoint Π v = v − mean(v) − x̂ mean(v x̂), the Jacobian is J = φ′(z) w ρ Π:

    T(v) = φ′(z) w p with p = ρ Π v            V(c) = ρ Π e with e = w φ′(z) c

Only x, μ and ρ are kept. PyTorch's own first-order kernels do the passes over memory: ρ Π v is a backward of its group
norm without weights, φ′(z) c one of its SiLU.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        size, channels = x.shape[:2]
        arguments = (size, channels, x[0, 0].numel(), self.groups, self.eps)
        return aten.native_group_norm(x, w, b, *arguments)

    def _projected(
        self, v: Tensor, x: Tensor, stats: Sequence[Tensor], w: Maybe = None, *, sums: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ρ Π (w v); with ``sums`` also Σ v x̂ and Σ v over the space of each channel, ``(B, C)``.

        PyTorch's kernel sums over the batch too; so the batch is presented to it as one sample with more groups.
        """
        size, channels = x.shape[:2]
        shape = (1, size * channels, -1)
        weight = w.repeat(size) if w is not None else x.new_ones(size * channels) if sums else None
        mean, rho = (s.reshape(1, -1) for s in stats)
        dx, along_x, along_1 = aten.native_group_norm_backward(
            v.reshape(shape), x.reshape(shape), mean, rho, weight, 1, size * channels, x[0, 0].numel(), size * self.groups,
            [True, sums, sums],
        )  # fmt: skip
        if not sums:
            return dx.reshape(x.shape), dx, dx
        return dx.reshape(x.shape), along_x.reshape(size, channels), along_1.reshape(size, channels)

    def _slope(self, c: Tensor, x: Tensor, w: Maybe, b: Maybe) -> Tensor:
        """φ′(z) c."""
        return aten.silu_backward(c, self._normalised(x, w, b)[0]) if self.has_silu else c

    def pullback(
        self, c: Tensor, primals: Sequence[Any], stats: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Maybe, ...]:
        x, w, b = primals
        slope = self._slope(c.contiguous(), x, w, b)
        dx, along_x, along_1 = self._projected(slope, x, stats, w, sums=wanted[1] or wanted[2])
        return dx, along_x.sum(0) if wanted[1] else None, along_1.sum(0) if wanted[2] else None

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
        c, v = c.contiguous(), v.contiguous()
        part_bytes = CACHE_BYTES * torch.get_num_threads()
        rows = len(x) if x.device.type != "cpu" else max(part_bytes // (x[0].numel() * x.element_size()), 1)
        pushed, pulled, dx = (torch.empty_like(x) if want else None for want in (push, pull, wanted[0]))
        work = x.new_empty(3, *x[:rows].shape)
        sums = []
        for part in (slice(i, i + rows) for i in range(0, len(x), rows)):
            to = [None if t is None else t[part] for t in (pushed, pulled, dx)]
            at = (x[part], w, b), [s[part] for s in stats]
            sums.append(self._second(c[part], v[part], *at, to, work[:, : len(x) - part.start]))
        dw, db = (torch.cat(of_parts).sum(0) for of_parts in zip(*sums, strict=True))
        return pushed, (pulled,), (dx, dw if wanted[1] else None, db if wanted[2] else None)

    def _second(
        self, c: Tensor, v: Tensor, primals: Sequence[Any], stats: Sequence[Tensor], to: Sequence[Maybe], work: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Fill ``to`` (T(v), V(c) and ∂B/∂x, None where not wanted); give ∂B/∂w and ∂B/∂b of each sample.

        ``work`` is memory for three tensors like x: to obtain it anew for every operation would cost as much as they do.
        """
        (x, w, _), (mean, rho), (pushed, pulled, dx) = primals, stats, to
        p, v_x, _ = self._projected(v, x, stats, sums=True)
        if self.has_silu:
            s, k, free = self._bent(c, p, primals, pushed, work)
        else:
            s, k, free = c, None, work[0]
            if pushed is not None:
                torch.mul(p, 1 if w is None else _channels(w, x), out=pushed)
        if pulled is not None:
            found, s_x, s_1 = self._projected(s, x, stats, w, sums=True)
            pulled.copy_(found)
        else:
            s_1 = _over_space(s)
            s_x = self._scaled(_over_space(torch.mul(s, x, out=free)) - self._scaled(s_1, mean), rho)
        s_p = _over_space(torch.mul(s, p, out=free))

        def group_mean(per_channel: Tensor) -> Tensor:
            return self._groups(per_channel).sum(-1) / (x[0].numel() // self.groups)

        e_x, e_p = (group_mean(t if w is None else t * w) for t in (s_x, s_p))
        toward_s = -rho * group_mean(v_x)
        grouped = self._groups(s), toward_s.unsqueeze(-1)
        if k is None:
            torch.mul(*grouped, out=self._groups(free))
        else:
            self._groups(k).addcmul_(*grouped)
        along_x, bent_x, bent_1 = self._projected(free if k is None else k, x, stats, w, sums=True)
        if dx is not None:
            factor = (rho.square() * e_p).unsqueeze(-1)
            groups = self._groups(along_x).addcmul_(self._groups(p), (-rho * e_x).unsqueeze(-1))
            groups.addcmul_(self._groups(x), -factor)
            torch.add(groups, factor * mean.unsqueeze(-1), out=self._groups(dx))
        return s_p + bent_x - self._scaled(s_x, toward_s), bent_1 - self._scaled(s_1, toward_s)

    def _groups(self, x: Tensor) -> Tensor:
        """``(B, G, rest)``, a view."""
        return x.view(len(x), self.groups, -1)

    def _scaled(self, per_channel: Tensor, per_group: Tensor) -> Tensor:
        return (self._groups(per_channel) * per_group.unsqueeze(-1)).view_as(per_channel)

    def _bent(
        self, c: Tensor, p: Tensor, primals: Sequence[Any], pushed: Maybe, work: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """s = φ′(z) c, k = φ″(z) c w p and memory that is free again; ``pushed`` gets φ′(z) w p.

        With σ the sigmoid and σ′ = σ(1 − σ): φ′ = σ + zσ′ and φ″ = 2σ′ + zσ′(1 − 2σ).
        """
        x, w, b = primals
        z = self._normalised(x, w, b)[0]
        sigmoid = torch.sigmoid(z, out=work[0])
        slope = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1, out=work[1])
        z_slope = z.mul_(slope)
        first = torch.add(sigmoid, z_slope, out=work[2])
        k = slope.mul_(2).add_(z_slope).addcmul_(z_slope, sigmoid, value=-2).mul_(c)
        weighted = p if w is None else torch.mul(p, _channels(w, x), out=z)
        if pushed is not None:
            torch.mul(first, weighted, out=pushed)
        k.mul_(weighted)
        return torch.mul(first, c, out=work[0]), k, first


def _channels(parameter: Tensor, x: Tensor) -> Tensor:
    """``(C,)`` that broadcasts over ``(B, C, *space)``."""
    return parameter.reshape(-1, *[1] * (x.ndim - 2))


def _over_space(x: Tensor) -> Tensor:
    """Sums ``(B, C)`` over the space of ``(B, C, *space)``."""
    return x.reshape(*x.shape[:2], -1).sum(-1)


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
