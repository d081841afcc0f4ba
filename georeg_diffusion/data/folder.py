"""A folder of images in any format that Pillow reads."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from georeg_diffusion.data.images import Images
from georeg_diffusion.errors import RunError
from georeg_diffusion.progress import track

_SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
_READ_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class ImageFolder(Images):
    """Every image below a folder, resized on its short side and cropped to a square.

    Args:
        folder: searched through, in sorted order, without following links to folders.
        resolution: height and width.
        channels: 1 (grey) or 3 (RGB).
        center_crop: crop the centre; otherwise a random window in training.
        random_flip: flip left to right with probability 1/2 in training.
        strict: refuse an unreadable image instead of leaving it out.

    Attributes:
        skipped: the files that were left out, with the reason.

    Raises:
        RunError: the folder is missing or holds no readable image; with ``strict``, any unreadable one, by name.
    """

    def __init__(
        self,
        folder: Path,
        resolution: int,
        *,
        channels: int = 3,
        center_crop: bool = False,
        random_flip: bool = True,
        strict: bool = False,
    ) -> None:
        if not folder.is_dir():
            raise RunError(f"--train-data-dir: {folder} {'is not a folder' if folder.exists() else 'does not exist'}")
        found = sorted(
            Path(place) / name
            for place, _, names in os.walk(folder)
            for name in names
            if Path(name).suffix.lower() in _SUFFIXES and not name.startswith(".")
        )
        if not found:
            raise RunError(f"--train-data-dir: {folder} holds no image (.png, .jpg, .webp, …)")
        self.name, self.resolution, self.channels = folder.resolve().name, resolution, channels
        self.center_crop, self.random_flip = center_crop, random_flip
        self.files: list[Path] = []
        self.skipped: list[tuple[Path, str]] = []
        for file in track(found, "Reading images", len(found)):
            reason = _unreadable(file)
            if reason is None:
                self.files.append(file)
            elif strict:
                raise RunError(f"--strict: cannot read {printable(file)}: {reason}")
            else:
                self.skipped.append((file, reason))
        if not self.files:
            file, reason = self.skipped[0]
            raise RunError(
                f"--train-data-dir: none of the {len(found)} images in {folder} can be read; the first, "
                f"{printable(file)}: {reason}"
            )

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int, rng: np.random.Generator | None = None) -> Tensor:
        file = self.files[index]
        try:
            picture = read_picture(file, self.channels)
        except UnreadableImage as error:
            raise RunError(f"cannot read {printable(file)} any more: {error}") from error
        scale = self.resolution / min(picture.size)
        size = (max(round(picture.width * scale), self.resolution), max(round(picture.height * scale), self.resolution))
        picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        spare = np.array(size) - self.resolution
        corner = spare // 2 if rng is None or self.center_crop else rng.integers(spare + 1)
        left, top = (int(c) for c in corner)
        picture = picture.crop((left, top, left + self.resolution, top + self.resolution))
        pixels = to_pixels(picture)
        return pixels.flip(-1) if self.random_flip and rng is not None and rng.random() < 0.5 else pixels


class UnreadableImage(Exception):  # noqa: N818 (what it is, said by the reason it carries)
    """A file that does not decode to an image."""


def read_picture(file: Path, channels: int) -> Image.Image:
    """An image upright, in 8 bits, grey (1 channel) or RGB (3); transparency lies on white.

    Raises:
        UnreadableImage: with the reason.
    """
    try:
        with Image.open(file) as opened:
            return _eight_bit(ImageOps.exif_transpose(opened)).convert("L" if channels == 1 else "RGB")
    except _READ_ERRORS as error:
        raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error


def to_pixels(picture: Image.Image) -> Tensor:
    """``(C, H, W)`` in [−1, 1] of a grey or RGB picture."""
    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1)
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _eight_bit(picture: Image.Image) -> Image.Image:
    """16-bit grey would be clipped to white by Pillow's own conversion; transparency is laid on white."""
    if picture.mode.startswith("I;16") or picture.mode == "I":
        return Image.fromarray((np.asarray(picture, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture


def _unreadable(file: Path) -> str | None:
    """Why an image cannot be decoded, or None. Decoding the whole file finds truncation, which a header hides."""
    try:
        with Image.open(file) as opened:
            opened.load()
    except _READ_ERRORS as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def printable(file: Path) -> str:
    """A path as text, whatever bytes its name is made of."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")
