"""From a picture to what the network trains on: resized, cropped, flipped, in [−1, 1], as diffusers' scripts do it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

_GREY = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Transform:
    """Resize the short side bilinearly, crop a square, flip left to right, scale to [−1, 1].

    Pixel for pixel torchvision's ``Resize``, ``CenterCrop`` or ``RandomCrop``, ``RandomHorizontalFlip``, ``ToTensor``
    and ``Normalize([0.5], [0.5])``, as in diffusers' training scripts; window and flip follow from ``rng`` alone.

    Attributes:
        resolution: height and width.
        channels: 1 (grey) or 3 (RGB).
        center_crop: crop the centre also in training; otherwise a random window.
        random_flip: flip with probability 1/2 in training.

    Example:
        >>> from PIL import Image
        >>> from georeg_diffusion.data.transform import Transform
        >>> Transform(8)(Image.new("L", (20, 30), 255)).shape
        torch.Size([3, 8, 8])
    """

    resolution: int
    channels: int = 3
    center_crop: bool = False
    random_flip: bool = True

    def __call__(self, picture: Image.Image, rng: np.random.Generator | None = None) -> Tensor:
        """``(C, R, R)`` of a picture; with ``rng`` augmented by it, otherwise the centre as it is."""
        picture = as_mode(picture, self.channels)
        size = self._size(picture.width, picture.height)
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling.BILINEAR)
        left, top = self._corner(size, rng)
        return self._flipped(to_pixels(picture.crop((left, top, left + self.resolution, top + self.resolution))), rng)

    def of_tensor(self, image: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """The same of an image ``(C′, H, W)`` that is a tensor in [−1, 1] already."""
        image = _with_channels(image, self.channels)
        width, height = self._size(image.shape[-1], image.shape[-2])
        if (height, width) != tuple(image.shape[-2:]):
            image = torch.nn.functional.interpolate(
                image[None], size=(height, width), mode="bilinear", align_corners=False, antialias=True
            )[0]
        left, top = self._corner((width, height), rng)
        return self._flipped(image[:, top : top + self.resolution, left : left + self.resolution].contiguous(), rng)

    def _size(self, width: int, height: int) -> tuple[int, int]:
        short = min(width, height)
        # Rounded down, as torchvision does: int(R · long / short), in this order.
        return int(self.resolution * width / short), int(self.resolution * height / short)

    def _corner(self, size: tuple[int, int], rng: np.random.Generator | None) -> tuple[int, int]:
        spare = np.array(size) - self.resolution
        if rng is None or self.center_crop:
            return round(spare[0] / 2.0), round(spare[1] / 2.0)
        left, top = rng.integers(spare + 1)
        return int(left), int(top)

    def _flipped(self, image: Tensor, rng: np.random.Generator | None) -> Tensor:
        return image.flip(-1) if self.random_flip and rng is not None and rng.random() < 0.5 else image


def as_mode(picture: Image.Image, channels: int) -> Image.Image:
    """A picture upright, in 8 bits, grey (1 channel) or RGB (3); transparency lies on white."""
    return _eight_bit(ImageOps.exif_transpose(picture)).convert("L" if channels == 1 else "RGB")


def to_pixels(picture: Image.Image) -> Tensor:
    """``(C, H, W)`` in [−1, 1] of a grey or RGB picture."""
    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1)
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def channels_of(modes: Iterable[str]) -> int:
    """1 where all pictures are grey, by their Pillow modes; otherwise 3.

    Example:
        >>> from georeg_diffusion.data.transform import channels_of
        >>> channels_of(["L", "I;16"]), channels_of(["L", "RGB"])
        (1, 3)
    """
    return 1 if all(mode in _GREY for mode in modes) else 3


def _eight_bit(picture: Image.Image) -> Image.Image:
    """16-bit grey would be clipped to white by Pillow's own conversion; transparency is laid on white."""
    if picture.mode.startswith("I;16") or picture.mode == "I":
        return Image.fromarray((np.asarray(picture, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture


def _with_channels(image: Tensor, channels: int) -> Tensor:
    if len(image) == channels:
        return image
    if channels == 3:
        return image[:1].expand(3, -1, -1)
    return torch.tensordot(image.new_tensor(_LUMINANCE), image[:3], dims=1)[None]
