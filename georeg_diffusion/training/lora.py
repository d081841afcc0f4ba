"""Low-rank adapters (Hu et al. 2022) on the attention of a diffusers network, by peft."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from georeg_diffusion._compat import diffusers
from georeg_diffusion.backbones import family_of, unwrapped
from georeg_diffusion.bundle import Bundle
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.training.config import TrainConfig

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections that diffusers' own scripts adapt."""


def wants_lora(bundle: Bundle, config: TrainConfig) -> bool:
    """Whether adapters alone are trained: as asked for, and by default for a pipeline on text.

    Raises:
        UsageError: they were asked for, and diffusers has no LoRA for this model.
    """
    can = _has_lora(bundle)
    if config.lora and not can:
        name = bundle.pipeline_class or f"a bare {type(unwrapped(bundle.network)).__name__}"
        raise UsageError(f"--lora: diffusers has no LoRA format for {name}; leave the option out to train all weights")
    network = unwrapped(bundle.network)
    return can and family_of(network).takes_text(network) if config.lora is None else config.lora


def with_lora(bundle: Bundle, base: str, config: TrainConfig) -> Bundle:
    """The model with fresh adapters, which change nothing yet, and nothing else to train.

    Args:
        bundle: freshly loaded.
        base: its path, for whoever loads the adapters.
        config: rank and scale.

    Raises:
        RunError: peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise RunError("LoRA needs peft: pip install 'georeg[lora]', or pass --no-lora to train all weights") from error
    network = unwrapped(bundle.network)
    network.requires_grad_(False)
    alpha = config.lora_alpha if config.lora_alpha is not None else config.rank
    network.add_adapter(
        LoraConfig(r=config.rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(TARGETS))
    )
    return replace(bundle, lora_of=str(Path(base).resolve()) if Path(base).exists() else base)


def _has_lora(bundle: Bundle) -> bool:
    pipeline_class = getattr(diffusers, bundle.pipeline_class or "", None)
    return hasattr(pipeline_class, "save_lora_weights") and hasattr(unwrapped(bundle.network), "add_adapter")
