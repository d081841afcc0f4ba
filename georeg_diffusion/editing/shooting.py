"""Geodesic shooting: the step-by-step walk in x that follows a direction in h, a baseline to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

import georeg
from georeg.random import Generator
from georeg_diffusion.editing.encoder import Encode
from georeg_diffusion.editing.local_basis import local_basis
from georeg_diffusion.editing.sphere import exp_map, unit_tangent


def shoot(
    encode: Encode,
    x: Tensor,
    direction: Tensor,
    angle: float,
    num_steps: int,
    *,
    rank: int = 16,
    generator: Generator = None,
) -> Tensor:
    """Walk from x along ``direction``, carrying its image u = J v by parallel transport in h.

    Each step turns x by ``angle`` along v. At the new point the Jacobian's top singular triplets (σᵢ, uᵢ, vᵢ) span the
    tangent space of the encoder's image; transport is approximated by projecting u onto it, and the next v is the tangent
    that J maps there: v ∝ Σᵢ vᵢ ⟨uᵢ, u⟩/σᵢ. Where the encoder is a scaled isometry of a sphere this is one great circle
    (:func:`georeg_diffusion.editing.sphere.exp_map`), which costs no Jacobian at all.

    Args:
        encode: x ↦ h.
        x: ``(B, ...)``.
        direction: ``(B, ...)``, projected onto the tangent space.
        angle: of each step in radians; negative walks the other way.
        num_steps: how many.
        rank: how many singular triplets stand for the tangent space of the image; at most its dimension is used.
        generator: seeds the iterations.

    Returns:
        The path ``(num_steps + 1, B, ...)``, x included, at x's norms.

    Raises:
        ValueError: a negative number of steps, a rank below 1, a direction without a tangent part; NaN.

    References:
        Park et al. 2023, Understanding the latent space of diffusion models through the lens of Riemannian geometry.

    Example:
        >>> import torch
        >>> from georeg_diffusion.editing.shooting import shoot
        >>> x, v = torch.eye(3)[:1], torch.eye(3)[1:2]
        >>> shoot(lambda x: 5 * x, x, v, torch.pi / 4, 2)[-1].round(decimals=4).abs()       # a quarter of a great circle
        tensor([[0., 1., 0.]])
    """
    if num_steps < 0 or rank < 1:
        raise ValueError(f"num_steps, rank: got {num_steps} and {rank}, expected at least 0 and 1")
    v = unit_tangent(x, direction)
    path = [x]
    if not num_steps:
        return torch.stack(path)
    with torch.no_grad():
        h = georeg.linearize(encode, x, detach_x=True)
        u = _unit(h.jvp(v.to(x.dtype).unsqueeze(0))[0])
        rank = min(rank, x[0].numel() - 1, h.value[0].numel())
        for step in range(num_steps):
            x = exp_map(x, angle * _norm(x) * v)
            path.append(x)
            if step + 1 < num_steps:
                basis = local_basis(encode, x, rank, generator=generator)
                along = torch.einsum("kbm,bm->kb", basis.h_vectors.flatten(2), u.flatten(1))
                u = _unit(_sum(along, basis.h_vectors))
                sigma = basis.values.T
                kept = sigma > 1e-4 * sigma[:1]
                v = _unit(_sum(torch.where(kept, along / torch.where(kept, sigma, 1), 0).to(x.dtype), basis.x_vectors))
    return torch.stack(path)


def _sum(weights: Tensor, vectors: Tensor) -> Tensor:
    return torch.einsum("kb,kbn->bn", weights.to(vectors.dtype), vectors.flatten(2)).reshape(vectors.shape[1:])


def _norm(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors.flatten(1), dim=1).reshape(-1, *(1,) * (vectors.ndim - 1))


def _unit(vectors: Tensor) -> Tensor:
    """Of length 1; zero stays zero, and with it the path stays where it is."""
    length = _norm(vectors)
    return vectors / torch.where(length > 0, length, 1)
