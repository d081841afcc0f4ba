"""One door for every command: a diffusion model with all that is needed to train, sample and save it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from georeg_diffusion.backbones import family_of, unwrapped
from georeg_diffusion.codec import decode, encode
from georeg_diffusion.conditioning import Conditioning, class_conditioning, null_conditioning, text_conditioning
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.pipelines import LORA, read_lora, read_network, read_pipeline, write, write_lora


@dataclass(frozen=True)
class Bundle:
    """A diffusion model.

    Attributes:
        network: the denoising network, of a family in :mod:`georeg_diffusion.backbones`.
        scheduler: the noise schedule it was trained with.
        codec: the autoencoder between pixels and latents; None for a model on pixels.
        conditioner: turns a list of prompts into the network's conditioning; None without a text encoder.
        pipeline_class: the diffusers pipeline that it saves as; None takes what fits: DDPMPipeline, LDMPipeline with a
            codec, DiTPipeline, or the bare network with its scheduler.
        components: what else that pipeline's constructor takes, such as text encoders and tokenizers.
        lora_of: the model whose low-rank adapters alone are trained, by its path; ``save`` then writes those alone.

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
    pipeline_class: str | None = None
    components: Mapping[str, Any] = field(default_factory=dict)
    lora_of: str | None = None

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one x_t."""
        config = unwrapped(self.network).config
        size = config.sample_size
        if size is None:
            raise RunError(f"sample_size: this {type(self.network).__name__} was saved without; set it in its config.json")
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

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Bundle:
        """Move it: the network to a device and precision, codec and text encoders to the device in their own precision."""
        # Diffusers' own `to` warns of layers to keep in float32 also where a network names none.
        move = (
            self.network.to if getattr(self.network, "_keep_in_fp32_modules", None) else partial(nn.Module.to, self.network)
        )
        move(device=device, dtype=dtype)
        for part in (self.codec, *self.components.values()):
            if isinstance(part, nn.Module):
                part.to(device)
        return self

    def save(self, folder: str | Path) -> None:
        """Write it as a diffusers pipeline (safetensors), whole or not at all: beside the target, then renamed.

        With ``lora_of`` as adapters in diffusers' LoRA format, which ``load_lora_weights`` of that model's pipeline takes.

        Raises:
            RunError: a codec that ``pipeline_class`` has no place for.
        """
        network = unwrapped(self.network)
        if self.lora_of is not None:
            write_lora(Path(folder), network, self.pipeline_class, self.lora_of)
            return
        write(Path(folder), network, self.scheduler, self.codec, self.pipeline_class, self.components)


def is_on_hub(path: str | Path) -> bool:
    """Whether this can only be the id of a model on the hub, ``owner/name``: nothing on this machine has the name.

    Example:
        >>> from georeg_diffusion.bundle import is_on_hub
        >>> is_on_hub("google/ddpm-cifar10-32"), is_on_hub("./model"), is_on_hub("model")
        (True, False, False)
    """
    return not Path(path).exists() and not str(path).startswith((".", "/", "~")) and str(path).count("/") == 1


def load(path: str | Path) -> Bundle:
    """Load a model: a diffusers pipeline folder, a bare network folder, or a hub id. Weights as safetensors only.

    A folder of LoRA weights that ``save`` wrote is loaded with the model they belong to, and merged into it.

    Pipelines: DDPM, DDIM, LDM, DiT, Stable Diffusion and Stable Diffusion 3, also their image-to-image variants. No code
    that comes with a model is run.

    Args:
        path: a folder with ``model_index.json`` (a pipeline) or ``config.json`` (a network, with the schedule in its
            subfolder ``scheduler``, or else diffusers' default one), or the id of a pipeline on the hub.

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
            return Bundle(**read_pipeline(str(folder)))
        if (folder / "config.json").is_file():
            return Bundle(**read_network(folder))
        if (folder / LORA).is_file():
            return Bundle(**read_lora(folder))
        raise RunError(
            f"{folder} is not a diffusers model: expected model_index.json (a pipeline) or config.json (a network) in it"
        )
    if not is_on_hub(path):
        raise RunError(f"{path} is not a folder, nor a hub id such as google/ddpm-cifar10-32; expected a diffusers model")
    return Bundle(**read_pipeline(str(path)))
