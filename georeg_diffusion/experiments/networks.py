"""The networks whose costs are counted, here and by the benchmarks: published architectures, with random weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from georeg_diffusion._compat import diffusers


def _unet(levels: int, attention: set[int], **config: Any) -> nn.Module:
    network: nn.Module = diffusers.UNet2DModel(
        down_block_types=tuple("AttnDownBlock2D" if i in attention else "DownBlock2D" for i in range(levels)),
        up_block_types=tuple("AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(range(levels))),
        layers_per_block=2,
        in_channels=3,
        out_channels=3,
        **config,
    )
    return network


def ddpm256() -> nn.Module:
    """google/ddpm-celebahq-256 (and -church-, -bedroom-256): 114 M parameters, attention at 16²."""
    return _unet(
        6,
        {4},
        sample_size=256,
        block_out_channels=(128, 128, 256, 256, 512, 512),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )


def ldm_celebahq() -> nn.Module:
    """CompVis/ldm-celebahq-256's U-Net on 64² latents: 274 M parameters, attention at 32², 16² and 8²."""
    return _unet(4, {1, 2, 3}, sample_size=64, block_out_channels=(224, 448, 672, 896), attention_head_dim=32)


def small_unet() -> nn.Module:
    """The U-Net of the repository's cost table: 32², channels 64, 128, 128, 128, attention at 16²."""
    return _unet(4, {1}, sample_size=32, block_out_channels=(64, 128, 128, 128))


def encoder(size: int) -> nn.Module:
    """A U-Net whose encoder is small enough for the exact Jacobian: channels 16, 32, 32, 32, h of 32 × (size/8)²."""
    network: nn.Module = diffusers.UNet2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        norm_num_groups=8,
        block_out_channels=(16, 32, 32, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    return network
