"""Mean and covariance of features, accumulated batch by batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureMoments:
    """Mean and scatter of ``count`` feature vectors, float64 on the CPU; add two to join their sets.

    Attributes:
        count: n.
        mean: μ ``(F,)``.
        scatter: Σ (x − μ)(x − μ)ᵀ ``(F, F)``, joined by Chan's formula: no large sums are subtracted.

    Example:
        >>> import torch
        >>> from georeg_diffusion.evaluation.feature_moments import FeatureMoments
        >>> x = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> both = FeatureMoments.of(x[:4]) + FeatureMoments.of(x[4:])
        >>> both.count, torch.allclose(both.covariance, torch.cov(x.T))
        (9, True)

    References:
        Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> FeatureMoments:
        """Of features ``(N, F)``; N = 0 is allowed.

        Raises:
            ValueError: not a matrix, or a feature that is not finite.
        """
        if features.ndim != 2:
            raise ValueError(f"features: got shape {tuple(features.shape)}, expected (N, F)")
        x = features.detach().double().cpu()
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).any(1).sum())
            raise ValueError(f"features: {bad} of {len(x)} are not finite, expected numbers; look for NaN in the images")
        mean = x.mean(0) if len(x) else torch.zeros(x.shape[1], dtype=torch.float64)
        return cls(len(x), mean, (x - mean).T @ (x - mean))

    def __add__(self, other: FeatureMoments) -> FeatureMoments:
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(shift, shift) * (self.count * other.count / count)
        return FeatureMoments(count, self.mean + shift * (other.count / count), scatter)

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance ``(F, F)``.

        Raises:
            ValueError: fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"features: got {self.count} samples, expected at least 2 for a covariance")
        return self.scatter / (self.count - 1)

    @property
    def rank_bound(self) -> int:
        """Largest rank that the covariance can have: min(F, n − 1)."""
        return min(len(self.mean), self.count - 1)
