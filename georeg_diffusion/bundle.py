"""One door for every command: a diffusion model with all that is needed to train, sample and save it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from georeg_diffusion._compat import diffusers
from georeg_diffusion.backbones import family_of, unwrapped
from georeg_diffusion.codec import decode, encode
from georeg_diffusion.conditioning import Conditioning, class_conditioning, null_conditioning, text_conditioning
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.files import replacing

_NETWORKS = ("UNet2DModel",)


@dataclass(frozen=True)
class Bundle:
    """A diffusion model.

    Attributes:
        network: the denoising network, called as ``network(sample, timestep, **conditioning)``.
        scheduler: the noise schedule it was trained with.
        codec: the autoencoder between pixels and latents; None for a model on pixels.
        conditioner: what turns prompts or labels into the network's conditioning; None if unconditional.
        pipeline_class: the diffusers pipeline that it saves as.

    Example:
        >>> from georeg_diffusion import Bundle
        >>> from georeg_diffusion._compat import diffusers
        >>> unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        ...     norm_num_groups=4, block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2)
        >>> Bundle(unet, diffusers.DDPMScheduler()).sample_shape
        (1, 8, 8)
    """

    network: Any
    scheduler: Any
    codec: nn.Module | None = None
    conditioner: Any = None
    pipeline_class: str = "DDPMPipeline"

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one x_t."""
        config = self.network.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(config.in_channels), int(height), int(width)

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images ``(B, C, H, W)`` in [−1, 1], as the network sees them; images themselves without a codec."""
        return images if self.codec is None else encode(self.codec, images)

    def decode(self, latents: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` in [−1, 1] of latents; the latents themselves, clamped, without a codec."""
        return (latents if self.codec is None else decode(self.codec, latents)).clamp(-1, 1)

    def conditioning(
        self, prompts: Sequence[str] | str | None = None, class_labels: Sequence[int] | Tensor | None = None
    ) -> Conditioning:
        """The network's conditioning, one row for each prompt or label.

        Without either: empty for an unconditional model, the empty prompt for one on text.

        Raises:
            UsageError: naming the option, where the model takes no such condition, needs a class, or has no such class.
            RunError: prompts for a model without a text encoder.
        """
        network = unwrapped(self.network)
        conditioning: Conditioning = {}
        if prompts is not None:
            conditioning |= text_conditioning(network, self.conditioner, prompts)
        elif family_of(network).takes_text(network):
            conditioning |= null_conditioning(network, self.conditioner)
        if class_labels is not None:
            conditioning |= class_conditioning(network, class_labels)
        elif (classes := family_of(network).num_classes(network)) is not None:
            raise UsageError(f"--class-label: this model needs one, from 0 to {classes - 1}")
        return conditioning

    def save(self, folder: str | Path) -> None:
        """Write it as a diffusers pipeline (safetensors), whole or not at all: beside the target, then renamed."""
        pipeline = getattr(diffusers, self.pipeline_class)(unet=self.network, scheduler=self.scheduler)
        with replacing(Path(folder)) as scratch:
            pipeline.save_pretrained(scratch, safe_serialization=True)


def load(path: str | Path) -> Bundle:
    """Load a model: a diffusers pipeline folder, a bare network folder, or a hub id. Weights as safetensors only.

    Args:
        path: a folder with ``model_index.json`` (a pipeline) or ``config.json`` (a network; it then gets diffusers'
            default DDPM schedule), or the id of a pipeline on the hub.

    Raises:
        RunError: naming what is missing or not supported.

    Example:
        >>> import tempfile
        >>> from georeg_diffusion import Bundle, load
        >>> from georeg_diffusion._compat import diffusers
        >>> unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        ...     norm_num_groups=4, block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Bundle(unet, diffusers.DDPMScheduler()).save(f"{folder}/model")
        ...     load(f"{folder}/model").sample_shape
        (1, 8, 8)
    """
    folder = Path(path)
    if folder.is_dir():
        if (folder / "model_index.json").is_file():
            return _load_pipeline(str(folder))
        if (folder / "config.json").is_file():
            return _load_network(folder)
        raise RunError(
            f"{folder} is not a diffusers model: expected model_index.json (a pipeline) or config.json (a network) in it"
        )
    if folder.exists() or str(path).startswith((".", "/", "~")) or str(path).count("/") != 1:
        raise RunError(f"{path} is not a folder, nor a hub id such as google/ddpm-cifar10-32; expected a diffusers model")
    return _load_pipeline(str(path))


def _load_pipeline(path: str) -> Bundle:
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(path, use_safetensors=True)
    except (OSError, ValueError, AttributeError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunError(
            f"cannot load {path}: {first_line} (a local folder needs its weights as .safetensors; a hub id needs the "
            "network or a filled HF_HOME cache)"
        ) from error
    network: Any = getattr(pipeline, "unet", None)
    if type(network).__name__ not in _NETWORKS:
        raise RunError(
            f"cannot use {path}: its {type(pipeline).__name__} holds a {type(network).__name__}, expected a pipeline around "
            f"{' or '.join(_NETWORKS)}"
        )
    return Bundle(network, pipeline.scheduler, pipeline_class="DDPMPipeline")


def _load_network(folder: Path) -> Bundle:
    name = json.loads((folder / "config.json").read_text()).get("_class_name")
    if name not in _NETWORKS:
        raise RunError(f"cannot use {folder}: it holds a {name}, expected {' or '.join(_NETWORKS)}")
    try:
        network = getattr(diffusers, name).from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot load {folder}: {str(error).strip().splitlines()[0]}") from error
    return Bundle(network, diffusers.DDPMScheduler())
