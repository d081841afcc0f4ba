"""Directions for all samples at once: the mean of their local subspaces."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from georeg_diffusion.editing.grassmann import frechet_mean
from georeg_diffusion.editing.local_basis import with_sign


@dataclass(frozen=True)
class GlobalBasis:
    """Directions shared by all samples.

    Attributes:
        vectors: ``(k, 1, ...)``, orthonormal; the first is stretched most on average.
        values: root-mean-square stretch of each by the samples' local bases ``(1, k)``.
        angles: principal angles of each sample's subspace to the mean, in radians ``(N, k)``: near π/2 the samples agree
            on nothing, and a global direction means little.
        converged: whether the mean was found.

    Example:
        >>> import torch
        >>> from georeg_diffusion.editing.global_basis import GlobalBasis
        >>> GlobalBasis(torch.zeros(1, 1, 3), torch.zeros(1, 1), torch.zeros(4, 1), True).vectors.shape
        torch.Size([1, 1, 3])
    """

    vectors: Tensor
    values: Tensor
    angles: Tensor
    converged: bool


def global_basis(vectors: Tensor, values: Tensor) -> GlobalBasis:
    """The Fréchet mean M of N local subspaces, with a basis in the order of how much they stretch.

    M is only a subspace. Its basis diagonalises the mean of Mᵀ(Σᵢ σᵢ² vᵢvᵢᵀ)M over the samples.

    Args:
        vectors: orthonormal local bases ``(k, N, ...)``, those in x or those in h of
            :class:`georeg_diffusion.editing.local_basis.LocalBasis`.
        values: σ ``(N, k)``.

    Raises:
        ValueError: shapes that do not go together; vectors that are not orthonormal.

    References:
        Choi et al. 2021, Do not escape from the manifold, Sec. 4.

    Example:
        >>> import torch
        >>> from georeg_diffusion.editing.global_basis import global_basis
        >>> local = torch.eye(4)[:2].unsqueeze(1).expand(-1, 5, -1)            # five samples agree
        >>> found = global_basis(local, torch.tensor([[3.0, 1.0]]).expand(5, -1))
        >>> found.vectors.squeeze(1).round(decimals=4).tolist(), found.values.round(decimals=4).tolist()
        ([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], [[3.0, 1.0]])
    """
    if vectors.ndim < 3 or tuple(values.shape) != (vectors.shape[1], len(vectors)):
        raise ValueError(
            f"values: got shape {tuple(values.shape)} for vectors {tuple(vectors.shape)}, expected (N, k) for (k, N, ...)"
        )
    bases = vectors.flatten(2).permute(1, 2, 0).to(torch.float64)
    mean = frechet_mean(bases)
    stretched = (mean.basis.mT @ bases) * values.to(bases).unsqueeze(1)
    metric = (stretched @ stretched.mT).mean(0)
    squares, turn = torch.linalg.eigh(metric)
    turned = (mean.basis @ turn.flip(1)).mT.unsqueeze(1).reshape(len(vectors), 1, *vectors.shape[2:])
    values = squares.flip(0).clamp_min(0).sqrt().unsqueeze(0)
    return GlobalBasis(with_sign(turned).to(vectors.dtype), values, mean.angles, mean.converged)
