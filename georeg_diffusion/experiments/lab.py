"""Trains models and measures scores, each once: by a hash of all that it follows from."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from georeg_diffusion.bundle import Bundle, load
from georeg_diffusion.data.digits import Digits
from georeg_diffusion.data.images import Images
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.evaluation.catalogue import chosen
from georeg_diffusion.evaluation.classifier import train_classifier
from georeg_diffusion.evaluation.runner import evaluate
from georeg_diffusion.evaluation.score import Result
from georeg_diffusion.evaluation.setting import Setting
from georeg_diffusion.evaluation.tools import Tools, tools
from georeg_diffusion.evaluation.weights import file_hash
from georeg_diffusion.experiments.autoencoder import train_autoencoder
from georeg_diffusion.experiments.recipe import Recipe
from georeg_diffusion.files import is_whole, write_json
from georeg_diffusion.options import as_plain, resolve
from georeg_diffusion.progress import as_parts, console
from georeg_diffusion.training.config import TrainConfig
from georeg_diffusion.training.data import open_images
from georeg_diffusion.training.run import run
from georeg_diffusion.training.start import is_model

SEED_STRIDE = 1_000_000
"""Between the noise of two seeds' scores: sample i of a score has seed + i, and no two seeds may share samples."""

_FIELDS = {entry.name: entry for entry in fields(TrainConfig)}
_OF_THE_START = (
    *("resolution", "vae", "model_config_name_or_path", "random_flip", "max_train_samples"),
    *("ddpm_num_steps", "ddpm_beta_schedule", "prediction_type"),
)
_WITHOUT_ISOMETRY: dict[str, Any] = {
    name: entry.default for name, entry in _FIELDS.items() if entry.metadata["panel"] == "Isometry"
} | {"lambda_iso": 0.0}
# What a model does not depend on.
_FREE = ("output_dir", "cpu", "report_to", "evaluate", "logging_steps", "checkpointing_steps", "cache_dir")
_PATHS = ("pretrained_model_name_or_path", "vae", "model_config_name_or_path", "features", "inception_weights")

_KEYS = {entry.name for entry in fields(Result)}  # of a whole record


@dataclass
class Lab:
    """Where experiments get their models and scores from.

    Attributes:
        recipe: what is trained and how large the scores are.
        seeds: of the replicates: weights, data order and noise.
        folder: of all experiments; trained models, scores and caches are shared between them.
        quick: whether this is a first look.
        device: of the networks.
        measures: what measures images, as :func:`georeg_diffusion.evaluation.tools.tools` takes it; for digits by default
            one classifier that is trained in place with one seed, so that the distances of all seeds compare.
        experiment: the name of the one that runs.
        known_tools: those that were made, by the shape of the images.
    """

    recipe: Recipe
    seeds: tuple[int, ...]
    folder: Path
    quick: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    measures: Mapping[str, Any] = field(default_factory=dict)
    experiment: str = ""
    known_tools: dict[tuple[int, int, int], Tools] = field(default_factory=dict, repr=False)

    def path(self, name: str) -> Path:
        """A file of the running experiment, to be written by :func:`georeg_diffusion.files.replacing`."""
        return self.folder / self.experiment / name

    def model(self, seed: int, **changes: Any) -> Path:
        """A continuation of the seed's pre-trained model, trained unless it is there already.

        All continuations of a seed begin from one model and see one order of the data.

        Args:
            seed: of the replicate.
            **changes: fields of :class:`georeg_diffusion.TrainConfig` over the recipe's. ``lambda_iso=0.0`` is the base;
                none is the isometric model.

        Returns:
            The folder of the diffusers model.

        Raises:
            UsageError: a field that is not there, or a value that it cannot have.
        """
        config = self._config(seed, changes)
        if config.lambda_iso == 0 or config.isometry_skip >= 1:  # then nothing of the isometry matters
            config = replace(config, **_WITHOUT_ISOMETRY)
        start = {name: changes[name] for name in _OF_THE_START if name in changes}
        given = self.pretrained(seed, **start)
        title = f"seed {seed}, {', '.join(f'{k} {_short(v)}' for k, v in changes.items()) or 'isometric'}"
        return self._trained(replace(config, pretrained_model_name_or_path=str(given)), title)

    def pretrained(self, seed: int, **start: Any) -> Path | str:
        """The model that all configurations of a seed continue: trained once, or the recipe's own for all seeds.

        Args:
            seed: of the replicate.
            **start: fields that decide what the model is, such as ``resolution`` or ``vae``.
        """
        steps = self.recipe.pretraining_steps
        if steps is None:
            return str(self.recipe.training["pretrained_model_name_or_path"])
        rate = 10 * self.recipe.learning_rate
        config = self._config(seed, {**start, "lambda_iso": 0.0, "max_train_steps": steps, "learning_rate": rate})
        title = f"seed {seed}, the model that all configurations continue"
        return self._trained(config, ", ".join([title, *(f"{k} {_short(v)}" for k, v in start.items())]))

    def autoencoder(self) -> tuple[Path, Images]:
        """An autoencoder of the recipe's images, trained once for all seeds, and the images."""
        config = self._config(0, {})
        images = open_images(config)
        folder = (
            self.folder / "autoencoders" / _hash([images.fingerprint(), images.resolution, self.recipe.autoencoder_steps])
        )
        with as_parts():
            train_autoencoder(images, folder, steps=self.recipe.autoencoder_steps, device=self.device)
        return folder, images

    def bundle(self, model: Path | str) -> Bundle:
        """A model, frozen, in evaluation mode, on the device."""
        bundle = load(str(model)).to(self.device)
        bundle.network.eval().requires_grad_(False)
        return bundle

    def score(self, model: Path | str, seed: int, *names: str, **options: Any) -> dict[str, dict[str, Any]]:
        """Scores of a model, as ``evaluate`` writes them into metrics.json, measured unless they are there already.

        Args:
            model: its folder.
            seed: of the replicate; equal seeds give all models the same noise.
            *names: of scores, such as ``"fid"``.
            **options: fields of :class:`georeg_diffusion.evaluation.setting.Setting` over the recipe's, such as
                ``num_samples`` and ``timesteps``.

        Raises:
            UsageError: an unknown score.
            RunError: one that cannot be measured, with the remedy.
        """
        scores = chosen(",".join(names))
        found: dict[str, dict[str, Any]] = {}
        for name in names:
            record = self._recorded(model, seed, name, options)
            if record is None:
                start = time.monotonic()
                setting = self._setting(model, seed, name, options)
                with as_parts():
                    outcome = evaluate({"model": setting}, {name: scores[name]}, state=self.folder / "state")["model"][name]
                if outcome.failure is not None:
                    raise RunError(f"{name}: {outcome.failure}")
                record = outcome.as_json()
                write_json(self._score_file(model, seed, name, options), record)
                value = "none" if record["value"] is None else f"{record['value']:.4g}"
                self._say(f"{name} {value}", start)
            found[name] = record
        return found

    def setting(self, model: Path | str, seed: int, name: str = "", **options: Any) -> Setting:
        """A model with its noise and all that measures it, as its scores have them, for experiments that are no score.

        Args:
            model: its folder.
            seed: of the replicate.
            name: by which the recipe has the sizes.
            **options: as of :meth:`score`.
        """
        return self._setting(model, seed, name, options)

    def given(self) -> dict[str, str]:
        """What experiments take from outside, by its content: what measures, the models and the folder of images.

        Raises:
            UsageError, RunError: a folder of images without any.
        """
        training = self.recipe.training
        found = {f"training {key}": self._identity(str(training[key])) for key in _PATHS if training.get(key) is not None}
        if training.get("train_data_dir") is not None:
            found["images"] = _fingerprint(Path(training["train_data_dir"]))
        return found | self._measured_by()

    def _measured_by(self) -> dict[str, str]:
        return {key: self._identity(str(value)) for key, value in self.measures.items()}

    def _config(self, seed: int, changes: Mapping[str, Any]) -> TrainConfig:
        recipe = self.recipe
        unknown = sorted(set(changes) - set(_FIELDS))
        if unknown:
            raise UsageError(f"{unknown[0]}: no option of training, expected one of {', '.join(_FIELDS)}")
        values = {
            "max_train_steps": recipe.steps,
            "train_batch_size": recipe.batch,
            "learning_rate": recipe.learning_rate,
            "lambda_iso": recipe.lambda_iso,
            **recipe.training,
            **self._selection(),
            **changes,
            "seed": seed,
            "with_baseline": False,
            "evaluate": False,
            "report_to": "none",
            "cpu": self.device.type == "cpu",
        }
        return resolve(TrainConfig, [], values)

    def _selection(self) -> dict[str, Any]:
        """What measures the FID by which a checkpoint is chosen, where the recipe chooses one."""
        if "validation_steps" not in self.recipe.training:
            return {}
        return {key: self.measures[key] for key in ("features", "inception_weights") if key in self.measures}

    def _trained(self, config: TrainConfig, title: str) -> Path:
        folder = self.folder / "models" / self._key(config)
        model = folder / "isometric"
        if is_model(model) and not is_whole(model):
            self._say_damaged(model)
            shutil.rmtree(model)
        if not is_model(model):
            (folder / "metrics.json").unlink(missing_ok=True)  # which marks the training as finished
        if not (folder / "metrics.json").is_file():
            start = time.monotonic()
            console.print(f"Training: {title}", style="dim", markup=False, highlight=False)
            with as_parts():
                run(replace(config, output_dir=folder, cache_dir=self.folder / "cache" / "training"), quiet=True)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # only a training that goes on needs them
            self._say("trained", start)
        return model

    def _key(self, config: TrainConfig) -> str:
        """A hash of all that a training follows from: models by their content, images by what they are."""
        record = {name: value for name, value in as_plain(config).items() if name not in _FREE}
        for name in _PATHS:
            if record[name] is not None:
                record[name] = self._identity(str(record[name]))
        if config.train_data_dir is not None:
            record["train_data_dir"] = _fingerprint(config.train_data_dir)
        return _hash(record)

    def _identity(self, model: Path | str) -> str:
        """What a model is, wherever it lies: for our own what they follow from, for others a hash of their files."""
        place = Path(model)
        if not place.exists():
            return str(model)  # on the hub
        own = (self.folder / "models").resolve()
        resolved = place.resolve()
        return resolved.relative_to(own).as_posix() if resolved.is_relative_to(own) else _content(resolved)

    def _score_file(self, model: Path | str, seed: int, name: str, options: Mapping[str, Any]) -> Path:
        parts = (self._identity(model), seed, name, self._sizes(name, options), self._measured_by())
        return self.folder / "scores" / f"{name}-{_hash(parts)}.json"

    def _recorded(self, model: Path | str, seed: int, name: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads(self._score_file(model, seed, name, options).read_text())
            return record if record.keys() >= _KEYS else None
        except (OSError, ValueError, AttributeError):
            return None  # not measured yet, or damaged

    def _sizes(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        recipe, kind = self.recipe, name.removesuffix("_radial")
        sizes = {**recipe.sizes_of(kind), "protocol": recipe.protocol}
        ppl = {"ppl": "paper"} if recipe.protocol == "paper" else {}
        return {**sizes, **options, "options": {**ppl, **options.get("options", {})}}

    def _setting(self, model: Path | str, seed: int, name: str, options: Mapping[str, Any]) -> Setting:
        bundle = self.bundle(model)
        shape = Setting(bundle=bundle, device=self.device).image_shape
        return Setting(
            bundle=bundle,
            **self._tools(str(model), shape),
            seed=seed * SEED_STRIDE,
            batch_size=64 if bundle.sample_shape[1] <= 32 else 16,
            device=self.device,
            cache=self.folder / "cache",
            **self._sizes(name, options),
        )

    def _tools(self, model: str, shape: tuple[int, int, int]) -> Tools:
        """What measures, made once for images of a shape."""
        if shape not in self.known_tools:
            measures: dict[str, Any] = dict(self.measures)
            reference = self.recipe.training.get("train_data_dir")
            if self.recipe.dataset == "digits":
                reference = "digits"
                folder = str(self._classifier(shape[1]))
                measures = {"features": folder, "classifier": folder, "lpips_backbone": "features"} | measures
            self.known_tools[shape] = tools(
                None if reference is None else str(reference),
                model,
                shape,
                **measures,
                device=self.device,
                cache=self.folder / "cache",
            )
        return self.known_tools[shape]

    def _classifier(self, resolution: int) -> Path:
        """A classifier of the digits, trained once: distances compare only within one network's features."""
        folder = self.folder / "classifiers" / f"digits-{resolution}"
        if folder.is_dir() and not is_whole(folder):
            self._say_damaged(folder)
            shutil.rmtree(folder)
        if not (folder / "config.json").is_file():
            with as_parts():
                train_classifier(Digits(resolution), seed=0, device=self.device).to("cpu").save(folder)
        return folder

    def _say_damaged(self, folder: Path) -> None:
        console.print(f"{folder} is damaged: trained anew", style="yellow", markup=False, highlight=False)

    def _say(self, text: str, start: float) -> None:
        console.print(f"  {text} ({time.monotonic() - start:.0f} s)", style="dim", markup=False, highlight=False)


def _hash(record: Any) -> str:
    text = json.dumps([version("georeg"), record], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _content(place: Path) -> str:
    """A hash of a model's files."""
    files = sorted(one for one in place.rglob("*") if one.suffix in (".json", ".safetensors")) if place.is_dir() else [place]
    return _hash([(file.name, file_hash(file)) for file in files])


@cache
def _fingerprint(folder: Path) -> str:
    """A hash of a folder's images."""
    try:
        return open_images(TrainConfig(train_data_dir=folder), resolution=8).fingerprint()
    except RunError as error:
        raise RunError(str(error).replace("--train-data-dir", "--data-dir")) from error


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else Path(value).name if isinstance(value, (str, Path)) else str(value)
