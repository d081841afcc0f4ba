"""Small networks made on the spot."""

import pytest
import torch

from georeg_diffusion._compat import diffusers


def small_unet(*, attention=True, **kwargs):
    """A U-Net with every kind of block, 8 × 8, h of 16 × 4 × 4."""
    kinds = ("AttnDownBlock2D", "AttnUpBlock2D") if attention else ("DownBlock2D", "UpBlock2D")
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", kinds[0]),
        up_block_types=(kinds[1], "UpBlock2D"),
        **kwargs,
    ).eval()


@pytest.fixture
def unet():
    torch.manual_seed(3)
    return small_unet()


@pytest.fixture
def scheduler():
    return diffusers.DDPMScheduler()
