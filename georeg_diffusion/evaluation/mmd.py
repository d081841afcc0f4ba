"""The unbiased squared maximum mean discrepancy of KID, with its cubic polynomial kernel."""

from __future__ import annotations

import torch
from torch import Tensor


def polynomial_mmd(a: Tensor, b: Tensor) -> float:
    """MMD² of features ``(N, F)`` and ``(M, F)`` with k(x, y) = (xᵀy/F + 1)³, unbiased, float64.

    Σ_{i≠j} k(aᵢ, aⱼ)/N(N−1) + Σ_{i≠j} k(bᵢ, bⱼ)/M(M−1) − 2 Σ k(aᵢ, bⱼ)/NM. Being unbiased, it can be negative.

    Raises:
        ValueError: fewer than two samples in a set, or features of different sizes.

    Example:
        >>> import torch
        >>> from georeg_diffusion.evaluation.mmd import polynomial_mmd
        >>> polynomial_mmd(torch.zeros(3, 4), torch.ones(5, 4))          # k = 1 and 8 within, 1 across
        7.0

    References:
        Gretton et al. 2012, eq. 3; Bińkowski et al. 2018, Demystifying MMD GANs.
    """
    for name, features in (("a", a), ("b", b)):
        if len(features) < 2:
            raise ValueError(f"{name}: got {len(features)} samples, expected at least 2")
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"b: got features of shape {tuple(b.shape[1:])}, expected a's, {tuple(a.shape[1:])}")
    a, b = a.double(), b.double()
    return _within(a) + _within(b) - 2 * _kernel_sum(a, b) / (len(a) * len(b))


def subset_mmd(a: Tensor, b: Tensor, *, subsets: int, subset_size: int, generator: torch.Generator) -> float:
    """Mean of :func:`polynomial_mmd` over random subsets of both sets, which is how KID is usually quoted.

    The spread over these subsets is not the standard error of the mean: they overlap.

    Args:
        a, b: features ``(N, F)`` and ``(M, F)``.
        subsets: how many.
        subset_size: at most N and M.
        generator: of the subsets, on the CPU.

    Raises:
        ValueError: a subset larger than a set, or of fewer than two.
    """
    smaller = min(len(a), len(b))
    if not 2 <= subset_size <= smaller:
        raise ValueError(
            f"subset_size: got {subset_size}, expected 2 to {smaller}, the smaller of {len(a)} and {len(b)} samples"
        )
    values = []
    for _ in range(subsets):
        rows_a = torch.randperm(len(a), generator=generator)[:subset_size]
        rows_b = torch.randperm(len(b), generator=generator)[:subset_size]
        values.append(polynomial_mmd(a[rows_a], b[rows_b]))
    return sum(values) / len(values)


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    """Σᵢⱼ k(aᵢ, bⱼ), in strips, so that 50,000 samples need no 20 GB matrix."""
    return sum(float((strip @ b.T / b.shape[1] + 1).pow(3).sum()) for strip in a.split(4096))


def _within(x: Tensor) -> float:
    diagonal = float((x.square().sum(1) / x.shape[1] + 1).pow(3).sum())
    return (_kernel_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))
