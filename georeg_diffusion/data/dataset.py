"""Any torch ``Dataset`` as a training set, through the Python API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from georeg_diffusion.data.images import Images
from georeg_diffusion.data.metadata import COLUMNS, Captions
from georeg_diffusion.data.transform import Transform, channels_of
from georeg_diffusion.errors import RunError

_IMAGE_KEYS = ("image", "images", "pixel_values", "img")
_LABEL_KEYS = ("label", "labels", "class_labels")


class DatasetImages(Images):
    """A map-style torch ``Dataset`` whose items are images, ``(image, label)`` or mappings with an image in them.

    An image is a Pillow picture, an array ``(H, W)`` or ``(H, W, C)`` of 8 bits, or a tensor ``(C, H, W)``: 8 bits, or
    floats in ``value_range``. Do not flip or crop at random in the data set itself: what each draw gets would no longer
    follow from the seed.

    Args:
        dataset: with ``len`` and items by number.
        resolution: height and width.
        name: what to call it in tables.
        channels: 1 (grey) or 3 (RGB); None takes the first item's.
        center_crop: crop the centre; otherwise a random window in training.
        random_flip: flip left to right with probability 1/2 in training.
        value_range: of float tensors: (0, 1), as ``ToTensor`` makes them, or (−1, 1).
        captions: of each image, or one tuple of captions for each; None takes a mapping's ``text``, ``caption`` or
            ``prompt``.
        labels: class of each image ``(N,)``; None takes the items' own.

    Raises:
        RunError: an empty data set; an item that is no image, or whose floats lie outside ``value_range``.
        TypeError: a data set without length or items by number.
        ValueError: another range; other channels; captions or labels of another number.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from georeg_diffusion.data.dataset import DatasetImages
        >>> images = DatasetImages(TensorDataset(torch.rand(4, 3, 12, 10)), 8)
        >>> images.batch(range(4)).shape
        torch.Size([4, 3, 8, 8])
    """

    def __init__(
        self,
        dataset: Any,
        resolution: int,
        *,
        name: str | None = None,
        channels: int | None = None,
        center_crop: bool = False,
        random_flip: bool = True,
        value_range: tuple[float, float] = (0.0, 1.0),
        captions: Sequence[str | Captions] | None = None,
        labels: Sequence[int] | Tensor | None = None,
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise TypeError(
                f"dataset: got {type(dataset).__name__}, expected a map-style Dataset with len(dataset) and dataset[i]"
            )
        if tuple(value_range) not in ((0, 1), (-1, 1)):
            raise ValueError(f"value_range: got {value_range}, expected (0, 1) or (-1, 1)")
        if channels not in (None, 1, 3):
            raise ValueError(f"channels: got {channels}, expected 1 or 3")
        self.dataset, self.resolution, self.value_range = dataset, resolution, value_range
        self.name = name or type(dataset).__name__
        if not len(dataset):
            raise RunError(f"{self.name} is empty")
        for what, values in (("captions", captions), ("labels", labels)):
            if values is not None and len(values) != len(dataset):
                raise ValueError(f"{what}: got {len(values)} for {len(dataset)} images, expected one for each")
        first = dataset[0]
        picture = self._picture(0, first)
        self.channels = channels or (channels_of([picture.mode]) if isinstance(picture, Image.Image) else len(picture))
        self.random_flip = random_flip
        self.transform = Transform(resolution, self.channels, center_crop, random_flip)
        self.labels = torch.as_tensor(labels) if labels is not None else self._labels(first)
        key = next((k for k in COLUMNS if isinstance(first, Mapping) and k in first), None)
        self.captions = captions if captions is not None else None if key is None else _Captions(dataset, key)

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int, rng: np.random.Generator | None = None) -> Tensor:
        try:
            item = self.dataset[index]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RunError(f"cannot read item {index} of {self.name}: {reason}") from error
        picture = self._picture(index, item)
        return self.transform(picture, rng) if isinstance(picture, Image.Image) else self.transform.of_tensor(picture, rng)

    def _picture(self, index: int, item: Any) -> Image.Image | Tensor:
        """A picture, or a tensor ``(C, H, W)`` in [−1, 1]."""
        if isinstance(item, Mapping):
            key = next((k for k in _IMAGE_KEYS if k in item), None)
            if key is None:
                raise RunError(f"item {index} of {self.name} has {', '.join(map(str, item))}, expected {_IMAGE_KEYS[0]}")
            item = item[key]
        elif isinstance(item, (tuple, list)) and len(item):
            item = item[0]
        if (
            isinstance(item, np.ndarray)
            and item.dtype == np.uint8
            and item.size
            and (item.ndim == 2 or (item.ndim == 3 and item.shape[2] in (1, 3, 4)))
        ):
            return Image.fromarray(item[..., 0] if item.shape[2:] == (1,) else item)
        if isinstance(item, Image.Image):
            return item
        is_image = isinstance(item, Tensor) and (item.ndim == 2 or (item.ndim == 3 and len(item) in (1, 3)))
        if not is_image or not item.numel():
            shape = f" of shape {tuple(item.shape)}" if hasattr(item, "shape") else ""
            what = f"a {type(item).__name__}{shape}"
            raise RunError(f"item {index} of {self.name} is {what}, expected an image (1 or 3, H, W)")
        pixels = item if item.ndim == 3 else item[None]
        if pixels.dtype == torch.uint8:
            return pixels.float() / 127.5 - 1
        if not pixels.is_floating_point():
            raise RunError(f"item {index} of {self.name} is of {pixels.dtype}, expected uint8 or floats")
        low, high = self.value_range
        least, most = float(pixels.min()), float(pixels.max())
        if not (low - 1e-3 <= least and most <= high + 1e-3):
            raise RunError(
                f"item {index} of {self.name} runs from {least:.3g} to {most:.3g}, expected [{low:g}, {high:g}]; wrap the "
                "data set yourself, DatasetImages(dataset, resolution, value_range=(-1, 1)), if that is its range"
            )
        return pixels.float() * 2 - 1 if low == 0 else pixels.float()

    def _labels(self, first: Any) -> Tensor | None:
        """The class of each item; of torchvision's data sets and ``TensorDataset`` without decoding the images."""
        targets = getattr(self.dataset, "targets", None)
        if targets is None and hasattr(self.dataset, "tensors") and len(self.dataset.tensors) > 1:
            targets = self.dataset.tensors[1]
        if targets is None and isinstance(first, Mapping) and any(k in first for k in _LABEL_KEYS):
            key = next(k for k in _LABEL_KEYS if k in first)
            targets = [int(self.dataset[i][key]) for i in range(len(self.dataset))]
        if targets is None:
            return None
        try:
            labels = torch.as_tensor(targets)
        except (TypeError, ValueError, RuntimeError):
            return None  # boxes, sentences and the like
        is_class = labels.ndim == 1 and len(labels) == len(self.dataset) and not labels.is_floating_point()
        return labels if is_class else None


class _Captions(Sequence[Captions]):
    """The captions that a data set's items carry."""

    def __init__(self, dataset: Any, key: str) -> None:
        self.dataset, self.key = dataset, key

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        value = self.dataset[index].get(self.key)
        return () if value is None else (value,) if isinstance(value, str) else tuple(value)
