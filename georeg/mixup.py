"""Latents between and a little beyond the data: where a decoder's geometry is worth regularising."""

from __future__ import annotations

import torch
from torch import Tensor


def mixup_latents(z: Tensor, eta: float = 0.2, *, generator: torch.Generator | None = None) -> Tensor:
    """Random points α z_i + (1−α) z_π(i) with α ~ U[−η, 1+η] and π a random permutation.

    Args:
        z: latents ``(B, ...)``; their graph is kept.
        eta: η ≥ 0, how far beyond each pair, as a share of its distance; 0.2 in the paper.
        generator: seeds π and α.

    Returns:
        ``(B, ...)``.

    Raises:
        ValueError: a negative or non-finite η.

    Example:
        >>> import torch, georeg
        >>> georeg.mixup_latents(torch.randn(8, 2), 0.2, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([8, 2])

    References:
        Lee et al. 2021, Regularized autoencoders for isometric representation learning, section 4.
    """
    if not 0 <= eta < float("inf"):
        raise ValueError(f"eta: got {eta}, expected a number ≥ 0, such as 0.2")
    device = z.device if generator is None else generator.device
    partner = torch.randperm(len(z), generator=generator, device=device).to(z.device)
    alpha = torch.rand(len(z), generator=generator, device=device) * (1 + 2 * eta) - eta
    alpha = alpha.to(z).reshape(-1, *(1,) * (z.ndim - 1))
    return alpha * z + (1 - alpha) * z[partner]
