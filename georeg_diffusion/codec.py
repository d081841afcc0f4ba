"""Between pixels and latents: diffusers' autoencoders with their scaling factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def encode(codec: Any, images: Tensor) -> Tensor:
    """Latents (z − shift)·scale of images ``(B, C, H, W)`` in [−1, 1].

    z is the mode of AutoencoderKL's posterior, or VQModel's latent before it is quantised. The codec keeps its
    device and precision; latents come back in the images'.
    """
    out = codec.encode(_for(codec, images))
    # AutoencoderKL, then VQModel and AutoencoderTiny, then AutoencoderDC.
    names = [name for name in ("latent_dist", "latents", "latent") if hasattr(out, name)]
    z = out.latent_dist.mode() if names[0] == "latent_dist" else getattr(out, names[0])
    scale, shift = _scaling(codec)
    return (z.to(images) - shift) * scale


def decode(codec: Any, latents: Tensor) -> Tensor:
    """Images ``(B, C, H, W)`` of latents: the inverse of :func:`encode`."""
    scale, shift = _scaling(codec)
    images: Tensor = codec.decode(_for(codec, latents / scale + shift)).sample
    return images.to(latents)


def _scaling(codec: Any) -> tuple[float, float]:
    """Scale and shift; a codec without them has latents of unit size already."""
    scale, shift = codec.config.get("scaling_factor"), codec.config.get("shift_factor")
    return (1.0 if scale is None else float(scale)), (0.0 if shift is None else float(shift))


def _for(codec: Any, tensor: Tensor) -> Tensor:
    parameter: Tensor = next(codec.parameters(), torch.empty(0, dtype=tensor.dtype, device=tensor.device))
    return tensor.to(parameter)
