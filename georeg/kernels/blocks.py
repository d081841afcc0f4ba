"""What attention's operators share: blocks of L × S matrices that stay in the cache, and formulas on one block.

``p`` is a block of P = softmax(S), ``c`` a cotangent, E = c vᵀ, and Ṡ the scores' tangent; D = Σ P E and m = Σ P Ṡ by rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from georeg.kernels.rules import Maybe


def blocks(budget: int, like: Tensor, rows: int, columns: int, count: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Heads and rows that go together, several heads or some rows of one, with ``count`` L × S matrices to work in.

    The matrices are the same for all blocks: memory of this size costs more to obtain than to compute with.

    Args:
        budget: bytes of one of the matrices.
        like: a tensor of the same dtype and device, heads in front.
    """
    size, entries = len(like), max(budget // max(columns * like.element_size(), 1), 1)
    heads, length = min(max(entries // rows, 1), size), min(entries, rows)
    matrices = like.new_empty(count, heads, length, columns)
    for n in range(0, size, heads):
        for i in range(0, rows, length):
            yield slice(n, n + heads), slice(i, i + length), matrices[:, : size - n, : rows - i]


def transposed(matrix: Tensor, right: Tensor) -> Tensor:
    """matrixᵀ right, in the order in which the large factor is read along its rows."""
    return torch.bmm(right.mT, matrix).mT


def filled(tangents: Sequence[Maybe], primals: Sequence[Tensor]) -> list[Tensor]:
    """The tangents, zeros where there is none."""
    return [torch.zeros_like(p) if t is None else t for t, p in zip(tangents, primals, strict=True)]


def mask_future_(scores: Tensor, first: int) -> Tensor:
    """In place, −∞ for what a causal row does not see, of rows of which the first is number ``first``."""
    rows = torch.arange(first, first + scores.shape[-2], device=scores.device).unsqueeze(1)
    return scores.masked_fill_(torch.arange(scores.shape[-1], device=scores.device) > rows, -torch.inf)


def scores_tangent(q: Tensor, k: Tensor, tq: Tensor, tk: Tensor, scale: float, out: Maybe = None) -> Tensor:
    """Ṡ = s(q̇ kᵀ + q k̇ᵀ) by one matrix product."""
    return torch.bmm(torch.cat([tq, q], -1).mul_(scale), torch.cat([k, tk], -1).mT, out=out)


def weighted_(scores: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """P v and the logarithm of each row's sum of exponentials; ``scores`` is used up."""
    largest = scores.amax(-1, keepdim=True)
    sums = scores.sub_(largest).exp_().sum(-1, keepdim=True)
    return torch.bmm(scores, v) / sums, largest + sums.log()


def centred_(matrix: Tensor, p: Tensor, out: Maybe = None) -> Tensor:
    """matrix − P Σ matrix by rows: sums over what is in the cache cost less than matrix products would."""
    return torch.addcmul(matrix, p, matrix.sum(-1, keepdim=True), value=-1, out=matrix if out is None else out)


def pulled(c: Tensor, v: Tensor, p: Tensor, out: Tensor) -> Tensor:
    """A = P (E − D), what a cotangent is for the scores."""
    return centred_(torch.bmm(c, v.mT, out=out).mul_(p), p)


def moved_(tangent: Tensor, p: Tensor, out: Tensor) -> Tensor:
    """Ṗ = P (Ṡ − m); ``tangent``, Ṡ, becomes Ṡ − m."""
    tangent.sub_(torch.mul(tangent, p, out=out).sum(-1, keepdim=True))
    return torch.mul(tangent, p, out=out)


def bent_(tangent: Tensor, a: Tensor, p: Tensor, c: Tensor, tv: Tensor, work: Tensor, out: Maybe = None) -> Tensor:
    """Z, the derivative by S of B = ⟨c, Ṗ v + P v̇⟩ = Σ P (E − D)(Ṡ − m) + Σ P F with F = c v̇ᵀ; ``tangent`` is Ṡ − m.

    D m drops out, since rows of Ṗ sum to 0. So Z = R − P Σ R, rows, with R = A (Ṡ − m) + P F.
    """
    return centred_(tangent.mul_(a).addcmul_(p, torch.bmm(c, tv.mT, out=work)), p, out)
