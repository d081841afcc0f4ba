"""What conditions the training images of a model: their captions or their classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from georeg_diffusion.backbones import family_of, unwrapped
from georeg_diffusion.bundle import Bundle
from georeg_diffusion.data.conditions import Conditions
from georeg_diffusion.data.images import Images
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.options import flag_of
from georeg_diffusion.training.config import TrainConfig
from georeg_diffusion.training.encode import cached_prompts


def conditions_of(bundle: Bundle, images: Images, config: TrainConfig, cache: Path, accelerator: Any) -> Conditions | None:
    """Conditions for every image, where the model takes some: embedded captions, or classes.

    Args:
        bundle: the model, with its text encoders.
        images: with captions or labels.
        config: the dropout, and a caption for all images.
        cache: folder of all caches.
        accelerator: whose processes share the work.

    Raises:
        UsageError: a caption for a model without text.
        RunError: images without captions or classes, or with a class that the model does not have.
    """
    network = unwrapped(bundle.network)
    family = family_of(network)
    if family.takes_text(network):
        captions = _captions(images, config.instance_prompt)
        prompts = sorted({text for each in captions for text in each} | {""})
        number = {text: i for i, text in enumerate(prompts)}
        rows = cached_prompts(prompts, bundle, cache, accelerator)
        choices = [tuple(number[text] for text in each) for each in captions]
        return Conditions(rows, choices, null=number[""], dropout=config.conditioning_dropout_prob)
    given = [name for name in ("instance_prompt", "validation_prompt") if getattr(config, name) is not None]
    if given:
        raise UsageError(f"{flag_of(given[0])}: this {type(network).__name__} is not conditioned on text; leave it out")
    classes = family.num_classes(network)
    if classes is None:
        return None
    if images.labels is None:
        raise RunError(
            f"the model is conditioned on {classes} classes, but {images.name} has none; put the images into a folder for "
            "each class, or name a data set with a column of classes"
        )
    labels = images.labels.long()
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise RunError(f"{images.name} has classes from {int(labels.min())} to {int(labels.max())}, the model has {classes}")
    null = family.null_class(network)
    table = [{"class_labels": torch.tensor(k)} for k in range(classes if null is None else max(classes, null + 1))]
    dropout = 0.0 if null is None else config.conditioning_dropout_prob
    return Conditions(table, labels[:, None].tolist(), null=null, dropout=dropout)


def _captions(images: Images, given: str | None) -> Sequence[tuple[str, ...]]:
    if given is not None:
        return [(given,)] * len(images)
    if images.captions is None:
        raise RunError(
            f"the model is conditioned on text, but {images.name} has no captions; write metadata.jsonl beside the images "
            "or name a --caption-column, or pass one caption for all by --instance-prompt"
        )
    captions = [(each,) if isinstance(each, str) else tuple(each) for each in images.captions]
    absent = [i for i, each in enumerate(captions) if not each]
    if absent:
        files = getattr(images, "files", None)
        which = files[absent[0]] if files else f"number {absent[0]}"
        raise RunError(f"{len(absent):,} of the {len(images):,} images of {images.name} have no caption, such as {which}")
    return captions
