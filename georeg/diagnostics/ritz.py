"""Extreme eigenpairs of a self-adjoint operator from products with it: block Lanczos, one problem for each sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from georeg.estimators.base import moment_dtype
from georeg.manifolds.base import MetricAt
from georeg.random import Generator

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RitzPairs:
    """Approximate eigenpairs of R, best first.

    Attributes:
        values: Rayleigh quotients θ ``(B, k)``.
        vectors: v ``(k, B, *event)``, orthonormal in the metric.
        residuals: ‖R v − θ v‖ ``(B, k)`` in the metric: an eigenvalue lies at most this far from θ.
        scale: the largest Rayleigh quotient that was seen, ``(B,)``.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    scale: Tensor


def _gram(a: Tensor, b: Tensor) -> Tensor:
    """⟨a_i, b_j⟩ ``(B, p, q)`` of vectors ``(p, B, *event)`` and covectors ``(q, B, *event)``."""
    return torch.einsum("pbn,qbn->bpq", a.flatten(2) if a.ndim > 2 else a.unsqueeze(2), b.reshape(*b.shape[:2], -1))


def _mix(vectors: Tensor, weights: Tensor) -> Tensor:
    """Σ_p vectors_p weights_pq: ``(q, B, *event)`` from ``(p, B, *event)`` and ``(B, p, q)``."""
    mixed = torch.einsum("pbn,bpq->qbn", vectors.reshape(*vectors.shape[:2], -1), weights)
    return mixed.reshape(weights.shape[-1], *vectors.shape[1:])


def _orthonormal(block: Tensor, basis: Tensor | None, space: MetricAt, generator: Generator) -> Tensor:
    """The block orthonormalised in the metric, against the basis and within; lost columns are drawn anew."""
    for _ in range(3):  # "twice is enough"; a third time for the columns that the second drew
        # The metric does not see what leaves the tangent space, and normalising a small block magnifies it.
        block = space.manifold.proju(space.x, block)
        lowered = space.flat(block)
        before = _gram(block, lowered).diagonal(dim1=1, dim2=2)
        if basis is not None:
            block = block - _mix(basis, _gram(basis, lowered))
        values, rotation = torch.linalg.eigh(_gram(block, space.flat(block)))
        lost = values <= 1e-20 * before.amax(1, keepdim=True)
        block = _mix(block, rotation * torch.where(lost, 0, values.clamp_min(1e-300).rsqrt()).unsqueeze(1))
        fresh = space.random_tangent(len(block), generator).to(block.dtype)
        block = block + _mix(fresh, torch.diag_embed(lost.to(block.dtype)))
    return block


def ritz(
    operator: Operator,
    space: MetricAt,
    k: int,
    *,
    smallest: bool = False,
    done: Callable[[RitzPairs], Tensor],
    max_iterations: int,
    generator: Generator = None,
) -> RitzPairs:
    """The k largest (or smallest) eigenpairs of an operator R that is self-adjoint in a metric.

    Rayleigh–Ritz on a basis that grows by the residuals R v − θ v of a block of Ritz vectors, which spans
    what block Lanczos spans, with full reorthogonalisation and thick restarts. The block is wider than k,
    so that equal eigenvalues, which an isometry has, are all found.

    Args:
        operator: ``(p, B, *event)`` ↦ ``(p, B, *event)``, tangent to tangent.
        space: the metric.
        k: pairs, at most ``space.dim``.
        smallest: look for the smallest instead.
        done: whether a sample needs no more iterations, ``(B,)``.
        max_iterations: each applies R to one block.
        generator: seeds the start.
    """
    dtype = moment_dtype(space.x)
    width = min(space.dim, k + 4)
    block = _orthonormal(space.random_tangent(width, generator).to(dtype), None, space, generator)
    basis, image = block[:0], block[:0]
    small = block.new_zeros(block.shape[1], 0, 0)
    for iteration in range(max_iterations):
        pushed = operator(block).to(dtype)
        basis, image = torch.cat([basis, block]), torch.cat([image, pushed])
        columns = _gram(basis, space.flat(pushed))
        grown = torch.nn.functional.pad(small, (0, len(block), 0, len(block)))
        grown[:, :, -len(block) :] = columns
        grown[:, -len(block) :, :] = columns.mT
        small = grown
        theta, mixing = torch.linalg.eigh((small + small.mT) / 2)
        if not smallest:
            theta, mixing = theta.flip(1), mixing.flip(2)
        vectors = _mix(basis, mixing[..., :width])
        residual = _mix(image, mixing[..., :width]) - _mix(vectors, torch.diag_embed(theta[:, :width]))
        norms = _gram(residual, space.flat(residual)).diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        pairs = RitzPairs(theta[:, :k], vectors[:k], norms[:, :k], theta.amax(1))
        room = min(width, space.dim - len(basis))
        if bool(done(pairs).all()) or room == 0 or iteration == max_iterations - 1:
            break
        if len(basis) + room > 6 * width:
            kept = mixing[..., : 2 * width]
            basis, image, small = _mix(basis, kept), _mix(image, kept), torch.diag_embed(theta[:, : 2 * width])
        block = _orthonormal(residual[:room], basis, space, generator)
    return pairs
