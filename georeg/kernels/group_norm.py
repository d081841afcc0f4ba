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

aten = torch.ops.aten

CACHE_BYTES = 2**20
"""On a CPU the second-order rule works through a batch in parts of this size, whose temporaries stay in the cache."""


@dataclass(frozen=True)
class _GroupNorm(Operator):
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
        rows = len(x) if x.device.type != "cpu" else max(CACHE_BYTES // (x[0].numel() * x.element_size()), 1)
        if rows >= len(x):
            return self._second(c, v, primals, stats, wanted, push=push, pull=pull)
        pushed, pulled, dx = (torch.empty_like(x) if want else None for want in (push, pull, wanted[0]))
        totals: list[Maybe] = [None, None]
        for part in (slice(i, i + rows) for i in range(0, len(x), rows)):
            found = self._second(
                c[part], v[part], (x[part], w, b), [s[part] for s in stats], wanted, push=push, pull=pull
            )  # fmt: skip
            for whole, piece in ((pushed, found[0]), (pulled, found[1][0]), (dx, found[2][0])):
                if whole is not None and piece is not None:
                    whole[part] = piece
            for i, more in enumerate(found[2][1:]):
                before = totals[i]
                totals[i] = more if before is None or more is None else before + more
        return pushed, (pulled,), (dx, *totals)

    def _second(
        self,
        c: Tensor,
        v: Tensor,
        primals: Sequence[Any],
        stats: Sequence[Tensor],
        wanted: Sequence[bool],
        *,
        push: bool,
        pull: bool,
    ) -> tuple[Maybe, tuple[Maybe, ...], tuple[Maybe, ...]]:
        x, w, b = primals
        mean, rho = stats
        p, v_x, _ = self._projected(v, x, stats, sums=True)
        weighted = p if w is None else p * _channels(w, x)
        if self.has_silu:
            first, curvature = _silu_derivatives(self._normalised(x, w, b)[0])
            s = first * c
            pushed = first.mul_(weighted) if push else None
            k = curvature.mul_(c).mul_(weighted)
        else:
            s, pushed, k = c, weighted if push else None, None
        if pull:
            pulled, s_x, s_1 = self._projected(s, x, stats, w, sums=True)
        else:
            s_1 = _over_space(s)
            s_x = _to_channels(rho, x) * (_over_space(s * x) - _to_channels(mean, x) * s_1)
        s_p = _over_space(s * p)

        def group_mean(per_channel: Tensor) -> Tensor:
            return per_channel.reshape(len(x), self.groups, -1).sum(-1) / (x[0].numel() // self.groups)

        e_x, e_p = (group_mean(t if w is None else t * w) for t in (s_x, s_p))
        toward_s = -rho * group_mean(v_x)
        if k is None:
            dx, k_x, k_1 = pulled if pull else self._projected(s, x, stats, w)[0], 0 * s_x, 0 * s_1
            dx = dx * _spread(toward_s, x)
        else:
            bent = k.addcmul_(s, _spread(toward_s, x))
            dx, bent_x, bent_1 = self._projected(bent, x, stats, w, sums=True)
            per_channel = _to_channels(toward_s, x)
            k_x, k_1 = bent_x - per_channel * s_x, bent_1 - per_channel * s_1
        factor = rho.square() * e_p
        dx.addcmul_(p, _spread(-rho * e_x, x)).addcmul_(x, _spread(-factor, x)).add_(_spread(factor * mean, x))
        dw = (s_p + k_x).sum(0) if wanted[1] else None
        return pushed, (pulled if pull else None,), (dx, dw, k_1.sum(0) if wanted[2] else None)


def _silu_derivatives(z: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU′ = s + z s(1 − s) and SiLU″ = s(1 − s)(2 + z(1 − 2s)), with s the sigmoid."""
    s = torch.sigmoid(z)
    slope = (1 - s).mul_(s)
    first = torch.addcmul(s, z, slope)
    return first, s.mul_(-2).add_(1).mul_(z).add_(2).mul_(slope)


def _channels(parameter: Tensor, x: Tensor) -> Tensor:
    """``(C,)`` that broadcasts over ``(B, C, *space)``."""
    return parameter.reshape(-1, *[1] * (x.ndim - 2))


def _over_space(x: Tensor) -> Tensor:
    """Sums ``(B, C)`` over the space of ``(B, C, *space)``."""
    return x.flatten(2).sum(-1) if x.ndim > 2 else x


def _to_channels(statistic: Tensor, x: Tensor) -> Tensor:
    """``(B, G)`` repeated for each channel, ``(B, C)``."""
    return statistic.repeat_interleave(x.shape[1] // statistic.shape[1], dim=1)


def _spread(statistic: Tensor, x: Tensor) -> Tensor:
    """``(B, G)`` that broadcasts over ``(B, C, *space)``."""
    return _to_channels(statistic, x).reshape(*x.shape[:2], *[1] * (x.ndim - 2))


def _apply(x: Tensor, num_groups: int, weight: Maybe, bias: Maybe, eps: float, *, has_silu: bool) -> Tensor:
    if x.ndim < 2 or num_groups < 1 or x.shape[1] % num_groups:
        raise ValueError(
            f"num_groups: got {num_groups} for x of shape {tuple(x.shape)}, expected a divisor of its channels, (B, C, ...)"
        )
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != x.shape[1:2]:
            raise ValueError(f"{name}: got shape {tuple(parameter.shape)}, expected ({x.shape[1]},), one for each channel")
    operator = _GroupNorm(num_groups, eps, has_silu)
    # Statistics of half precision are taken in float32, as torch's own kernels do.
    wide = torch.promote_types(x.dtype, torch.float32)
    point = x.to(wide).contiguous()
    parameters = [p if p is None else p.to(wide) for p in (weight, bias)]
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
