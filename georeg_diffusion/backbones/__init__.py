"""Denoising networks, one family a file."""

from georeg_diffusion.backbones.base import Backbone, backbone_of, family_of, predict, run_network, unwrapped
from georeg_diffusion.backbones.dit import DiT
from georeg_diffusion.backbones.sd3 import SD3
from georeg_diffusion.backbones.unet2d import UNet2D
from georeg_diffusion.backbones.unet2d_condition import UNet2DCondition

__all__ = [
    "SD3",
    "Backbone",
    "DiT",
    "UNet2D",
    "UNet2DCondition",
    "backbone_of",
    "family_of",
    "predict",
    "run_network",
    "unwrapped",
]
