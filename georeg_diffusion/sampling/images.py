"""Image files as a model's samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from georeg_diffusion.backbones import unwrapped
from georeg_diffusion.bundle import Bundle
from georeg_diffusion.data.folder import UnreadableImage, printable, read_picture
from georeg_diffusion.data.transform import to_pixels
from georeg_diffusion.errors import RunError


def image_shape(bundle: Bundle) -> tuple[int, int, int]:
    """Channels, height and width of the images that a model makes: x_t's, or those its codec decodes to.

    Example:
        >>> from georeg_diffusion import Bundle
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.sampling.images import image_shape
        >>> unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        ...     norm_num_groups=4, block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2)
        >>> image_shape(Bundle(unet, diffusers.DDPMScheduler()))
        (1, 8, 8)
    """
    channels, height, width = bundle.sample_shape
    if bundle.codec is None:
        return channels, height, width
    config = unwrapped(bundle.codec).config
    blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels") or (1,)
    scale = 2 ** (len(blocks) - 1)
    return int(config.get("in_channels", 3)), height * scale, width * scale


def writable_shape(bundle: Bundle) -> tuple[int, int, int]:
    """:func:`image_shape` of a model whose images can be files.

    Raises:
        RunError: images of other channels than grey or RGB, such as latents without their autoencoder.
    """
    shape = image_shape(bundle)
    if shape[0] not in (1, 3):
        raise RunError(
            f"this model makes images of {shape[0]} channels, expected 1 (grey) or 3 (RGB); a network of latents needs its "
            "autoencoder, so pass the folder of the whole pipeline"
        )
    return shape


def require_finite(images: Tensor, names: Sequence[str]) -> Tensor:
    """Images or latents ``(B, ...)`` as they are.

    Raises:
        RunError: NaN or infinity, with the names of the rows.

    Example:
        >>> import torch
        >>> from georeg_diffusion.sampling.images import require_finite
        >>> require_finite(torch.tensor([[1.0], [float("nan")]]), ["seed 0", "seed 1"])
        Traceback (most recent call last):
        georeg_diffusion.errors.RunError: seed 1: the model's result is not finite; --dtype float32 or more steps may help
    """
    is_bad = (~torch.isfinite(images)).flatten(1).any(dim=1).tolist()
    if any(is_bad):
        bad = ", ".join(printable(Path(name)) for name, wrong in zip(names, is_bad, strict=True) if wrong)
        raise RunError(f"{bad}: the model's result is not finite; --dtype float32 or more steps may help")
    return images


def read_image(file: Path | str, bundle: Bundle) -> Tensor:
    """An image file ``(1, C, H, W)`` in [−1, 1] at the model's size: its centre, scaled.

    Raises:
        RunError: naming the file that is missing or does not decode; a model of images other than grey or RGB.
    """
    file = Path(file)
    channels, height, width = writable_shape(bundle)
    if not file.is_file():
        raise RunError(f"{printable(file)} {'is not a file' if file.exists() else 'does not exist'}, expected an image")
    try:
        picture = read_picture(file, channels)
    except UnreadableImage as error:
        raise RunError(f"cannot read {printable(file)}: {error}") from error
    return to_pixels(ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR))[None]
