"""The Fréchet distance between two sets of features."""

from __future__ import annotations

import torch
from torch import Tensor

from georeg_diffusion.evaluation.feature_moments import FeatureMoments


def symmetric_root(matrix: Tensor) -> Tensor:
    """C^½ of a positive semi-definite matrix, by its eigenvalues; negative ones, which are rounding, count as 0."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def frechet_of_gaussians(
    mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor, *, root_a: Tensor | None = None
) -> float:
    """‖μ₁ − μ₂‖² + Tr(C₁ + C₂ − 2 (C₁C₂)^½), the squared 2-Wasserstein distance of two Gaussians.

    Tr (C₁C₂)^½ is the sum of the roots of the eigenvalues of C₁^½ C₂ C₁^½, which is symmetric: no matrix square root
    of a product is taken (scipy's warns, and turns complex, on singular covariances).

    Args:
        mean_a, mean_b: ``(F,)``.
        cov_a, cov_b: ``(F, F)``, positive semi-definite.
        root_a: C₁^½ where it is known already; half the work.

    Raises:
        ValueError: features of different sizes.

    Example:
        >>> import torch
        >>> from georeg_diffusion.evaluation.frechet import frechet_of_gaussians
        >>> round(frechet_of_gaussians(torch.zeros(2), torch.eye(2), torch.ones(2), 4 * torch.eye(2)), 6)   # 2 + 2 (2 − 1)²
        4.0

    References:
        Dowson & Landau 1982; Heusel et al. 2017.
    """
    if mean_a.shape != mean_b.shape:
        raise ValueError(
            f"mean_b: got {len(mean_b)} features, expected mean_a's {len(mean_a)}; were they made by the same network?"
        )
    mean_a, cov_a, mean_b, cov_b = mean_a.double(), cov_a.double(), mean_b.double(), cov_b.double()
    root = symmetric_root(cov_a) if root_a is None else root_a
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The distance of Gaussians fitted to features ``(N, F)`` and ``(M, F)``, in float64.

    The number depends on the features: it is an FID only for Inception's.

    Raises:
        ValueError: fewer than two samples in a set.
    """
    for name, features in (("a", a), ("b", b)):
        if len(features) < 2:
            raise ValueError(f"{name}: got {len(features)} samples, expected at least 2")
    p, q = FeatureMoments.of(a), FeatureMoments.of(b)
    return frechet_of_gaussians(p.mean, p.covariance, q.mean, q.covariance)
