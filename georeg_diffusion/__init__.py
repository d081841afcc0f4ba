"""Isometric Diffusion: the regularisers of georeg on diffusion models, from training to scores."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from georeg_diffusion.bundle import Bundle, load
    from georeg_diffusion.denoiser import Denoiser
    from georeg_diffusion.h_space import HSpace
    from georeg_diffusion.objective import IsometricDiffusionLoss, ObjectiveOutput
    from georeg_diffusion.schedule import IsometryGate
    from georeg_diffusion.training.config import TrainConfig
    from georeg_diffusion.training.run import run as train

# Imported on first use: the command line must show its help without loading torch.
_HOMES = {
    "Bundle": "bundle",
    "Denoiser": "denoiser",
    "HSpace": "h_space",
    "IsometricDiffusionLoss": "objective",
    "IsometryGate": "schedule",
    "ObjectiveOutput": "objective",
    "TrainConfig": "training.config",
    "load": "bundle",
    "train": "training.run:run",
}

__all__ = [
    "Bundle",
    "Denoiser",
    "HSpace",
    "IsometricDiffusionLoss",
    "IsometryGate",
    "ObjectiveOutput",
    "TrainConfig",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'georeg_diffusion' has no attribute {name!r}")
    import_module("georeg_diffusion._compat")  # before anyone's `from diffusers import …`
    home, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(f"georeg_diffusion.{home}"), attribute or name)


def __dir__() -> list[str]:
    return sorted(__all__)
