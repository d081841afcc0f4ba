"""``georeg-diffusion train-classifier``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from georeg_diffusion.options import option

if TYPE_CHECKING:
    from georeg_diffusion.evaluation.classifier import Classifier

_DATA, _TRAINING, _RUN = "Data", "Training", "Run"


@dataclass(frozen=True)
class TrainClassifierConfig:
    """Train the classifier of linear separability: a ResNeXt-50 with one logit for each attribute, as the paper did.

    With --train-data-dir and --attributes it learns attributes in CelebA's format; without either, the ten classes of
    scikit-learn's digits. The output folder is what `evaluate --classifier` and `--features` take.

    To resume an interrupted run, run the same command again.
    """

    train_data_dir: Path | None = option(None, "Folder of images. Default: scikit-learn's digits.", panel=_DATA)
    attributes: Path | None = option(None, "Their attributes, as CelebA's list_attr_celeba.txt.", panel=_DATA)
    resolution: int | None = option(
        None, "Height and width that the classifier sees. Default: 128, or 16 for digits.", panel=_DATA, minimum=8
    )
    held_out: float = option(
        0.1, "Share of the images that the accuracy is measured on (digits: 0.2).", panel=_DATA, minimum=0.001, maximum=0.9
    )
    dataloader_num_workers: int = option(0, "Processes that load images.", panel=_DATA, minimum=0)

    architecture: str = option(
        "resnext50_32x4d",
        "A classification network of torchvision, such as resnet18, or small (digits are always learnt by that).",
        panel=_TRAINING,
    )
    num_epochs: int = option(10, "Passes over the images, where --max-train-steps is not given.", panel=_TRAINING, minimum=1)
    max_train_steps: int | None = option(None, "Optimiser steps.", panel=_TRAINING, minimum=1)
    train_batch_size: int = option(64, "Images per step.", panel=_TRAINING, minimum=2)
    learning_rate: float = option(1e-3, "AdamW's step size at its peak.", panel=_TRAINING, minimum=0)

    output_dir: Path | None = option(None, "Where it is written. Default: outputs/train-classifier.", panel=_RUN)
    overwrite: bool = option(False, "Replace what an earlier run of this command wrote there.", panel=_RUN)
    seed: int = option(0, "Seeds weights, split, order and flips.", panel=_RUN, minimum=0)
    checkpointing_steps: int = option(500, "Optimiser steps between checkpoints.", panel=_RUN, minimum=1)
    device: str | None = option(None, "Device, such as cpu, cuda or cuda:1. Default: a GPU where there is one.", panel=_RUN)

    dtype: ClassVar[str] = "float32"


CONFIG = TrainClassifierConfig


def run(config: TrainClassifierConfig) -> None:
    """Train, write the classifier and print how often it is right."""
    import torch

    from georeg_diffusion.commands.workspace import workspace
    from georeg_diffusion.data.attributes import AttributeImages
    from georeg_diffusion.data.digits import Digits
    from georeg_diffusion.errors import UsageError
    from georeg_diffusion.evaluation.classifier import build, train_classifier
    from georeg_diffusion.training.classifier import train_attribute_classifier

    if (config.train_data_dir is None) != (config.attributes is None):
        given, missing = ("--attributes", "--train-data-dir") if config.attributes else ("--train-data-dir", "--attributes")
        raise UsageError(f"{given}: needs {missing} as well; leave both out for scikit-learn's digits")
    with workspace(config, "train-classifier") as work:  # type: ignore[arg-type]  # a run without MODEL
        if config.train_data_dir is None or config.attributes is None:
            classifier = train_classifier(Digits(config.resolution or 16), seed=config.seed, device=work.device)
        else:
            images = AttributeImages(config.train_data_dir, config.attributes, config.resolution or 128)
            trained_on = len(images) - max(round(config.held_out * len(images)), 1)
            steps = config.max_train_steps or config.num_epochs * max(trained_on // config.train_batch_size, 1)
            with torch.device("meta"):  # a wrong name is refused before anything is written
                build(config.architecture, channels=3, resolution=images.resolution, outputs=len(images.names))
            checkpoint = work.path("checkpoint.pt")
            if not work.resumed:
                checkpoint.unlink(missing_ok=True)
            classifier = train_attribute_classifier(
                images,
                architecture=config.architecture,
                steps=steps,
                batch_size=config.train_batch_size,
                learning_rate=config.learning_rate,
                held_out=config.held_out,
                seed=config.seed,
                device=work.device,
                workers=config.dataloader_num_workers,
                checkpoint=checkpoint,
                checkpointing_steps=config.checkpointing_steps,
            )
            checkpoint.unlink(missing_ok=True)
            work.files.remove(checkpoint.name)
        for name in ("model.safetensors", "config.json"):
            work.path(name)
        classifier.save(work.folder)
        _print(classifier)


def _print(classifier: Classifier) -> None:
    from rich.table import Table

    from georeg_diffusion.progress import console

    config = classifier.config or {}
    console.print(config["data"], highlight=False)
    if "accuracies" not in config:
        return
    table = Table("Attribute", title="Held-out accuracy")
    for column in ("classifier", "always the more frequent answer"):
        table.add_column(column, justify="right")
    for name, right in config["accuracies"].items():
        table.add_row(name, f"{right:.1%}", f"{config['majority'][name]:.1%}")
    console.print(table)
