"""diffusers' UNet2DConditionModel: Stable Diffusion's U-Net, conditioned by cross-attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from georeg.registry import register
from georeg_diffusion.backbones.base import Backbone
from georeg_diffusion.backbones.unet2d import middle_block

_ADDED = ("text_embeds", "time_ids", "image_embeds")


@register("backbone", "unet2d_condition")
class UNet2DCondition(Backbone):
    """h is the output of the middle block; ``encoder_hidden_states`` ``(B, L, D)`` condition it."""

    def matches(self, network: Any) -> bool:
        return type(network).__name__ == "UNet2DConditionModel"

    def h_module(self, network: Any) -> nn.Module:
        return middle_block(network)

    def stride(self, network: Any) -> int:
        return 2 ** (len(network.config.block_out_channels) - 1)

    def inputs(self, x_t: Tensor, t: Tensor | int, conditioning: Mapping[str, Any]) -> dict[str, Any]:
        plain = {name: value for name, value in conditioning.items() if name not in _ADDED}
        added = {name: value for name, value in conditioning.items() if name in _ADDED}
        if added:
            plain["added_cond_kwargs"] = {**plain.get("added_cond_kwargs", {}), **added}
        return super().inputs(x_t, t, plain)

    def takes_text(self, network: Any) -> bool:
        return True
