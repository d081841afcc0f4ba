"""diffusers' UNet2DModel: DDPM, ADM-like and class-conditional U-Nets on pixels or unconditional latents."""

from __future__ import annotations

from typing import Any

from torch import nn

from georeg.registry import register
from georeg_diffusion.backbones.base import Backbone


def middle_block(network: Any) -> nn.Module:
    """The middle block of a U-Net, the bottleneck of Kwon et al. 2023."""
    if network.mid_block is None:
        raise ValueError(
            f"network: this {type(network).__name__} has no mid_block; name the submodule, as in HSpace(network, at=...)"
        )
    block: nn.Module = network.mid_block
    return block


@register("backbone", "unet2d")
class UNet2D(Backbone):
    """h is the output of the middle block. Class labels are integers; no label is kept for "no class"."""

    def matches(self, network: Any) -> bool:
        return type(network).__name__ == "UNet2DModel"

    def h_module(self, network: Any) -> nn.Module:
        return middle_block(network)

    def stride(self, network: Any) -> int:
        return 2 ** (len(network.config.block_out_channels) - 1)

    def num_classes(self, network: Any) -> int | None:
        return network.config.num_class_embeds if network.config.class_embed_type is None else None
