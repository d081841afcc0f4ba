"""Directions without labels: those in which h changes most (Local Basis)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import georeg
from georeg.random import Generator
from georeg_diffusion.editing.encoder import Encode


@dataclass(frozen=True)
class LocalBasis:
    """The top singular triplets of the Jacobian of x ↦ h at each x, J vᵢ = σᵢ uᵢ.

    Attributes:
        x_vectors: vᵢ ``(k, B, *event of x)``, tangent to the sphere at x and orthonormal.
        h_vectors: uᵢ ``(k, B, *event of h)``, orthonormal; zero where σᵢ is.
        values: σᵢ ``(B, k)``, descending: how far h moves for a unit of x.
        converged: ``(B, k)``.

    Example:
        >>> import torch
        >>> from georeg_diffusion.editing.local_basis import LocalBasis
        >>> zeros = torch.zeros(1, 1, 3)
        >>> LocalBasis(zeros, zeros, torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)).values.shape
        torch.Size([1, 1])
    """

    x_vectors: Tensor
    h_vectors: Tensor
    values: Tensor
    converged: Tensor


def local_basis(
    encode: Encode,
    x: Tensor,
    k: int,
    *,
    tolerance: float | None = None,
    max_iterations: int = 60,
    chunk_size: int | None = None,
    generator: Generator = None,
    callback: Callable[[Tensor, Tensor], None] | None = None,
) -> LocalBasis:
    """The k directions on the sphere at x in which the encoder stretches most, without ever forming J.

    v maximises ‖J v‖ over unit tangents; a singular vector has no sign of its own, and here its largest number is
    positive, so that a direction does not depend on where the iteration began.

    Args:
        encode: x ``(B, ...)`` ↦ h ``(B, ...)``, such as :func:`georeg_diffusion.editing.encoder.encoder_at` gives it.
        x: ``(B, ...)``.
        k: from 1 to min(dim x − 1, dim h).
        tolerance, max_iterations, chunk_size, generator, callback: see :func:`georeg.diagnostics.top_singular`.

    Raises:
        ValueError: k out of range; NaN or inf.

    References:
        Choi et al. 2021, Do not escape from the manifold: discovering the local coordinates on the latent space of GANs.

    Example:
        >>> import torch
        >>> from georeg_diffusion.editing.local_basis import local_basis
        >>> x = torch.tensor([[0.0, 0.0, 1.0]])
        >>> basis = local_basis(lambda x: x * torch.tensor([1.0, 2.0, 9.0]), x, 1)      # 9 is radial
        >>> basis.x_vectors.round(decimals=4).flatten().abs().tolist(), round(float(basis.values), 4)
        ([0.0, 1.0, 0.0], 2.0)
    """
    top = georeg.diagnostics.top_singular(
        encode,
        x,
        k,
        domain=georeg.Sphere(),
        tolerance=tolerance,
        max_iterations=max_iterations,
        chunk_size=chunk_size,
        generator=generator,
        callback=callback,
    )
    v = with_sign(top.vectors.to(x.dtype))
    return LocalBasis(v, _images(encode, x, v, top.values, chunk_size), top.values, top.converged)


def with_sign(vectors: Tensor) -> Tensor:
    """Vectors ``(k, B, ...)``, each with the sign that makes its number of largest size positive."""
    flat = vectors.flatten(2)
    largest = flat.gather(2, flat.abs().argmax(2, keepdim=True))
    return (flat * torch.where(largest < 0, -1.0, 1.0).to(flat.dtype)).reshape(vectors.shape)


def _images(encode: Encode, x: Tensor, v: Tensor, values: Tensor, chunk_size: int | None) -> Tensor:
    """uᵢ = J vᵢ/‖J vᵢ‖, zero where σᵢ is no more than rounding."""
    with torch.no_grad():
        pushed = georeg.linearize(encode, x, chunk_size=chunk_size, detach_x=True).jvp(v)
    rounding = 10 * torch.finfo(pushed.dtype).eps * values[:, :1]
    lost = (values <= rounding).T.reshape(len(v), len(x), *(1,) * (pushed.ndim - 2))
    length = torch.linalg.vector_norm(pushed, dim=tuple(range(2, pushed.ndim)), keepdim=True)
    return torch.where(lost, 0, pushed / torch.where(length > 0, length, 1))
