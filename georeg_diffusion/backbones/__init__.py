"""Denoising networks, one family a file."""

from georeg_diffusion.backbones.base import Backbone, backbone_of
from georeg_diffusion.backbones.unet2d import UNet2D

__all__ = ["Backbone", "UNet2D", "backbone_of"]
