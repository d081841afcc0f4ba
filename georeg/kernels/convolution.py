"""Convolution, closed under differentiation: the three functions below are each other's derivatives.

y = w ∗ x is bilinear, and so are its transposes: the gradient of the input, ḡ ↦ wᵀ∗ḡ, and that of the weight,
(ḡ, x) ↦ ḡ ⋆ x. PyTorch's own second derivative always computes a weight gradient, also where a Jacobian product
throws it away: one encoder pass in seven of an isometry step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from georeg.kernels.function import Rule
from georeg.kernels.mode import autocast, in_functorch, skips, zero_cotangents


@dataclass(frozen=True)
class Geometry:
    """How a kernel is laid over its input."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        no_output_padding = (0,) * len(self.stride)
        arguments = (self.stride, self.padding, self.dilation, False, no_output_padding, self.groups)
        return torch.convolution(x, weight, bias, *arguments)

    def backward(self, g: Tensor, x: Tensor, weight: Tensor, which: int) -> Tensor:
        arguments = (self.stride, self.padding, self.dilation, False, (0,) * len(self.stride), self.groups)
        mask = [which == 0, which == 1, False]
        return torch.ops.aten.convolution_backward(g, x, weight, None, *arguments, mask)[which]


class _Convolution(Rule):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        return geometry.forward(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.geometry = inputs
        ctx.set_materialize_grads(False)
        # vmap has one list of axes for both, so both must save alike.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] or in_functorch() else None, weight, bias)
        ctx.save_for_forward(x, weight, bias)
        ctx.shape, ctx.output_shape = tuple(x.shape), tuple(output.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Any, ...]:
        if g is None:
            return None, None, None, None
        x, weight, bias = ctx.saved_tensors
        dx = _InputGradient.apply(g, weight, ctx.shape, ctx.geometry) if ctx.needs_input_grad[0] else None
        dw = db = None
        if ctx.needs_input_grad[1] and not skips(weight):
            dw = _WeightGradient.apply(g, x, tuple(weight.shape), ctx.geometry)
        if ctx.needs_input_grad[2] and not skips(bias):
            db = g.sum(dim=(0, *range(2, g.ndim)))
        return dx, dw, db, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, db: Tensor | None, _: None) -> Tensor:
        x, weight, _bias = ctx.saved_tensors
        terms = []
        if dx is not None:
            terms.append(_Convolution.apply(dx, weight, None, ctx.geometry))
        if dw is not None:
            terms.append(_Convolution.apply(x, dw, None, ctx.geometry))
        if db is not None:
            terms.append(db.reshape(-1, *[1] * (weight.ndim - 2)).expand(ctx.output_shape))
        return sum(terms[1:], terms[0])


class _InputGradient(Rule):
    """ḡ ↦ wᵀ ∗ ḡ."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, weight: Tensor, shape: tuple[int, ...], geometry: Geometry) -> Tensor:
        if zero_cotangents():
            return g.new_zeros(()).expand(shape)
        return geometry.backward(g, g.new_empty(shape), weight, 0)  # of which only the shape is read

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, weight, ctx.shape, ctx.geometry = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g if ctx.needs_input_grad[1] or in_functorch() else None, weight)
        ctx.save_for_forward(g, weight)

    @staticmethod
    def backward(ctx: Any, v: Tensor | None) -> tuple[Any, ...]:
        if v is None:
            return None, None, None, None
        g, weight = ctx.saved_tensors
        dg = _Convolution.apply(v, weight, None, ctx.geometry) if ctx.needs_input_grad[0] else None
        dw = None
        if ctx.needs_input_grad[1] and not skips(weight):
            dw = _WeightGradient.apply(g, v, tuple(weight.shape), ctx.geometry)
        return dg, dw, None, None

    @staticmethod
    def jvp(ctx: Any, dg: Tensor | None, dw: Tensor | None, *_: None) -> Tensor:
        g, weight = ctx.saved_tensors
        terms = []
        if dg is not None:
            terms.append(_InputGradient.apply(dg, weight, ctx.shape, ctx.geometry))
        if dw is not None:
            terms.append(_InputGradient.apply(g, dw, ctx.shape, ctx.geometry))
        return sum(terms[1:], terms[0])


class _WeightGradient(Rule):
    """(ḡ, x) ↦ ḡ ⋆ x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, x: Tensor, shape: tuple[int, ...], geometry: Geometry) -> Tensor:
        return geometry.backward(g, x, x.new_empty(shape), 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, x, ctx.shape, ctx.geometry = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, x)
        ctx.save_for_forward(g, x)

    @staticmethod
    def backward(ctx: Any, w: Tensor | None) -> tuple[Any, ...]:
        if w is None:
            return None, None, None, None
        g, x = ctx.saved_tensors
        dg = _Convolution.apply(x, w, None, ctx.geometry) if ctx.needs_input_grad[0] else None
        dx = _InputGradient.apply(g, w, tuple(x.shape), ctx.geometry) if ctx.needs_input_grad[1] else None
        return dg, dx, None, None

    @staticmethod
    def jvp(ctx: Any, dg: Tensor | None, dx: Tensor | None, *_: None) -> Tensor:
        g, x = ctx.saved_tensors
        terms = []
        if dg is not None:
            terms.append(_WeightGradient.apply(dg, x, ctx.shape, ctx.geometry))
        if dx is not None:
            terms.append(_WeightGradient.apply(g, dx, ctx.shape, ctx.geometry))
        return sum(terms[1:], terms[0])


def _each(value: int | tuple[int, ...], count: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * count if len(values) == 1 else values


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    """``torch.nn.functional.conv1d``, ``conv2d`` or ``conv3d``, with derivatives that do no more than is asked for.

    Inside a Jacobian product of :func:`georeg.linearize` no gradient of a weight that is a leaf is computed; PyTorch's
    second derivative of a convolution always computes one.

    Args:
        input: x ``(B, C, *space)``, or ``(C, *space)``.
        weight: ``(C_out, C / groups, *kernel)``.
        bias: ``(C_out,)`` or None.
        stride, padding, dilation, groups: as of torch's own; padding may be ``"same"`` or ``"valid"``.

    Raises:
        RuntimeError: from torch, sizes that do not fit.
        ValueError: an unknown padding; ``"same"`` with a stride.

    Example:
        >>> import torch
        >>> from georeg.kernels import convolution
        >>> x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
        >>> torch.equal(convolution(x, weight, padding=1), torch.nn.functional.conv2d(x, weight, padding=1))
        True
    """
    x, weight, bias = autocast(input, weight, bias)
    n = weight.ndim - 2
    steps, spread = _each(stride, n), _each(dilation, n)
    if isinstance(padding, str):
        if padding not in ("same", "valid") or (padding == "same" and any(s != 1 for s in steps)):
            raise ValueError(
                f"padding: got {padding!r} with stride {stride}, expected numbers, 'valid', or 'same' at stride 1"
            )
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(spread, weight.shape[2:], strict=True)]
        if any(t % 2 for t in total):  # an even kernel needs one more on the right
            x = pad(x, [side for t in reversed(total) for side in (t // 2, t - t // 2)])
            total = [0] * n
        padding = tuple(t // 2 for t in total)
    geometry = Geometry(steps, _each(padding, n), spread, groups)
    if x.ndim == n + 1:
        return _Convolution.apply(x.unsqueeze(0), weight, bias, geometry).squeeze(0)
    return _Convolution.apply(x, weight, bias, geometry)
