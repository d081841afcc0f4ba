"""`georeg-diffusion train`: the phases of a run, its scores and its pictures."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from georeg_diffusion._compat import diffusers
from georeg_diffusion.backbones import backbone_of, family_of, unwrapped
from georeg_diffusion.bundle import Bundle, load
from georeg_diffusion.codec import load_codec, stride_of
from georeg_diffusion.data.digits import Digits
from georeg_diffusion.data.images import Images
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.evaluation.classifier import train_classifier
from georeg_diffusion.evaluation.scorecard import ROWS, score
from georeg_diffusion.files import replacing, write_json
from georeg_diffusion.options import as_plain, flag_of
from georeg_diffusion.pipelines import LORA
from georeg_diffusion.progress import console
from georeg_diffusion.report import pictures
from georeg_diffusion.report.table import comparison
from georeg_diffusion.training.conditions import conditions_of
from georeg_diffusion.training.config import TrainConfig
from georeg_diffusion.training.data import open_images
from georeg_diffusion.training.encode import cached_latents
from georeg_diffusion.training.lora import wants_lora, with_lora
from georeg_diffusion.training.phase import Phase, make_estimator, read_log, train_phase

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
}


def run(config: TrainConfig, images: Any = None) -> None:
    """Train what the configuration describes, or go on where it was interrupted, then score and draw it.

    Args:
        config: as the command line's options make it.
        images: a torch ``Dataset`` or :class:`georeg_diffusion.data.images.Images` to train on, in place of what the
            configuration names; see :class:`georeg_diffusion.data.dataset.DatasetImages`.

    Raises:
        UsageError: options that contradict each other, or an output folder of another run.
        RunError: data or models that cannot be used.
    """
    if images is not None:  # recorded by name, so that nobody takes them for the digits
        name = getattr(images, "name", type(images).__name__)
        config = replace(config, train_data_dir=Path(f"{name} (given in Python)"))
    out = config.output_dir
    is_comparison = _is_comparison(config)
    _claim(out, config)
    if _is_finished(out, config):
        _print_table(out)
        return
    make_estimator(config)  # a name that is not known is refused before anything is written
    accelerator = _accelerator(config)
    torch.manual_seed(config.seed)
    images = _images(config, images)
    if accelerator.is_main_process:
        with replacing(out / "config.yaml") as scratch:
            scratch.write_text(yaml.safe_dump(as_plain(config), sort_keys=False, allow_unicode=True))
    phases = _phases(config, is_comparison, images, accelerator.num_processes)
    if accelerator.is_main_process:
        lengths = " + ".join(str(phase.steps) for phase in phases)
        console.print(
            f"{len(images)} images of {images.name} at {images.resolution}²; {lengths} steps of "
            f"{config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes} on "
            f"{accelerator.device}; results go to {out}",
            highlight=False,
        )
    inputs, conditions = None, None
    for phase in phases:
        if _is_model(out / phase.name):
            continue
        inputs = inputs or _inputs(config, images, accelerator)
        bundle = _start(config, inputs, out, phase)
        conditions = conditions or conditions_of(bundle, images, config, _cache(config), accelerator)
        train_phase(accelerator, bundle, inputs, config, phase, out, conditions)
    accelerator.end_training()
    if accelerator.is_main_process:
        _conclude(config, images, out, accelerator.device, is_comparison)


def _is_model(folder: Path) -> bool:
    """Whether a phase has saved its result: a pipeline, a bare network, or LoRA weights."""
    return any((folder / name).is_file() for name in ("model_index.json", "config.json", LORA))


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
    if out.exists() and not out.is_dir():
        raise UsageError(f"--output-dir: {out} is a file, expected a folder")
    record = out / "config.yaml"
    if config.overwrite_output_dir:
        if not (record.is_file() or not out.exists() or not any(out.iterdir())):
            raise UsageError(
                f"--overwrite-output-dir: {out} is not the folder of a run (no config.yaml in it); delete it yourself"
            )
        shutil.rmtree(out, ignore_errors=True)
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
    from accelerate.utils import ProjectConfiguration

    folder = str(config.output_dir / "logs")
    accelerator = Accelerator(
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        mixed_precision=config.mixed_precision,
        log_with="tensorboard" if config.report_to == "tensorboard" else None,
        project_config=ProjectConfiguration(project_dir=str(config.output_dir), logging_dir=folder),
        cpu=config.cpu,
    )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != accelerator.num_processes:
        raise RunError(
            f"WORLD_SIZE is {world}, but accelerate runs {accelerator.num_processes} process(es); on CPUs launch with "
            "ACCELERATE_USE_CPU=true torchrun --nproc-per-node N -m georeg_diffusion train …"
        )
    if accelerator.is_main_process:
        config.output_dir.mkdir(parents=True, exist_ok=True)
    accelerator.init_trackers("tensorboard")
    return accelerator


def _images(config: TrainConfig, given: Any) -> Images:
    """The training images, of the size and the channels that the model, or its autoencoder, takes."""
    channels = resolution = None
    codec = load_codec(config.vae) if config.vae else None
    if config.pretrained_model_name_or_path is not None:
        pretrained = load(config.pretrained_model_name_or_path)
        channels, resolution, _ = pretrained.sample_shape
        codec = codec or pretrained.codec
    elif config.model_config_name_or_path is not None:
        channels = int(_new_unet(config.model_config_name_or_path).config.in_channels)
    if codec is not None:
        channels = int(codec.config.in_channels)
        resolution = None if resolution is None else resolution * stride_of(codec)
    images = open_images(config, given, channels=channels, resolution=resolution)
    if channels is not None and channels != images.channels:
        flag = "--vae" if config.vae else "--model-config-name-or-path"
        flag = flag if config.pretrained_model_name_or_path is None else "--pretrained-model-name-or-path"
        raise RunError(f"{flag}: the model has {channels} channels, the images of {images.name} have {images.channels}")
    return images


def _inputs(config: TrainConfig, images: Images, accelerator: Any) -> Images:
    """What the network sees: the images, or their latents."""
    codec = load_codec(config.vae) if config.vae else None
    if codec is None and config.pretrained_model_name_or_path is not None:
        codec = load(config.pretrained_model_name_or_path).codec
    return images if codec is None else cached_latents(images, codec, _cache(config), accelerator)


def _cache(config: TrainConfig) -> Path:
    return config.cache_dir or config.output_dir / "cache"


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


def _start(config: TrainConfig, images: Images, out: Path, phase: Phase) -> Bundle:
    """The model that a phase begins from, for inputs of the size of ``images``."""
    if phase.name != "pretrained" and _is_model(out / "pretrained"):
        return load(out / "pretrained")
    given = config.pretrained_model_name_or_path
    if given is not None:
        bundle = load(given)
    else:
        torch.manual_seed(config.seed)
        bundle = _new_model(config, images)
    if config.vae is not None:
        # A network that came as a pipeline on pixels is saved as one on latents.
        kind = None if bundle.codec is None else bundle.pipeline_class
        bundle = replace(bundle, codec=load_codec(config.vae), pipeline_class=kind)
    channels = bundle.sample_shape[0]
    if channels != images.channels:
        flag = "--pretrained-model-name-or-path" if given else "--model-config-name-or-path"
        raise RunError(f"{flag}: the network takes {channels} channels, the latents have {images.channels}")
    stride = backbone_of(bundle.network).stride(bundle.network)
    if images.resolution % stride:
        lower = images.resolution // stride * stride
        raise UsageError(
            f"--resolution: got {images.resolution}, expected a multiple of the network's stride {stride}, such as "
            f"{lower or stride} or {lower + stride}"
        )
    if wants_lora(bundle, config):
        torch.manual_seed(config.seed)
        bundle = with_lora(bundle, given or "", config)
    return bundle


def _new_model(config: TrainConfig, images: Images) -> Bundle:
    schedule = diffusers.DDPMScheduler(
        num_train_timesteps=config.ddpm_num_steps,
        beta_schedule=config.ddpm_beta_schedule,
        prediction_type=config.prediction_type,
        clip_sample=config.vae is None,  # latents have no bounds
    )
    if config.model_config_name_or_path is not None:
        return Bundle(_new_unet(config.model_config_name_or_path), schedule)
    # Small, since it is what a laptop trains in minutes; a larger one comes by --model-config-name-or-path.
    network = diffusers.UNet2DModel(
        sample_size=images.resolution,
        in_channels=images.channels,
        out_channels=images.channels,
        layers_per_block=1,
        block_out_channels=(32, 64, 64),
        norm_num_groups=8,
        attention_head_dim=16,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    return Bundle(network, schedule)


def _new_unet(file: Path) -> Any:
    """An untrained network from its config.json."""
    file = file / "config.json" if file.is_dir() else file
    try:
        return diffusers.UNet2DModel.from_config(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"--model-config-name-or-path: cannot build a UNet2DModel from {file}: {error}") from error


def _conclude(config: TrainConfig, images: Images, out: Path, device: Any, is_comparison: bool) -> None:
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
        if isinstance(images, Digits):
            classifier = train_classifier(images, seed=config.seed, device=device)
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
    pictures.losses(logs, out / "loss.png", base_isometry=base_isometry)
    notes = {"features": classifier.name if classifier else None, "lambda_iso": config.lambda_iso, "seed": config.seed}
    write_json(out / "metrics.json", {"models": scores, **notes})
    _print_table(out)


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
            console.print(f"Fréchet distance on {record['features']}; it is no FID.", style="dim")
    console.print("\nLook at:")
    for name in ("samples.png", "interpolation.png", "loss.png", "metrics.json", "base", "isometric"):
        if (out / name).exists():
            console.print(f"  {out / name}", highlight=False)
