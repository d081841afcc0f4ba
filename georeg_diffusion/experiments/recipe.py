"""What is trained and how large the scores are, for each data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from georeg_diffusion import presets
from georeg_diffusion.errors import UsageError

REAL = {
    "cifar10": "CIFAR-10",
    "celebahq256": "CelebA-HQ",
    "lsun-church256": "LSUN-Church",
    "lsun-bedrooms256": "LSUN-Bedrooms",
    "ldm-celebahq256": "CelebA-HQ",
}
"""The paper's data sets by preset, as its tables call them."""

DATASETS = ("digits", *REAL)

_OF_A_COMPARISON = ("with_baseline", "output_dir", "lambda_iso", "train_batch_size", "learning_rate", "resolution")


@dataclass(frozen=True)
class Recipe:
    """What is trained and how large the scores are.

    Attributes:
        dataset: name of the data set.
        pretraining_steps: of the model that all configurations of a seed continue; None where one is given.
        steps: of each continuation; None takes the epochs in ``training``.
        batch: images per step.
        learning_rate: of continuations; pre-training takes ten times this.
        lambda_iso: λ of the isometric model.
        training: further fields of :class:`georeg_diffusion.TrainConfig` for all trainings.
        num_samples: images, pairs or latents of each score, by its name; others take the protocol's own number.
        num_inference_steps: DDIM steps of each score, likewise.
        protocol: of the scores, ``"default"`` or ``"paper"``.
        weights: λ of the losses that have the size of J in them, by their name; others take ``lambda_iso``. At the start
            their gradients are as long as that of the isometry loss.
        autoencoder_steps: of the autoencoder whose latents Table I's model is trained on, where none is given.
        points: of the metric's effect against n.
        every: ``num_samples`` and ``num_inference_steps`` of all scores in place of those above, for a rehearsal.

    Example:
        >>> from georeg_diffusion.experiments.recipe import recipe_of
        >>> recipe_of("digits", quick=True).steps < recipe_of("digits").steps
        True
    """

    dataset: str = "digits"
    pretraining_steps: int | None = 2000
    steps: int | None = 400
    batch: int = 64
    learning_rate: float = 1e-4
    lambda_iso: float = 1e-2
    training: Mapping[str, Any] = field(default_factory=dict)
    num_samples: Mapping[str, int] = field(default_factory=dict)
    num_inference_steps: Mapping[str, int] = field(default_factory=dict)
    protocol: str = "default"
    weights: Mapping[str, float] = field(default_factory=dict)
    autoencoder_steps: int = 1500
    points: int = 4096
    every: Mapping[str, int] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What tables call the data set."""
        return REAL.get(self.dataset, self.dataset)

    def sizes_of(self, score: str) -> dict[str, int | None]:
        """Samples and DDIM steps of a score; None takes the protocol's own number.

        Example:
            >>> from georeg_diffusion.experiments.recipe import recipe_of
            >>> recipe_of(quick=True).sizes_of("fid")
            {'num_samples': 128, 'num_inference_steps': None}
        """
        samples, steps = self.num_samples.get(score), self.num_inference_steps.get(score)
        return {"num_samples": samples, "num_inference_steps": steps, **self.every}

    def rehearsed(
        self, *, max_train_steps: int | None = None, num_samples: int | None = None, num_inference_steps: int | None = None
    ) -> Recipe:
        """The same in small, to see that everything runs; None leaves what the recipe has.

        Args:
            max_train_steps: of each training.
            num_samples: images, pairs or latents of each score.
            num_inference_steps: DDIM steps of each score.
        """
        sizes = {"num_samples": num_samples, "num_inference_steps": num_inference_steps}
        found = replace(self, every={name: size for name, size in sizes.items() if size is not None})
        if max_train_steps is None:
            return found
        return replace(
            found,
            pretraining_steps=None if self.pretraining_steps is None else max_train_steps,
            steps=max_train_steps,
            autoencoder_steps=max_train_steps,
            training=_without_validation(self.training),
        )


_DIGITS = Recipe(
    num_samples={"fid": 2048, "kid": 2048, "ppl": 512, "mrtl": 32, "mcn": 32, "vor": 32, "vor_log": 32, "ls": 2000},
    weights={"strict": 5e-4, "path-length": 2e-3},
)
_QUICK = replace(
    _DIGITS,
    pretraining_steps=600,
    steps=60,
    autoencoder_steps=300,
    points=512,
    batch=32,
    num_samples={"fid": 128, "kid": 128, "ppl": 64, "mrtl": 8, "mcn": 8, "vor": 8, "vor_log": 8, "ls": 800, "isometry": 12},
)
_QUICK_SAMPLES = {"fid": 256, "kid": 256, "ppl": 64, "mrtl": 4, "mcn": 4, "vor": 4, "vor_log": 4, "ls": 200}


def recipe_of(
    dataset: str = "digits",
    *,
    quick: bool = False,
    data_dir: Path | None = None,
    pretrained: str | None = None,
    lambda_iso: float | None = None,
) -> Recipe:
    """The recipe of a data set.

    Args:
        dataset: one of :data:`DATASETS`: ``"digits"``, or a preset with the paper's settings.
        quick: a first look: fewer steps and smaller scores.
        data_dir: folder of the real images, in place of the preset's data set on the hub.
        pretrained: model to continue, in place of the preset's on the hub; for digits in place of pre-training.
        lambda_iso: λ of the normalised loss, in place of the recipe's; those of the other losses change with it.

    Raises:
        UsageError: an unknown data set; a folder of images for the digits, or one that does not exist; no λ above 0.
    """
    if dataset not in DATASETS:
        raise UsageError(f"--dataset: got {dataset!r}, expected one of {', '.join(DATASETS)}")
    if lambda_iso is not None and not lambda_iso > 0:
        raise UsageError(f"--lambda-iso: got {lambda_iso:g}, expected a number above 0: at 0 there is nothing to compare")
    if data_dir is not None and dataset == "digits":
        raise UsageError(f"--data-dir: got {data_dir} with the digits, which are scikit-learn's; name a --dataset with it")
    if data_dir is not None and not data_dir.is_dir():
        raise UsageError(f"--data-dir: {data_dir} is not a folder, expected one of images")
    recipe = (_QUICK if quick else _DIGITS) if dataset == "digits" else _real(dataset, quick=quick, data_dir=data_dir)
    if pretrained is not None:
        training = {**recipe.training, "pretrained_model_name_or_path": pretrained}
        recipe = replace(recipe, pretraining_steps=None, training=training)
    if lambda_iso is not None:
        weights = {loss: weight * lambda_iso / recipe.lambda_iso for loss, weight in recipe.weights.items()}
        training = {**recipe.training, "normalize": True}
        recipe = replace(recipe, lambda_iso=lambda_iso, weights=weights, training=training)
    return recipe


def _real(dataset: str, *, quick: bool, data_dir: Path | None) -> Recipe:
    """A preset with the paper's protocol, or a first look at it."""
    preset: dict[str, Any] = yaml.safe_load(presets.path_of(dataset).read_text("utf-8"))
    training = {key: value for key, value in preset.items() if key not in _OF_A_COMPARISON}
    if data_dir is not None:
        training = {key: value for key, value in training.items() if key != "dataset_name"} | {"train_data_dir": data_dir}
    if quick:
        training = _without_validation(training)
    return Recipe(
        dataset=dataset,
        pretraining_steps=None,
        steps=20 if quick else None,
        batch=int(preset["train_batch_size"]),
        learning_rate=float(preset["learning_rate"]),
        lambda_iso=float(preset["lambda_iso"]),
        training=training,
        num_samples=_QUICK_SAMPLES if quick else {},
        protocol="paper",
        num_inference_steps={"ppl": 20} if quick else {},
    )


def _without_validation(training: Mapping[str, Any]) -> dict[str, Any]:
    """Which a training of a few steps never comes to, or which takes longer than it."""
    return {key: value for key, value in training.items() if not key.startswith(("validation", "num_validation"))}
