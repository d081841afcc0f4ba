"""Attributes of images in CelebA's format, ``list_attr_celeba.txt``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from georeg_diffusion.data.folder import ImageFolder
from georeg_diffusion.data.images import Images
from georeg_diffusion.errors import RunError


@dataclass(frozen=True)
class Attributes:
    """A table of binary attributes.

    Attributes:
        names: of the K attributes.
        rows: file name ↦ row of ``values``.
        values: ``(N, K)``, 1 where the attribute holds, 0 where not.
    """

    names: tuple[str, ...]
    rows: dict[str, int]
    values: Tensor


def read_attributes(file: Path) -> Attributes:
    """Read CelebA's format, strictly.

    The first line is the number of images, the second the names of the attributes; every other line is a file name
    and 1 or −1 for each attribute.

    Raises:
        RunError: the file is missing, or a line is not in that format, by its number.

    Example:
        >>> import tempfile, pathlib
        >>> from georeg_diffusion.data.attributes import read_attributes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "list_attr_celeba.txt")
        ...     _ = file.write_text("2\\nSmiling Young\\n000001.jpg -1  1\\n000002.jpg  1  1\\n")
        ...     table = read_attributes(file)
        >>> table.names, table.values.tolist()
        (('Smiling', 'Young'), [[0, 1], [1, 1]])
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except OSError as error:
        raise RunError(f"--attributes: cannot read {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RunError(f"--attributes: {file} is no text: {error}; expected CelebA's list_attr_celeba.txt") from error

    def wrong(number: int, what: str) -> RunError:
        return RunError(
            f"--attributes: {file}, line {number}: {what} (expected CelebA's list_attr_celeba.txt: the number of images, "
            "the names of the attributes, then a file name and 1 or -1 for each attribute on every line)"
        )

    if not lines or not lines[0].strip().isdecimal():
        raise wrong(1, f"got {lines[0].strip()[:60]!r}, expected the number of images" if lines else "the file is empty")
    names = tuple(lines[1].split()) if len(lines) > 1 else ()
    if not names:
        raise wrong(2, "no names of attributes")
    if len(set(names)) < len(names):
        raise wrong(2, f"the attribute {next(n for n in names if names.count(n) > 1)} is named twice")
    count = int(lines[0])
    if len(lines) - 2 != count:
        raise wrong(
            len(lines), f"{len(lines) - 2:,} images are listed, but the first line says {count:,}; is the file whole?"
        )
    rows: dict[str, int] = {}
    values = np.empty((count, len(names)), dtype=np.int8)
    for row, line in enumerate(lines[2:]):
        name, *marks = line.split() or [""]
        if len(marks) != len(names):
            raise wrong(row + 3, f"{len(marks)} values, expected one for each of {len(names)} attributes")
        if not set(marks) <= {"1", "-1"}:
            raise wrong(row + 3, f"got {next(m for m in marks if m not in ('1', '-1'))!r}, expected 1 or -1")
        if name in rows:
            raise wrong(row + 3, f"{name} is listed twice")
        rows[name] = row
        values[row] = [mark == "1" for mark in marks]
    return Attributes(names, rows, torch.from_numpy(values).long())


class AttributeImages(Images):
    """A folder of images with their attributes as ``labels (N, K)``.

    Args:
        folder: searched through for images.
        attributes: a file in CelebA's format; it may list more images than there are.
        resolution: height and width.
        channels: 1 or 3.

    Raises:
        RunError: an image without attributes, or two images of one name.
    """

    def __init__(self, folder: Path, attributes: Path, resolution: int, *, channels: int = 3) -> None:
        table = read_attributes(attributes)
        self._images = ImageFolder(folder, resolution, channels=channels, center_crop=True, random_flip=True)
        self.name, self.channels, self.resolution = self._images.name, channels, resolution
        self.names = table.names
        files = [file.name for file in self._images.files]
        absent = [name for name in files if name not in table.rows]
        if absent:
            raise RunError(
                f"--attributes: {attributes} says nothing about {len(absent):,} of the {len(files):,} images in {folder}, "
                f"such as {absent[0]}"
            )
        if len(set(files)) < len(files):
            twice = next(name for name in files if files.count(name) > 1)
            raise RunError(f"--train-data-dir: {folder} holds more than one {twice}, whose attributes are one line")
        self.labels = table.values[[table.rows[name] for name in files]]

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int, rng: np.random.Generator | None = None) -> Tensor:
        return self._images.image(index, rng)
