"""The real images that a model is compared with: by name, or those it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from georeg_diffusion.data.digits import Digits
from georeg_diffusion.data.folder import ImageFolder
from georeg_diffusion.data.hub import HubImages, open_dataset
from georeg_diffusion.data.images import Images
from georeg_diffusion.errors import RunError, UsageError


def real_images(reference: str | None, model: str, shape: tuple[int, int, int]) -> Images:
    """Real images at a model's size, un-augmented.

    Args:
        reference: ``"digits"``, a folder of images, or None for what the model was trained on.
        model: the model's path; :func:`training_record` reads the run's record beside it.
        shape: channels, height and width of the model's images.

    Raises:
        UsageError: a reference that is neither a folder nor a known name.
        RunError: no images can be had, with the remedy; a folder without readable images.
    """
    record = training_record(model) if reference is None else {}
    name = trained_on(record) if reference is None else reference
    channels, height, width = shape
    if height != width:
        raise RunError(f"--reference: the model makes {height} × {width} images, expected square ones to compare with")
    if name == "digits":
        if channels != 1:
            raise RunError(f"--reference: digits are grey, but the model has {channels} channels; name a folder of images")
        return Digits(height)
    if channels not in (1, 3):
        raise RunError(
            f"--reference: the model makes images of {channels} channels, expected 1 or 3 to compare with a folder"
        )
    if record.get("train_data_dir") is None and record.get("dataset_name") is not None:
        dataset = open_dataset(
            name, config_name=record.get("dataset_config_name"), split=record.get("dataset_split") or "train"
        )
        column = record.get("image_column")
        return HubImages(
            dataset, height, name=name, channels=channels, center_crop=True, random_flip=False, image_column=column
        )
    folder = Path(name)
    if not folder.is_dir():
        if reference is None:
            raise RunError(
                f"the model was trained on {folder}, which is not there any more; name real images by --reference"
            )
        state = "is a file" if folder.is_file() else "does not exist"
        raise UsageError(f"--reference: {folder} {state}, expected a folder of images, digits, or statistics as .npz")
    try:
        return ImageFolder(folder, height, channels=channels, center_crop=True, random_flip=False)
    except RunError as error:
        raise RunError(str(error).replace("--train-data-dir", "--reference")) from error


def trained_on(record: dict[str, Any]) -> str:
    """``"digits"``, the folder or the data set that a run of `train` recorded."""
    return str(record["train_data_dir"] or record.get("dataset_name") or "digits")


def training_record(model: str) -> dict[str, Any]:
    """The options that a run of `train` recorded in ``config.yaml``, in or above the model's folder.

    Raises:
        RunError: there is no such record, or it is damaged.
    """
    folder = Path(model).resolve()
    for place in (folder, *folder.parents[:3]):
        record = place / "config.yaml"
        if not record.is_file():
            continue
        try:
            content = yaml.safe_load(record.read_text())
        except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
            raise RunError(
                f"cannot read {record}: {' '.join(str(error).split())}; name real images by --reference"
            ) from error
        if isinstance(content, dict) and "train_data_dir" in content:
            return content
    raise RunError(f"{model} has no config.yaml beside it that names its training images; name real images by --reference")
