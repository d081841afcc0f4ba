"""A folder of images in any format that Pillow reads."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from georeg_diffusion.data.images import Images
from georeg_diffusion.data.metadata import read_captions
from georeg_diffusion.data.transform import Transform, as_mode, channels_of
from georeg_diffusion.errors import RunError
from georeg_diffusion.progress import track

_SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
_LOOKED_AT = 64
_MOST_PIXELS = 2**28  # above what Pillow opens, and 0.8 GB in RGB


class ImageFolder(Images):
    """Every image below a folder, resized on its short side and cropped to a square; see :class:`Transform`.

    Captions come from ``metadata.jsonl`` (:func:`georeg_diffusion.data.metadata.read_captions`); where every image lies in
    a folder of its class, the folders' names in sorted order are the labels.

    A file that is no image, is damaged, or would take more memory than any photograph is left out and named, and so is a
    folder that cannot be listed: the set is never smaller without a word.

    Args:
        folder: searched through, in sorted order, without following links to folders.
        resolution: height and width.
        channels: 1 (grey) or 3 (RGB); None is 1 where the first 64 images are all grey, else 3.
        center_crop: crop the centre; otherwise a random window in training.
        random_flip: flip left to right with probability 1/2 in training.
        strict: refuse an unreadable image instead of leaving it out.
        caption_column: key of the captions in ``metadata.jsonl``.

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
        channels: int | None = 3,
        center_crop: bool = False,
        random_flip: bool = True,
        strict: bool = False,
        caption_column: str | None = None,
    ) -> None:
        if not folder.is_dir():
            raise RunError(f"--train-data-dir: {folder} {'is not a folder' if folder.exists() else 'does not exist'}")
        hidden: list[OSError] = []
        found = sorted(
            Path(place) / name
            for place, _, names in os.walk(folder, onerror=hidden.append)
            for name in names
            if Path(name).suffix.lower() in _SUFFIXES and not name.startswith(".")
        )
        self.skipped: list[tuple[Path, str]] = [(Path(e.filename), e.strerror or str(e)) for e in hidden]
        if strict and self.skipped:
            raise RunError(f"--strict: cannot list {printable(self.skipped[0][0])}: {self.skipped[0][1]}")
        if not found:
            told = "".join(f"; {printable(place)}: {reason}" for place, reason in self.skipped[:1])
            raise RunError(f"--train-data-dir: {printable(folder)} holds no image (.png, .jpg, .webp, …){told}")
        self.folder, self.name, self.resolution = folder, printable(Path(folder.resolve().name)), resolution
        self.files: list[Path] = []
        for file, reason in track(zip(found, _reasons(found, resolution), strict=True), "Reading images", len(found)):
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
        self.channels = channels or channels_of(_mode(file) for file in self.files[:_LOOKED_AT])
        self.random_flip = random_flip
        self.transform = Transform(resolution, self.channels, center_crop, random_flip)
        self.captions = read_captions(folder, self.files, caption_column)
        self.labels = _labels(folder, self.files)

    def __len__(self) -> int:
        return len(self.files)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for file in self.files:  # names, sizes and dates: reading millions of files would take hours
            status = file.stat()
            digest.update(f"{file} {status.st_size} {status.st_mtime_ns}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def listing(self) -> str:
        digest = hashlib.sha256()
        for file in self.files:  # names alone: copies of one data set on several machines differ in path and date
            digest.update(os.fsencode(file.relative_to(self.folder)) + b"\0")
        return digest.hexdigest()

    def image(self, index: int, rng: np.random.Generator | None = None) -> Tensor:
        file = self.files[index]
        try:
            return self.transform(read_picture(file, self.channels), rng)
        except UnreadableImage as error:
            raise RunError(f"cannot read {printable(file)} any more: {error}") from error


class UnreadableImage(Exception):  # noqa: N818 (what it is, said by the reason it carries)
    """A file that does not decode to an image."""


def read_picture(file: Path, channels: int) -> Image.Image:
    """An image upright, in 8 bits, grey (1 channel) or RGB (3); transparency lies on white.

    Raises:
        UnreadableImage: with the reason.
    """
    try:
        with _opened(file) as opened:
            return as_mode(opened, channels)
    except Exception as error:  # a damaged file makes decoders raise almost anything, MemoryError among it
        raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """A picture, by a decoder that does nothing but decode, whatever the file's name says that it is."""
    if not file.is_file():  # opening a pipe would wait for ever
        raise OSError("it is no regular file" if file.exists() else "it is a link to nowhere")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # names no file; twice that size is an error
        with Image.open(file) as opened:
            if opened.format == "EPS":
                raise OSError("it is PostScript, a program, which is not run")  # Pillow has Ghostscript run it
            yield opened


def _mode(file: Path) -> str:
    with _opened(file) as opened:
        return opened.mode


def _labels(folder: Path, files: list[Path]) -> Tensor | None:
    """Number of each image's first folder below ``folder``; None where some image is in none, or all are in one."""
    parts = [file.relative_to(folder).parts for file in files]
    if any(len(part) < 2 for part in parts):
        return None
    names = {name: number for number, name in enumerate(sorted({part[0] for part in parts}))}
    return torch.tensor([names[part[0]] for part in parts]) if len(names) > 1 else None


def _reasons(files: list[Path], resolution: int) -> Iterator[str | None]:
    """Of each file why it cannot be decoded, or None; by several threads, since Pillow decodes outside Python's lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for first in range(0, len(files), 256):
            part = files[first : first + 256]
            yield from pool.map(_unreadable, part, [resolution] * len(part))


def _unreadable(file: Path, resolution: int) -> str | None:
    """Why an image cannot be used, or None. Decoding the whole file finds truncation, which a header hides."""
    try:
        with _opened(file) as opened:
            long, short = max(opened.size), max(min(opened.size), 1)
            if resolution * resolution * (long // short) > _MOST_PIXELS:
                return f"its sides of {opened.width} × {opened.height} cannot be resized to {resolution} on the short one"
            opened.load()
    except Exception as error:  # as in read_picture
        return " ".join(str(error).split()) or type(error).__name__
    return None


def printable(file: Path) -> str:
    """A path as text, whatever bytes its name is made of."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")
