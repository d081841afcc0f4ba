"""`georeg-diffusion train`: the phases of a run, its scores and its pictures."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.markup import escape

from georeg_diffusion.backbones import family_of, unwrapped
from georeg_diffusion.bundle import Bundle, load
from georeg_diffusion.data.digits import Digits
from georeg_diffusion.data.images import Images
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.evaluation.classifier import train_classifier
from georeg_diffusion.evaluation.feature_network import FeatureNetwork
from georeg_diffusion.evaluation.features import open_features
from georeg_diffusion.evaluation.scorecard import ROWS, score
from georeg_diffusion.files import refuse_file, replacing, write_json
from georeg_diffusion.options import as_plain, flag_of, resolve
from georeg_diffusion.progress import console
from georeg_diffusion.report import pictures
from georeg_diffusion.report.table import comparison
from georeg_diffusion.training.card import claim_repository, push, write_card
from georeg_diffusion.training.conditions import conditions_of
from georeg_diffusion.training.config import TrainConfig
from georeg_diffusion.training.data import check_listing
from georeg_diffusion.training.determinism import deterministic
from georeg_diffusion.training.dry_run import cost_of, report
from georeg_diffusion.training.log import read_log
from georeg_diffusion.training.phase import Phase, check_regularizer, train_phase
from georeg_diffusion.training.selection import Validation
from georeg_diffusion.training.sharding import own_sharding, wants_shards
from georeg_diffusion.training.start import cache_of, is_model, network_inputs, pixel_images, starting_model

_LAUNCH = (
    "launch with torchrun --nproc-per-node N -m georeg_diffusion train … (on CPUs with ACCELERATE_USE_CPU=true before it), "
    "or unset WORLD_SIZE for one process"
)
_SUPPORTED = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_MLU", "MULTI_XPU", "MULTI_HPU")
_DIGITS_PRETRAINING, _DIGITS_STEPS = 800, 300
_PICTURE_STEPS = 20
# These may differ when a run is taken up again: they do not change what is computed.
_FREE = {
    "output_dir",
    "overwrite_output_dir",
    "dataloader_num_workers",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "logging_steps",
    "report_to",
    "evaluate",
    "cpu",
    "cache_dir",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
}


def run(config: TrainConfig, images: Any = None, *, quiet: bool = False) -> None:
    """Train what the configuration describes, or go on where it was interrupted, then score and draw it.

    Args:
        config: as the command line's options make it.
        images: a torch ``Dataset`` or :class:`georeg_diffusion.data.images.Images` to train on, in place of what the
            configuration names; see :class:`georeg_diffusion.data.dataset.DatasetImages`.
        quiet: of a part of something larger: nothing but progress is shown, and no pictures are drawn.

    Raises:
        UsageError: options that contradict each other, or an output folder of another run.
        RunError: data or models that cannot be used.

    Example:
        >>> from georeg_diffusion import TrainConfig, train
        >>> train(TrainConfig(max_train_steps=-1))                            # what the command line would refuse
        Traceback (most recent call last):
        ...
        georeg_diffusion.errors.UsageError: --max-train-steps: got -1, expected at least 1
    """
    # From Python a configuration has not passed the command line's checks, and its paths may be strings.
    config = resolve(TrainConfig, [], {entry.name: getattr(config, entry.name) for entry in fields(config)})
    if images is not None:  # recorded by name, so that nobody takes them for the digits
        name = getattr(images, "name", type(images).__name__)
        config = replace(config, train_data_dir=Path(f"{name} (given in Python)"))
    out = config.output_dir
    is_comparison = _is_comparison(config)
    if config.dry_run:
        _dry_run(config, images, is_comparison)
        return
    _claim(out, config)  # on all processes, none of which writes before all have met
    if not config.overwrite_output_dir and _is_finished(out, config):
        if not quiet:
            _print_table(out)
        _push(config)
        return
    _check_tracker(config)
    if config.pool_micro_batches and config.scope != "global":
        raise UsageError(f"--pool-micro-batches: got it with --scope {config.scope}, expected --scope global")
    check_regularizer(config)  # a name that is not known is refused before anything is written
    accelerator = _accelerator(config)
    torch.manual_seed(config.seed)
    images = pixel_images(config, images)
    check_listing(images, accelerator)
    if accelerator.is_main_process:
        with replacing(out / "config.yaml") as scratch:
            scratch.write_text(yaml.safe_dump(as_plain(config), sort_keys=False, allow_unicode=True))
    phases = _phases(config, is_comparison, images, accelerator.num_processes)
    if accelerator.is_main_process and not quiet:
        lengths = " + ".join(str(phase.steps) for phase in phases)
        console.print(
            f"{len(images)} images of {images.name} at {images.resolution}²; {lengths} steps of "
            f"{config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes} on "
            f"{accelerator.device}; results go to {out}",
            highlight=False,
        )
    if config.push_to_hub and accelerator.is_main_process:
        claim_repository(config)
    inputs, conditions, validation = None, None, None
    for phase in phases:
        if is_model(out / phase.name):
            continue
        inputs = inputs or network_inputs(config, images, accelerator)
        bundle = starting_model(config, inputs, out, phase.name)
        conditions = conditions or conditions_of(bundle, images, config, cache_of(config), accelerator)
        if config.validation_steps is not None and validation is None:
            features = _features(config, images, accelerator.device) if config.select_by == "fid" else None
            validation = Validation.of(images, features, _prompt(config, images, bundle), config, accelerator)
        is_chosen = phase.name != "pretrained"
        with deterministic(config.deterministic):
            train_phase(accelerator, bundle, inputs, config, phase, out, conditions, validation if is_chosen else None)
    accelerator.end_training()
    if accelerator.is_main_process:
        _conclude(config, images, out, accelerator.device, is_comparison, quiet)


def _dry_run(config: TrainConfig, given: Any, is_comparison: bool) -> None:
    """Print what the run would take. Nothing is written, and the output folder is left as it is."""
    torch.manual_seed(config.seed)
    images = pixel_images(config, given)
    device = torch.device("cpu") if config.cpu or not torch.cuda.is_available() else torch.device("cuda")
    cost = cost_of(config, images, device=device)
    console.print("Dry run: nothing is trained or written.")
    for subject, text in report(cost, config, images, _phases(config, is_comparison, images, 1)):
        console.print(f"[bold]{subject:<16}[/]{escape(text)}" if subject else f"[bold]{escape(text)}[/]", highlight=False)


def _is_comparison(config: TrainConfig) -> bool:
    if config.with_baseline is not None:
        return config.with_baseline
    return config.train_data_dir is None and config.dataset_name is None and config.pretrained_model_name_or_path is None


def _is_finished(out: Path, config: TrainConfig) -> bool:
    """Whether all is done, the scores included unless they are not wanted."""
    record = out / "metrics.json"
    return record.is_file() and (not config.evaluate or bool(json.loads(record.read_text())["models"]))


def _claim(out: Path, config: TrainConfig) -> None:
    """Make sure that the output folder is new, empty, or this very run's."""
    refuse_file(out)
    record = out / "config.yaml"
    if config.overwrite_output_dir:
        if not (record.is_file() or not out.exists() or not any(out.iterdir())):
            raise UsageError(
                f"--overwrite-output-dir: {out} is not the folder of a run (no config.yaml in it); delete it yourself"
            )
        return
    if record.is_file():
        try:
            before = yaml.safe_load(record.read_text()) or {}
        except (yaml.YAMLError, OSError) as error:
            raise RunError(f"cannot read {record}: {error}; pass --overwrite-output-dir to start again") from error
        now = as_plain(config)
        changed = [name for name in now if name not in _FREE and now[name] != before.get(name, now[name])]
        # A run that was refused before its first step left nothing worth protecting.
        if changed and any((out / "logs").glob("*.jsonl")):
            differences = ", ".join(f"{flag_of(name)} {before[name]} → {now[name]}" for name in changed)
            raise UsageError(
                f"--output-dir: {out} holds another run ({differences}); choose another folder, repeat its options to "
                "resume it, or pass --overwrite-output-dir to delete it"
            )
    elif out.is_dir() and any(entry for entry in out.iterdir() if not entry.name.startswith(".")):
        raise UsageError(f"--output-dir: {out} is not empty and holds no run of ours; choose another folder")


def _accelerator(config: TrainConfig) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration

    folder = str(config.output_dir / "logs")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    wants_shards(config.mixed_precision)
    try:
        with own_sharding():
            accelerator = Accelerator(
                # The loader fetches a step's micro-batches together: its end is seen before the last of them has run.
                gradient_accumulation_plugin=GradientAccumulationPlugin(
                    num_steps=config.gradient_accumulation_steps, sync_with_dataloader=False
                ),
                mixed_precision=config.mixed_precision,
                log_with=None if config.report_to == "none" else config.report_to,
                project_config=ProjectConfiguration(project_dir=str(config.output_dir), logging_dir=folder),
                cpu=config.cpu,
                step_scheduler_with_optimizer=False,
            )
    except ValueError as error:
        if world == 1:
            raise
        raise RunError(f"WORLD_SIZE is {world}, but these processes cannot meet: {error}; {_LAUNCH}") from error
    if world != accelerator.num_processes:
        raise RunError(f"WORLD_SIZE is {world}, but accelerate runs {accelerator.num_processes} process(es); {_LAUNCH}")
    if accelerator.distributed_type not in _SUPPORTED:
        raise RunError(
            f"accelerate: got {accelerator.distributed_type.value}, expected data parallelism, DDP or FSDP2: no others were "
            "made to work with second derivatives and pooled means; leave that out of `accelerate config`, and save memory "
            "with --gradient-checkpointing, --recompute or --lora"
        )
    if accelerator.is_main_process:
        if config.overwrite_output_dir:
            shutil.rmtree(config.output_dir, ignore_errors=True)
        config.output_dir.mkdir(parents=True, exist_ok=True)
    if config.report_to in ("none", "tensorboard"):  # there the name is a folder's
        accelerator.init_trackers("tensorboard")
    else:
        name = {config.report_to: {"name": config.output_dir.resolve().name}}
        accelerator.init_trackers("georeg-diffusion", config=as_plain(config), init_kwargs=name)
    return accelerator


def _check_tracker(config: TrainConfig) -> None:
    if config.report_to != "none" and find_spec(config.report_to) is None:
        raise UsageError(f"--report-to: {config.report_to} is not installed: pip install {config.report_to}")


def _phases(config: TrainConfig, is_comparison: bool, images: Images, processes: int) -> list[Phase]:
    per_epoch = max(len(images) // (config.train_batch_size * config.gradient_accumulation_steps * processes), 1)
    rate, limit = config.learning_rate, config.max_train_steps
    if not is_comparison:
        return [Phase("isometric", "Training", limit or config.num_epochs * per_epoch, rate, config.lambda_iso)]
    is_digits = isinstance(images, Digits)
    steps = limit or (_DIGITS_STEPS if is_digits else config.num_epochs * per_epoch)
    first = limit or (_DIGITS_PRETRAINING if is_digits else config.num_epochs * per_epoch)
    phases = [
        Phase("base", "2/3 Continuing, λ = 0", steps, rate, 0.0),
        Phase("isometric", f"3/3 Continuing, λ = {config.lambda_iso:g}", steps, rate, config.lambda_iso),
    ]
    if config.pretrained_model_name_or_path is None:
        phases.insert(0, Phase("pretrained", "1/3 Training a DDPM", first, 10 * rate, 0.0))
    return phases


def _conclude(config: TrainConfig, images: Images, out: Path, device: Any, is_comparison: bool, quiet: bool) -> None:
    """Score the models, write the pictures, and metrics.json last: it marks the run as finished."""
    names = ["base", "isometric"] if is_comparison else ["isometric"]
    logs = {name: read_log(out / "logs" / f"{name}.jsonl") for name in ("pretrained", *names)}
    scores: dict[str, Any] = {}
    classifier = None
    if config.evaluate:
        prompt = _prompt(config, images, load(out / names[-1]))
        models = {name: load(out / name) for name in names}
        for bundle in models.values():
            bundle.to(device).network.eval()
        if isinstance(images, Digits) or config.features is not None or _selects_by_fid(config):
            classifier = _features(config, images, device)
        else:
            console.print(
                f"no Fréchet distance: {images.name} has no feature network; `evaluate` measures an FID", style="dim"
            )
        for name, bundle in models.items():
            scores[name] = score(
                bundle,
                images,
                seed=config.seed,
                title=name,
                features=classifier,
                at=config.h_module,
                prompt=prompt,
                device=device,
            )
        how: dict[str, Any] = {"seed": config.seed, "num_steps": _PICTURE_STEPS, "device": device, "prompt": prompt}
        pictures.samples(models, out / "samples.png", **how)
        pictures.interpolation(models, out / "interpolation.png", **how)
    base_isometry = scores["base"]["isometry"]["value"] if "base" in scores and config.normalize else None
    if not quiet:
        pictures.losses(logs, out / "loss.png", base_isometry=base_isometry)
    notes = {"features": classifier.name if classifier else None, "lambda_iso": config.lambda_iso, "seed": config.seed}
    record = {"models": scores, **notes}
    for name in names:
        trained_on = f"{len(images):,} images of {images.name} at {images.resolution}²"
        write_card(out / name, name, config, record, trained_on=trained_on)
    write_json(out / "metrics.json", record)
    if not quiet:
        _print_table(out)
    _push(config)


def _selects_by_fid(config: TrainConfig) -> bool:
    return config.validation_steps is not None and config.select_by == "fid"


def _features(config: TrainConfig, images: Images, device: Any) -> FeatureNetwork:
    """What measures Fréchet distances."""
    if config.features in (None, "digits") and isinstance(images, Digits):
        return train_classifier(images, seed=config.seed, device=device)
    return open_features(
        config.features or "inception",
        resolution=images.resolution,
        inception_weights=config.inception_weights,
        seed=config.seed,
        device=device,
    )


def _push(config: TrainConfig) -> None:
    """Upload the isometric model, where that was asked for."""
    if not config.push_to_hub or int(os.environ.get("RANK", "0")):
        return
    out = config.output_dir
    extras = [out / name for name in ("samples.png", "metrics.json") if (out / name).is_file()]
    console.print(f"Uploaded: {push(out / 'isometric', claim_repository(config), extras)}", highlight=False)


def _prompt(config: TrainConfig, images: Images, bundle: Bundle) -> str | None:
    """What a model on text is scored and drawn with: as asked for, or the first caption that it was trained on."""
    if not family_of(unwrapped(bundle.network)).takes_text(unwrapped(bundle.network)):
        return None
    if config.validation_prompt is not None or config.instance_prompt is not None:
        return config.validation_prompt if config.validation_prompt is not None else config.instance_prompt
    first = images.captions[0] if images.captions is not None else ""
    return first if isinstance(first, str) else first[0]


def _print_table(out: Path) -> None:
    record = json.loads((out / "metrics.json").read_text())
    if record["models"]:
        title = f"{out}: scores (λ = {record['lambda_iso']:g}, seed {record['seed']})"
        console.print(comparison(record["models"], title, ROWS))
        if record["features"]:
            is_fid = record["features"].startswith("FID's")
            console.print(f"Fréchet distance on {record['features']}{'' if is_fid else '; it is no FID'}.", style="dim")
    console.print("\nLook at:")
    for name in ("samples.png", "interpolation.png", "loss.png", "metrics.json", "base", "isometric"):
        if (out / name).exists():
            console.print(f"  {out / name}", highlight=False)
