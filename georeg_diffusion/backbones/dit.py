"""diffusers' DiTTransformer2DModel (Peebles and Xie 2023): class-conditional transformers on latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from georeg.registry import register
from georeg_diffusion.backbones.base import Backbone


def middle_of(blocks: nn.ModuleList) -> nn.Module:
    """The block behind which half of the K blocks have run: number ⌈K/2⌉, counted from 1."""
    return blocks[(len(blocks) - 1) // 2]


@register("backbone", "dit")
class DiT(Backbone):
    """h is the output ``(B, tokens, width)`` of the middle block; label ``num_classes`` stands for no class."""

    def matches(self, network: Any) -> bool:
        return type(network).__name__ == "DiTTransformer2DModel"

    def h_module(self, network: Any) -> nn.Module:
        return middle_of(network.transformer_blocks)

    def stride(self, network: Any) -> int:
        return int(network.config.patch_size)

    def inputs(self, x_t: Tensor, t: Tensor | int, conditioning: Mapping[str, Any]) -> dict[str, Any]:
        return {"hidden_states": x_t, "timestep": t, **conditioning}

    def num_classes(self, network: Any) -> int | None:
        return int(network.config.num_embeds_ada_norm)

    def null_class(self, network: Any) -> int | None:
        return int(network.config.num_embeds_ada_norm)
