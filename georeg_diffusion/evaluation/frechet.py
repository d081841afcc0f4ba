"""The Fréchet distance between two sets of features."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """‖μ₁ − μ₂‖² + Tr(C₁ + C₂ − 2 (C₁C₂)^½) of Gaussians fitted to features ``(N, F)`` and ``(M, F)``, float64.

    Tr (C₁C₂)^½ is the sum of the roots of the eigenvalues of C₁^½ C₂ C₁^½, which is symmetric: no matrix square root
    of a product is taken (scipy's warns, and turns complex, on singular covariances).

    Raises:
        ValueError: fewer than two samples in a set.

    References:
        Heusel et al. 2017. The number depends on the features: it is an FID only for Inception's.
    """
    for name, features in (("a", a), ("b", b)):
        if len(features) < 2:
            raise ValueError(f"{name}: got {len(features)} samples, expected at least 2")
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    mean = (a.mean(0) - b.mean(0)).square().sum()
    return float(mean + cov_a.trace() + cov_b.trace() - 2 * overlap)
