"""The options that all commands share that train and score over seeds, and the lab that they describe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from georeg_diffusion.errors import UsageError
from georeg_diffusion.experiments.recipe import DATASETS
from georeg_diffusion.options import option

if TYPE_CHECKING:
    from georeg_diffusion.experiments.lab import Lab
    from georeg_diffusion.experiments.recipe import Recipe

_SIZE, _DATA, _MEASURE, _RUN = "Size", "Data and model", "What measures", "Run"


@dataclass(frozen=True)
class ExperimentOptions:
    """Data, model, seeds and what measures. Commands derive their own dataclass from this one."""

    quick: bool = option(False, "A first look: shorter trainings and smaller scores.", panel=_SIZE)
    seeds: int = option(3, "How many seeds: replicates, from which the standard errors come.", panel=_SIZE, minimum=1)
    seed: int = option(0, "The first of them.", panel=_SIZE, minimum=0, maximum=2**31)

    max_train_steps: int | None = option(
        None, "Steps of each training, in place of the recipe's: a few show whether everything runs.", panel=_SIZE, minimum=1
    )
    num_samples: int | None = option(
        None, "Images, pairs or latents of each score, in place of the recipe's.", panel=_SIZE, minimum=2
    )
    num_inference_steps: int | None = option(
        None, "DDIM steps of each score, in place of the recipe's.", panel=_SIZE, minimum=1
    )

    dataset: str = option("digits", "The data; all but digits take the paper's settings.", panel=_DATA, choices=DATASETS)
    data_dir: Path | None = option(
        None, "Folder of the real images. Default: the data set of that name on Hugging Face's hub.", panel=_DATA
    )
    pretrained: str | None = option(
        None,
        "Model to continue: a diffusers folder or hub id. Default: the paper's on the hub; for digits one is trained.",
        panel=_DATA,
    )

    features: str | None = option(
        None,
        "Of FID: inception, a network of torchvision, or a folder of train-classifier. Default: inception; for digits a "
        "classifier trained in place.",
        panel=_MEASURE,
    )
    inception_weights: Path | None = option(None, "File of Inception's weights. Default: torch's hub cache.", panel=_MEASURE)
    lpips_backbone: str | None = option(
        None,
        "Of PPL: LPIPS with alex, vgg or squeeze, or features. Default: alex; for digits features.",
        panel=_MEASURE,
        choices=("alex", "vgg", "squeeze", "features"),
    )
    lpips_backbone_weights: Path | None = option(
        None, "File of that backbone's weights. Default: torch's hub cache.", panel=_MEASURE
    )
    classifier: str | None = option(
        None, "Of linear separability: a folder of train-classifier. Default for digits: trained in place.", panel=_MEASURE
    )

    device: str | None = option(None, "Device, such as cpu, cuda or cuda:1. Default: a GPU where there is one.", panel=_RUN)


def lab_of(config: ExperimentOptions, recipe: Recipe, folder: Path, flag: str = "--output-dir") -> Lab:
    """A lab in a folder, which is claimed.

    Args:
        config: what the user asked for.
        recipe: what is trained.
        folder: of models and scores.
        flag: the option that names the folder.

    Raises:
        UsageError: a folder of something else; a device that cannot be used.
        UsageError, RunError: images, a model or something that measures is named and is not there.
    """
    from georeg_diffusion.commands.workspace import device_of
    from georeg_diffusion.experiments.bench import claim, refuse_foreign
    from georeg_diffusion.experiments.lab import Lab

    device = device_of(config.device)
    recipe = recipe.rehearsed(
        max_train_steps=config.max_train_steps,
        num_samples=config.num_samples,
        num_inference_steps=config.num_inference_steps,
    )
    refuse_foreign(folder, flag)
    _require_measures(config)
    _require_model(config.pretrained)
    lab = Lab(
        recipe=recipe,
        seeds=tuple(range(config.seed, config.seed + config.seeds)),
        folder=folder,
        quick=config.quick,
        device=device,
        measures=_measures(config),
    )
    lab.given()  # a folder without images is told before anything is trained or written
    claim(folder, flag)
    return lab


def _require_measures(config: ExperimentOptions) -> None:
    """Open what is named to measure with, so that a wrong name is told before hours of training."""
    from georeg_diffusion.evaluation.classifier import load_classifier
    from georeg_diffusion.evaluation.features import open_features

    weights = {"--inception-weights": config.inception_weights, "--lpips-backbone-weights": config.lpips_backbone_weights}
    for flag, file in weights.items():
        if file is not None and not file.is_file():
            raise UsageError(f"{flag}: {file} is not a file, expected one of weights")
    if config.features not in (None, "digits"):  # those are trained in place
        open_features(config.features, resolution=32, inception_weights=config.inception_weights)
    if config.classifier is not None:
        with _naming("--classifier"):
            load_classifier(Path(config.classifier))


def _require_model(pretrained: str | None) -> None:
    """Open a model in a folder. One on the hub is fetched when it is trained; a name that is neither is refused."""
    from georeg_diffusion.bundle import is_on_hub, load

    if pretrained is not None and not is_on_hub(pretrained):
        with _naming("--pretrained"):
            load(pretrained)


@contextmanager
def _naming(flag: str) -> Iterator[None]:
    """Say which option is to blame."""
    from georeg_diffusion.errors import RunError

    try:
        yield
    except RunError as error:
        raise RunError(f"{flag}: {error}") from error


def refuse_several_processes(command: str) -> None:
    """Refuse to run under torchrun and the like, where each process would train and write the same.

    Raises:
        UsageError: there are several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"WORLD_SIZE: {command} runs in one process; start it without torchrun")


def _measures(config: ExperimentOptions) -> dict[str, Any]:
    given = {
        "features": config.features,
        "inception_weights": config.inception_weights,
        "lpips_backbone": config.lpips_backbone,
        "lpips_weights": config.lpips_backbone_weights,
        "classifier": config.classifier,
    }
    return {key: value for key, value in given.items() if value is not None}
