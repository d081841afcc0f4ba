"""diffusers' UNet2DModel: DDPM, ADM-like and class-conditional U-Nets on pixels."""

from __future__ import annotations

from typing import Any

from torch import nn

from georeg.registry import register
from georeg_diffusion.backbones.base import Backbone


@register("backbone", "unet2d")
class UNet2D(Backbone):
    """h is the output of the middle block, the bottleneck of Kwon et al. 2023."""

    def matches(self, network: Any) -> bool:
        return type(network).__name__ == "UNet2DModel"

    def h_module(self, network: Any) -> nn.Module:
        if network.mid_block is None:
            raise ValueError("network: this UNet2DModel has no mid_block; name the submodule, as in HSpace(network, at=...)")
        block: nn.Module = network.mid_block
        return block

    def stride(self, network: Any) -> int:
        return 2 ** (len(network.config.block_out_channels) - 1)
