"""diffusers' SD3Transformer2DModel (Esser et al. 2024): two streams of tokens, trained by flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from georeg.registry import register
from georeg_diffusion.backbones.base import Backbone
from georeg_diffusion.backbones.dit import middle_of


@register("backbone", "sd3")
class SD3(Backbone):
    """h is the image stream ``(B, tokens, width)`` behind the middle block.

    ``encoder_hidden_states`` ``(B, L, D)`` and ``pooled_projections`` ``(B, P)`` condition it.
    """

    def matches(self, network: Any) -> bool:
        return type(network).__name__ == "SD3Transformer2DModel"

    def h_module(self, network: Any) -> nn.Module:
        return middle_of(network.transformer_blocks)

    def stride(self, network: Any) -> int:
        return int(network.config.patch_size)

    def inputs(self, x_t: Tensor, t: Tensor | int, conditioning: Mapping[str, Any]) -> dict[str, Any]:
        return {"hidden_states": x_t, "timestep": t, **conditioning}

    def feature(self, module: nn.Module, output: Any) -> Any:
        # A block returns (text stream, image stream); every other module's first output is the image's.
        if type(module).__name__ == "JointTransformerBlock":
            return output[1]
        return super().feature(module, output)

    def takes_text(self, network: Any) -> bool:
        return True
