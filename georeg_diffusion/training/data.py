"""What a run trains on: the images that a configuration names, or those that a caller hands over."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import torch

from georeg_diffusion.data.dataset import DatasetImages
from georeg_diffusion.data.digits import Digits
from georeg_diffusion.data.folder import ImageFolder, printable
from georeg_diffusion.data.hub import HubImages, open_dataset
from georeg_diffusion.data.images import Images
from georeg_diffusion.data.subset import FirstImages
from georeg_diffusion.errors import RunError
from georeg_diffusion.progress import console
from georeg_diffusion.training.config import TrainConfig

_RESOLUTION = 32
_MAX_WORKERS = 4


def open_images(
    config: TrainConfig, given: Any = None, *, channels: int | None = None, resolution: int | None = None
) -> Images:
    """The training images, of the size and the channels that a model takes.

    Args:
        config: names a folder or a data set; neither is scikit-learn's digits.
        given: images or a torch ``Dataset`` to use in place of what the configuration names.
        channels: of the model; None takes the images' own, and RGB for a folder.
        resolution: of the model, where the configuration says nothing.

    Raises:
        UsageError: a column or split that is not there.
        RunError: images that cannot be used.
    """
    size = config.resolution or resolution or _RESOLUTION
    cut: dict[str, Any] = {"center_crop": config.center_crop, "random_flip": config.random_flip is not False}
    if given is not None:
        images: Images = given if isinstance(given, Images) else DatasetImages(given, size, channels=channels, **cut)
    elif config.train_data_dir is not None:
        folder = ImageFolder(
            config.train_data_dir,
            size,
            channels=channels or 3,  # one grey picture more or less must not decide what model is built
            strict=config.strict,
            caption_column=config.caption_column,
            **cut,
        )
        for file, reason in folder.skipped[:10]:
            console.print(f"skipped {printable(file)}: {reason}", style="yellow", markup=False)
        if folder.skipped:
            console.print(f"{len(folder.skipped)} unreadable images skipped, {len(folder)} used", style="yellow")
        images = folder
    elif config.dataset_name is not None:
        dataset = open_dataset(config.dataset_name, config_name=config.dataset_config_name, split=config.dataset_split)
        images = HubImages(
            dataset,
            size,
            name=config.dataset_name,
            channels=channels,
            image_column=config.image_column,
            caption_column=config.caption_column,
            **cut,
        )
    else:
        images = Digits(config.resolution or resolution or 16, random_flip=bool(config.random_flip))
    if config.max_train_samples is not None and config.max_train_samples < len(images):
        images = FirstImages(images, config.max_train_samples)
    return images


def check_listing(images: Images, accelerator: Any) -> None:
    """Make sure that all processes see the same images in the same order.

    A folder that is not the same on every machine, or an image that one of them cannot read, would otherwise have them
    train on other images than the draws' numbers say, without a word.

    Raises:
        RunError: they do not, with each process's number of images.
    """
    if accelerator.num_processes == 1:
        return
    digest = hashlib.sha256(images.listing().encode("utf-8", "surrogateescape")).digest()
    mine = torch.tensor([[int.from_bytes(digest[:7], "big"), len(images)]], device=accelerator.device)
    theirs = accelerator.gather(mine).cpu()
    if len(theirs[:, 0].unique()) > 1:
        numbers = ", ".join(map(str, theirs[:, 1].tolist()))
        raise RunError(
            f"the processes see different images of {images.name} (their numbers: {numbers}); "
            "give every machine the same files, and look at what was skipped (--strict names it)"
        )


def num_workers(config: TrainConfig, images: Images, device: Any) -> int:
    """Processes that load images, as asked for; by default those that keep a GPU busy, and none on a CPU."""
    if config.dataloader_num_workers is not None:
        return config.dataloader_num_workers
    if isinstance(images, Digits) or str(device) == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MAX_WORKERS, max(cores - 1, 0))
