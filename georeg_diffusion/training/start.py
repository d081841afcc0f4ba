"""What a run begins from: images as the model takes them, what the network sees of them, and the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from georeg_diffusion._compat import diffusers
from georeg_diffusion.backbones import backbone_of
from georeg_diffusion.bundle import Bundle, load
from georeg_diffusion.codec import load_codec, stride_of
from georeg_diffusion.data.images import Images
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.pipelines import LORA
from georeg_diffusion.training.config import TrainConfig
from georeg_diffusion.training.data import open_images
from georeg_diffusion.training.encode import cached_latents
from georeg_diffusion.training.lora import wants_lora, with_lora


def pixel_images(config: TrainConfig, given: Any) -> Images:
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


def network_inputs(config: TrainConfig, images: Images, accelerator: Any) -> Images:
    """What the network sees: the images, or their latents."""
    codec = load_codec(config.vae) if config.vae else None
    if codec is None and config.pretrained_model_name_or_path is not None:
        codec = load(config.pretrained_model_name_or_path).codec
    return images if codec is None else cached_latents(images, codec, cache_of(config), accelerator)


def cache_of(config: TrainConfig) -> Path:
    """Where encoded images and captions are kept."""
    return config.cache_dir or config.output_dir / "cache"


def starting_model(config: TrainConfig, images: Images, out: Path, phase: str) -> Bundle:
    """The model that a phase begins from, for inputs of the size of ``images``."""
    if phase != "pretrained" and is_model(out / "pretrained"):
        return _checkpointed(load(out / "pretrained"), config)
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
    return _checkpointed(bundle, config)


def _checkpointed(bundle: Bundle, config: TrainConfig) -> Bundle:
    if config.gradient_checkpointing:
        try:
            bundle.network.enable_gradient_checkpointing()
        except (AttributeError, ValueError) as error:
            name = type(bundle.network).__name__
            raise UsageError(f"--gradient-checkpointing: a {name} has none; leave the option out") from error
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


def is_model(folder: Path) -> bool:
    """Whether a phase has saved its result: a pipeline, a bare network, or LoRA weights."""
    return any((folder / name).is_file() for name in ("model_index.json", "config.json", LORA))
