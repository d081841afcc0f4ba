"""``georeg-diffusion train``."""

from __future__ import annotations

from georeg_diffusion.training.config import TrainConfig

CONFIG = TrainConfig


def run(config: TrainConfig) -> None:
    """See :func:`georeg_diffusion.training.run.run`."""
    from georeg_diffusion.training.run import run as train

    train(config)
