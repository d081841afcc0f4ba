"""Between pixels and latents: diffusers' autoencoders with their scaling factors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from georeg_diffusion._compat import diffusers
from georeg_diffusion.errors import RunError

CODECS = ("AutoencoderKL", "VQModel", "AutoencoderTiny", "AutoencoderDC")


def load_codec(path: str) -> Any:
    """An autoencoder of diffusers, frozen: its own folder, a pipeline that has one, or the hub id of either.

    Raises:
        RunError: there is none, or one of another kind; weights that are not safetensors.
    """
    inside = ("", "vae", "vqvae")
    try:
        if Path(path).is_dir():
            place = next((place for place in inside if (Path(path) / place / "config.json").is_file()), None)
            config = {} if place is None else json.loads((Path(path) / place / "config.json").read_text())
        elif Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") != 1:
            raise RunError(f"--vae: {path} is not a folder, nor a hub id such as stabilityai/sd-vae-ft-mse")
        else:
            place, config = _on_the_hub(path, inside)
        name = config.get("_class_name")
        if place is None or name not in CODECS:
            held = f"it holds a {name}" if name else "no config.json in it, in vae or in vqvae"
            raise RunError(f"--vae: cannot use {path}: {held}; expected {', '.join(CODECS[:-1])} or {CODECS[-1]}")
        codec = getattr(diffusers, name).from_pretrained(path, subfolder=place or None, use_safetensors=True)
    except RunError:
        raise
    except Exception as error:  # a broken folder can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(f"--vae: cannot load {path}: {reason}") from error
    return codec.eval().requires_grad_(False)


def _on_the_hub(path: str, inside: tuple[str, ...]) -> tuple[str | None, dict[str, Any]]:
    failure: OSError | None = None
    for place in inside:
        try:
            return place, dict(diffusers.AutoencoderKL.load_config(path, subfolder=place or None))
        except OSError as error:
            failure = failure or error
    raise failure or OSError(path)


def stride_of(codec: Any) -> int:
    """By how much an autoencoder shrinks height and width.

    Example:
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.codec import stride_of
        >>> stride_of(diffusers.VQModel(block_out_channels=(32, 32), norm_num_groups=8,
        ...     down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2))
        2
    """
    for name in ("spatial_compression_ratio", "spatial_scale_factor"):
        if isinstance(getattr(codec, name, None), int):
            return int(getattr(codec, name))
    channels = codec.config.get("block_out_channels") or codec.config.get("encoder_block_out_channels")
    return int(2 ** (len(channels) - 1))


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
