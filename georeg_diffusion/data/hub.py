"""Data sets of Hugging Face's ``datasets``: from the hub, a local folder, or what ``save_to_disk`` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from georeg_diffusion.data.images import Images
from georeg_diffusion.data.metadata import COLUMNS, Captions
from georeg_diffusion.data.transform import Transform, channels_of
from georeg_diffusion.errors import RunError, UsageError

_LOOKED_AT = 16


class HubImages(Images):
    """The images of a data set with their captions and classes, decoded as they are drawn.

    Args:
        dataset: a ``datasets.Dataset``, as :func:`open_dataset` gives it.
        resolution: height and width.
        name: what to call it in tables.
        channels: 1 (grey) or 3 (RGB); None is 1 where the first 16 images are all grey, else 3.
        center_crop: crop the centre; otherwise a random window in training.
        random_flip: flip left to right with probability 1/2 in training.
        image_column: of the images; None takes the first column that holds some.
        caption_column: of the captions; None takes ``text``, ``caption`` or ``prompt``, whichever there is.

    Raises:
        UsageError: a column that is not there, or that holds something else.
        RunError: an empty data set, or one without images.
    """

    def __init__(
        self,
        dataset: Any,
        resolution: int,
        *,
        name: str = "the data set",
        channels: int | None = None,
        center_crop: bool = False,
        random_flip: bool = True,
        image_column: str | None = None,
        caption_column: str | None = None,
    ) -> None:
        self.name, self.resolution, self.dataset = name, resolution, dataset
        if not len(dataset):
            raise RunError(f"--dataset-name: {name} is empty")
        kinds = {column: type(feature).__name__ for column, feature in dataset.features.items()}
        self.column = _column("--image-column", image_column, [c for c in kinds if kinds[c] == "Image"], kinds)
        if self.column is None:
            raise RunError(f"--dataset-name: {name} has no column of images, but {', '.join(kinds)}")
        self._pictures = dataset.select_columns([self.column])  # nothing else is read, nor decoded
        texts = [c for c in kinds if _is_text(dataset.features[c])]
        spoken = [c for c in COLUMNS if c in texts]
        caption = _column("--caption-column", caption_column, texts, kinds) if caption_column else next(iter(spoken), None)
        self.captions = None if caption is None else _Captions(dataset, caption)
        classes = [c for c in kinds if kinds[c] == "ClassLabel"]
        labels = None if not classes else torch.as_tensor(np.asarray(dataset.with_format("numpy")[classes[0]][:]))
        self.labels = labels
        if channels is None:
            channels = channels_of(self._picture(i).mode for i in range(min(_LOOKED_AT, len(dataset))))
        self.channels = channels
        self.random_flip = random_flip
        self.transform = Transform(resolution, channels, center_crop, random_flip)

    def __len__(self) -> int:
        return len(self.dataset)

    def fingerprint(self) -> str:
        known = getattr(self.dataset, "_fingerprint", None)
        return f"{known} {self.column} {len(self)}" if known else super().fingerprint()

    def image(self, index: int, rng: np.random.Generator | None = None) -> Tensor:
        return self.transform(self._picture(index), rng)

    def _picture(self, index: int) -> Image.Image:
        try:
            picture = self._pictures[index][self.column]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RunError(f"cannot read image {index} of {self.name}: {reason}") from error
        if not isinstance(picture, Image.Image):
            raise RunError(f"image {index} of {self.name} is {'missing' if picture is None else repr(picture)[:60]}")
        return picture


class _Captions(Sequence[Captions]):
    """The captions of a data set, read as they are asked for."""

    def __init__(self, dataset: Any, column: str) -> None:
        self.texts = dataset.select_columns([column])
        self.column = column

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        value = self.texts[index][self.column]
        values = value if isinstance(value, list) else [value]
        return tuple(text for text in values if text is not None)


def open_dataset(name: str, *, config_name: str | None = None, split: str = "train", cache_dir: Path | None = None) -> Any:
    """A split of a data set.

    Args:
        name: an id on the hub, a local folder of any kind that ``datasets.load_dataset`` reads, or one that
            ``save_to_disk`` wrote.
        config_name: of a data set with several configurations.
        split: such as ``"train"`` or ``"train[:1000]"``.
        cache_dir: where downloads go; default the one of ``datasets``.

    Raises:
        RunError: ``datasets`` is not installed; the data set cannot be had, with the reason.
        UsageError: it has no such split.
    """
    try:
        import datasets
    except ImportError as error:
        raise RunError("--dataset-name needs the library datasets: pip install 'georeg[data]'") from error
    folder = Path(name)
    datasets.disable_progress_bars()
    try:
        if any((folder / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(name)
            if hasattr(found, "keys"):
                if split not in found:
                    raise UsageError(f"--dataset-split: got {split!r}, expected one of {', '.join(found)}")
                found = found[split]
        else:
            cache = None if cache_dir is None else str(cache_dir)
            found = datasets.load_dataset(name, config_name, split=split, cache_dir=cache)
    except UsageError:
        raise
    except Exception as error:  # a hub that does not answer, a damaged file and a wrong name raise all sorts of things
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if "split" in reason.lower() and "unknown" in reason.lower():
            raise UsageError(f"--dataset-split: {reason}") from error
        raise RunError(
            f"--dataset-name: cannot load {name}: {reason} (expected an id on the hub, which needs the network or a filled "
            "cache, or a local folder)"
        ) from error
    return found


def _column(flag: str, wanted: str | None, fitting: list[str], kinds: dict[str, str]) -> str | None:
    if wanted is None:
        return fitting[0] if fitting else None
    if wanted not in fitting:
        what = f"which holds {kinds[wanted]}" if wanted in kinds else "which is not there"
        raise UsageError(f"{flag}: got {wanted!r}, {what}; expected one of {', '.join(fitting) or 'none in this data set'}")
    return wanted


def _is_text(feature: Any) -> bool:
    inner = getattr(feature, "feature", feature)
    return getattr(inner, "dtype", None) in ("string", "large_string")
