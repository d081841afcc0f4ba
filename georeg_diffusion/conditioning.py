"""What conditions a network, as a flat mapping of tensors with one row for each sample: prompts and class labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from georeg_diffusion.backbones import family_of, unwrapped
from georeg_diffusion.errors import RunError, UsageError

Conditioning = dict[str, Tensor]
Conditioner = Callable[[Sequence[str]], Conditioning]
"""Turns n prompts into tensors with n rows, by the names of the network's arguments."""


def class_conditioning(network: Any, labels: Sequence[int] | Tensor) -> Conditioning:
    """Class labels ``(n,)``, checked against the network.

    Raises:
        UsageError: a network without classes; a label out of range.

    Example:
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.conditioning import class_conditioning
        >>> unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        ...     norm_num_groups=4, block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2, num_class_embeds=10)
        >>> class_conditioning(unet, [3, 7])
        {'class_labels': tensor([3, 7])}
    """
    inner = unwrapped(network)
    classes = family_of(inner).num_classes(inner)
    if classes is None:
        raise UsageError(f"--class-label: this {type(inner).__name__} takes no class labels; leave the option out")
    rows = torch.as_tensor(labels).reshape(-1)
    if rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool:
        raise UsageError(f"--class-label: got {rows.dtype}, expected whole numbers from 0 to {classes - 1}")
    wrong = [label for label in rows.tolist() if not 0 <= label < classes]
    if wrong:
        raise UsageError(f"--class-label: got {wrong[0]}, expected a class from 0 to {classes - 1}")
    return {"class_labels": rows.long()}


def text_conditioning(network: Any, conditioner: Conditioner | None, prompts: Sequence[str] | str) -> Conditioning:
    """Embedded prompts, one row for each.

    Raises:
        UsageError: a network without text conditioning.
        RunError: a model without text encoder.
    """
    inner = unwrapped(network)
    if not family_of(inner).takes_text(inner):
        raise UsageError(f"--prompt: this {type(inner).__name__} is not conditioned on text; leave the option out")
    if conditioner is None:
        raise RunError(
            f"--prompt: this {type(inner).__name__} came without a text encoder; load the whole pipeline's folder, or pass "
            "embeddings yourself, as in Denoiser(bundle, {'encoder_hidden_states': ...})"
        )
    return dict(conditioner([prompts] if isinstance(prompts, str) else list(prompts)))


def null_conditioning(network: Any, conditioner: Conditioner | None) -> Conditioning:
    """The one row of conditioning that stands for none in classifier-free guidance: the empty prompt, or the null class.

    Raises:
        UsageError: a network without such a thing.
        RunError: a text-conditioned model without text encoder.
    """
    inner = unwrapped(network)
    family = family_of(inner)
    if family.takes_text(inner):
        return text_conditioning(network, conditioner, [""])
    null = family.null_class(inner)
    if null is not None:
        return {"class_labels": torch.tensor([null])}
    reason = "has no class that stands for none" if family.num_classes(inner) is not None else "is not conditional"
    raise UsageError(f"--guidance-scale: this {type(inner).__name__} {reason}, so there is nothing to guide; leave it at 1")


def text_conditioner(pipeline: Any) -> Conditioner | None:
    """Prompts embedded by a Stable Diffusion pipeline's own ``encode_prompt``; None where it has none."""
    if not hasattr(pipeline, "encode_prompt"):
        return None
    # Stable Diffusion 3 wants a prompt for each of its three text encoders; None repeats the first.
    repeated = [name for name in inspect.signature(pipeline.encode_prompt).parameters if name in ("prompt_2", "prompt_3")]

    @torch.no_grad()
    def embed(prompts: Sequence[str]) -> Conditioning:
        encoder = next(part for name, part in pipeline.components.items() if name.startswith("text_encoder") and part)
        embeddings = pipeline.encode_prompt(
            list(prompts),
            **dict.fromkeys(repeated),
            device=next(encoder.parameters()).device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        conditioning = {"encoder_hidden_states": embeddings[0]}
        if len(embeddings) > 2:
            conditioning["pooled_projections"] = embeddings[2]
        return conditioning

    return embed
