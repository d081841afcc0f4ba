"""Edits in the latent space: directions, found or learned, and what moves samples along them."""

from georeg_diffusion.editing.asymmetric import asymmetric_ddim
from georeg_diffusion.editing.encoder import encoder_at
from georeg_diffusion.editing.global_basis import GlobalBasis, global_basis
from georeg_diffusion.editing.grassmann import FrechetMean, frechet_mean, grassmann_exp, grassmann_log, principal_angles
from georeg_diffusion.editing.h_edit import add_direction, inject_content, record_h, sample_with_h
from georeg_diffusion.editing.labels import LabelDirection, held_out_accuracy, label_direction
from georeg_diffusion.editing.local_basis import LocalBasis, local_basis
from georeg_diffusion.editing.shooting import shoot
from georeg_diffusion.editing.sphere import exp_map, move, unit_tangent

__all__ = [
    "FrechetMean",
    "GlobalBasis",
    "LabelDirection",
    "LocalBasis",
    "add_direction",
    "asymmetric_ddim",
    "encoder_at",
    "exp_map",
    "frechet_mean",
    "global_basis",
    "grassmann_exp",
    "grassmann_log",
    "held_out_accuracy",
    "inject_content",
    "label_direction",
    "local_basis",
    "move",
    "principal_angles",
    "record_h",
    "sample_with_h",
    "shoot",
    "unit_tangent",
]
