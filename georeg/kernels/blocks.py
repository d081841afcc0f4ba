"""What attention's operators share: blocks of L × S matrices that stay in the cache, and formulas on one block.

``p`` is a block of P = softmax(S), ``c`` a cotangent, E = c vᵀ, and Ṡ the scores' tangent; D = Σ P E = Σ c y and m = Σ P Ṡ
by rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from georeg.kernels.rules import Maybe

NARROW = 16
"""A large matrix times rows of fewer numbers is taken as its transpose: on a CPU, rows of 8 take four times as long."""


@dataclass(frozen=True)
class Blocks:
    """How heads and rows go together: several heads with all their rows, or some rows of one head.

    Args:
        size, rows, columns: of all matrices, ``(N, L, S)``.
        budget: entries of one block.
    """

    size: int
    rows: int
    columns: int
    budget: int

    @staticmethod
    def of(block_bytes: int, like: Tensor, columns: int) -> Blocks:
        """Blocks of so many bytes, for the rows of ``like``, ``(N, L, ...)``."""
        return Blocks(len(like), like.shape[1], columns, block_bytes // like.element_size())

    @property
    def length(self) -> int:
        return min(max(self.budget // max(self.columns, 1), 1), self.rows)

    @property
    def heads(self) -> int:
        return min(max(self.budget // max(self.columns * self.rows, 1), 1), self.size)

    def by_rows(self, tensor: Tensor) -> list[Tensor]:
        """Of ``(N, L, ...)``, the part of each block."""
        by_heads = tensor.split(self.heads)
        if self.length == self.rows:
            return list(by_heads)
        return [part for heads in by_heads for part in heads.split(self.length, 1)]

    def by_keys(self, tensor: Tensor) -> list[Tensor]:
        """Of ``(N, ...)`` without rows, the part of each block."""
        return [heads for heads in tensor.split(self.heads) for _ in range(0, self.rows, self.length)]

    def starts(self) -> list[int]:
        """The first row of each block."""
        return [i for _ in range(0, self.size, self.heads) for i in range(0, self.rows, self.length)]

    def walk(
        self, rows: Sequence[Maybe], keys: Sequence[Maybe], like: Tensor, count: int
    ) -> Iterator[tuple[int, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]]:
        """Each block's first row, its parts of tensors by rows and by keys (empty for None), and matrices to work in.

        The matrices are the same for all blocks: memory of this size costs more to obtain than to compute with.
        """
        starts, nothing = self.starts(), like.new_empty(0)
        work = like.new_empty(count, self.heads, self.length, self.columns)
        by_rows = [[nothing] * len(starts) if t is None else self.by_rows(t) for t in rows]
        by_keys = [[nothing] * len(starts) if t is None else self.by_keys(t) for t in keys]
        for start, r, k in zip(starts, zip(*by_rows, strict=True), zip(*by_keys, strict=True), strict=True):
            heads, length = r[0].shape[:2]
            is_whole = heads == self.heads and length == self.length
            yield start, r, k, (work if is_whole else work[:, :heads, :length]).unbind()


def filled(tangents: Sequence[Maybe], primals: Sequence[Tensor]) -> list[Tensor]:
    """The tangents, zeros where there is none."""
    return [torch.zeros_like(p) if t is None else t for t, p in zip(tangents, primals, strict=True)]


def row_means(c: Tensor, y: Tensor) -> Tensor:
    """D, a number a row."""
    return (c * y).sum(-1, keepdim=True)


def more_(to: Tensor, a: Tensor, b: Tensor, scale: float = 1.0, *, beta: int = 1) -> Tensor:
    """to = beta·to + scale·a b. Not by ``baddbmm_``, which torch's flop counter does not see."""
    return torch.baddbmm(to, a, b, beta=beta, alpha=scale, out=to)


def put_(to: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """to = scale·a b, in place and in one product."""
    return more_(to, a, b, scale, beta=0)


def is_tall(tensor: Tensor) -> bool:
    """Whether ``(N, L, width)`` lies by columns, as features of images do."""
    return tensor.stride(1) == 1 and tensor.stride(2) != 1


def tall(rows: int, like: Tensor) -> Tensor:
    """Memory for ``(N, rows, width)``, of like's width, by columns. It is no view: forward mode takes none for an output."""
    size, _, width = like.shape
    return like.new_empty_strided((size, rows, width), (rows * width, 1, rows))


def laid_out(rows: int, like: Tensor) -> Tensor:
    """The same, laid out as ``like`` is, unless its rows are narrow."""
    if is_tall(like) or like.shape[2] < NARROW:
        return tall(rows, like)
    return like.new_empty(len(like), rows, like.shape[2])


def across_(to: Tensor, a: Tensor, b: Tensor, scale: float = 1.0, *, beta: int = 0) -> Tensor:
    """to = beta·to + scale·a b of a large a, into memory from :func:`laid_out`."""
    if is_tall(to):
        more_(to.mT, b.mT, a.mT, scale, beta=beta)
        return to
    return more_(to, a, b, scale, beta=beta)


def down_(to: Tensor, start: int, matrix: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    """Add scale·matrixᵀ right in place, into memory from :func:`tall`, or put it there for the first rows.

    Transposed, so that the large factor is read along its rows.
    """
    more_(to.mT, right.mT, matrix, scale, beta=1 if start else 0)
    return to


def beside(a: Tensor, b: Tensor) -> Tensor:
    """(a, b), the features of one beside those of the other."""
    return torch.cat([a.mT, b.mT], 1).mT if is_tall(a) else torch.cat([a, b], -1)


def mask_future_(scores: Tensor, first: int) -> Tensor:
    """In place, −∞ for what a causal row does not see, of rows of which the first is number ``first``."""
    rows = torch.arange(first, first + scores.shape[-2], device=scores.device).unsqueeze(1)
    return scores.masked_fill_(torch.arange(scores.shape[-1], device=scores.device) > rows, -torch.inf)


def softmax_(scores: Tensor, out: Maybe = None) -> Tensor:
    """P, by default in place of S: in one pass, which takes as long as the exponentials alone."""
    return torch.ops.aten._softmax.out(scores, -1, False, out=scores if out is None else out)


def spread(c: Tensor, v: Tensor, minus_means: Tensor, out: Tensor) -> Tensor:
    """E − D, what a cotangent is for P less its mean by rows; P times it is A, what it is for S."""
    return torch.baddbmm(minus_means, c, v.mT, out=out)


def weighed_(matrix: Tensor, p: Tensor, out: Maybe = None) -> Tensor:
    """P (matrix − Σ P matrix) by rows, the derivative of a softmax, in one pass."""
    out = matrix if out is None else out
    return torch.ops.aten._softmax_backward_data.out(matrix, p, -1, p.dtype, grad_input=out)


def centred_(matrix: Tensor, p: Tensor, out: Maybe = None) -> Tensor:
    """matrix − P Σ matrix by rows."""
    return torch.addcmul(matrix, p, matrix.sum(-1, keepdim=True), value=-1, out=matrix if out is None else out)


def bent_(f: Tensor, moved: Tensor, centred: Tensor, p: Tensor, out: Maybe = None) -> Tensor:
    """Z, the derivative by S of B = ⟨c, Ṗ v + P v̇⟩ = Σ P (E − D)(Ṡ − m) + Σ P F; ``f``, F = c v̇ᵀ, is used up.

    D m drops out, since rows of Ṗ sum to 0. So Z = R − P Σ R, rows, with R = Ṗ (E − D) + P F.
    """
    return centred_(f.mul_(p).addcmul_(moved, centred), p, out)
