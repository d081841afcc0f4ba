"""The linear layer, for the pass that it need not make and the copies that it need not take.

J v without a Jᵀu before it takes the graph of Jᵀu at u = 0 (:mod:`georeg.linearize.reverse`). The rules of this package
know that all its products are zero; torch's matrix products compute them.

The pixels of an image as a sequence, ``(B, L, C)``, lie in memory by channels, ``(B, C, L)``. Torch copies them by rows, for
each layer and each derivative; here the product is taken from the left, wxᵀ, and its result lies as x does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from georeg.kernels.mode import autocast, in_functorch
from georeg.kernels.rules import Maybe, Operator

LEAST_WORK = 2**24
"""Multiply-adds of a product that costs more than the rule, which is Python, does."""


@dataclass(frozen=True)
class _Linear(Operator):
    """y = x wᵀ + b, of x ``(B, ..., in)``; in x and w bilinear, so that B(c, v) = ⟨c, v wᵀ⟩."""

    points: ClassVar[int] = 1
    parameters: ClassVar[int] = 2

    def plain(self, x: Tensor, w: Tensor, b: Maybe) -> Tensor:
        return nn.functional.linear(x, w, b)

    def forward(self, x: Tensor, w: Tensor, b: Maybe) -> tuple[Tensor, tuple[Tensor, ...]]:
        return _product(x, w, b), ()

    def pullback(
        self, c: Tensor, primals: Sequence[Any], stats: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Maybe, ...]:
        x, w, _ = primals
        c = _laid_out_like(c, x)
        db = c.sum(tuple(range(c.ndim - 1))) if wanted[2] else None
        return _product(c, w.mT) if wanted[0] else None, _outer(c, x) if wanted[1] else None, db

    def pushforward(self, tangents: Sequence[Maybe], primals: Sequence[Any], stats: Sequence[Tensor]) -> Tensor:
        (v,) = tangents
        assert v is not None  # the only point
        return _product(v, primals[1])

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
        """∂B/∂w = cᵀ v, and nothing for x and b."""
        (v,) = tangents
        assert v is not None  # the only point
        c = _laid_out_like(c, v)
        pushed = self.pushforward(tangents, primals, stats) if push else None
        return pushed, (_product(c, primals[1].mT) if pull else None,), (None, _outer(c, v) if wanted[1] else None, None)


def is_dense(x: Tensor) -> bool:
    """Whether x has strides at all."""
    return x.layout == torch.strided and not x.is_nested


def is_by_channels(x: Tensor) -> bool:
    """Whether x ``(B, ..., C)`` lies in memory as ``(B, C, ...)`` does."""
    return x.ndim > 2 and not x.is_contiguous() and x.movedim(-1, 1).is_contiguous()


def _columns(x: Tensor) -> Tensor:
    """``(B, C, L)``, a view of x that lies by channels."""
    return x.movedim(-1, 1).flatten(2)


def _laid_out_like(c: Tensor, x: Tensor) -> Tensor:
    return c.movedim(-1, 1).contiguous().movedim(1, -1) if is_by_channels(x) else c.contiguous()


def _product(x: Tensor, w: Tensor, b: Maybe = None) -> Tensor:
    """x wᵀ + b, laid out as x is."""
    if not is_by_channels(x) or in_functorch():  # vmap, over weights, knows no out=
        return nn.functional.linear(x, w, b)
    length, width = x.stride(-1), len(w)
    y = x.new_empty_strided((*x.shape[:-1], width), (length * width, *x.stride()[1:]))
    weights = w.expand(len(x), *w.shape)
    if b is None:
        torch.bmm(weights, _columns(x), out=_columns(y))
    else:
        torch.baddbmm(b.unsqueeze(1), weights, _columns(x), out=_columns(y))
    return y


def _outer(c: Tensor, x: Tensor) -> Tensor:
    """cᵀ x, summed over the batch, of two that are laid out alike."""
    if is_by_channels(x):
        return torch.bmm(_columns(c), _columns(x).mT).sum(0)
    return c.flatten(0, -2).mT @ x.flatten(0, -2)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, whose pullback at zero costs nothing; small products are left to torch.

    Of an input that lies by channels, as the transpose of ``(B, in, L)`` does, the output does too, and nothing is copied.

    Args:
        input: x ``(B, ..., in)``.
        weight: w ``(out, in)``.
        bias: b ``(out,)`` or None.

    Raises:
        RuntimeError: from torch, sizes or dtypes that do not fit.

    Example:
        >>> import torch
        >>> from georeg.kernels.linear import linear
        >>> x, weight = torch.randn(2, 3), torch.randn(4, 3)
        >>> torch.equal(linear(x, weight), torch.nn.functional.linear(x, weight))
        True
    """
    have_strides = all(is_dense(t) for t in (input, weight, bias) if t is not None)
    if not have_strides or input.ndim < 2 or weight.ndim != 2 or input.numel() * len(weight) < LEAST_WORK:
        return nn.functional.linear(input, weight, bias)
    operator: Operator = _Linear()
    return operator(*autocast(input, weight, bias))
