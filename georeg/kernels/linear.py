"""The linear layer, for the one pass of the domain side that it need not make.

J v without a Jᵀu before it takes the graph of Jᵀu at u = 0 (:mod:`georeg.linearize.reverse`). The rules of this package
know that all its products are zero; torch's matrix products compute them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from georeg.kernels.mode import autocast
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
        return nn.functional.linear(x, w, b), ()

    def pullback(
        self, c: Tensor, primals: Sequence[Any], stats: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Maybe, ...]:
        x, w, _ = primals
        db = c.flatten(0, -2).sum(0) if wanted[2] else None
        return c @ w if wanted[0] else None, self._outer(c, x) if wanted[1] else None, db

    def pushforward(self, tangents: Sequence[Maybe], primals: Sequence[Any], stats: Sequence[Tensor]) -> Tensor:
        (v,) = tangents
        assert v is not None  # the only point
        return nn.functional.linear(v, primals[1])

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
        pushed = self.pushforward(tangents, primals, stats) if push else None
        return pushed, (c @ primals[1] if pull else None,), (None, self._outer(c, v) if wanted[1] else None, None)

    def _outer(self, c: Tensor, x: Tensor) -> Tensor:
        return c.flatten(0, -2).mT @ x.flatten(0, -2)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, whose pullback at zero costs nothing; small products are left to torch.

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
    tensors = [t for t in (input, weight, bias) if t is not None]
    is_dense = all(t.layout == torch.strided and not t.is_nested for t in tensors)
    if not is_dense or input.ndim < 2 or weight.ndim != 2 or input.numel() * len(weight) < LEAST_WORK:
        return nn.functional.linear(input, weight, bias)
    operator: Operator = _Linear()
    return operator(*autocast(input, weight, bias))
