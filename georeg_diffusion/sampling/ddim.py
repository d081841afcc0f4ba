"""Deterministic sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from georeg_diffusion._compat import diffusers
from georeg_diffusion.bundle import Bundle

Visit = Callable[[Tensor, Tensor], Any]


def ddim_scheduler(bundle: Bundle, num_steps: int) -> Any:
    """DDIM on the bundle's schedule, without clipping: a clipped sampler is not differentiable, nor invertible."""
    total = bundle.scheduler.config.num_train_timesteps
    if not 1 <= num_steps <= total:
        raise ValueError(f"num_steps: got {num_steps}, expected a number of steps from 1 to {total}")
    scheduler = diffusers.DDIMScheduler.from_config(bundle.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(num_steps)
    return scheduler


@torch.no_grad()
def ddim_sample(bundle: Bundle, x_T: Tensor, num_steps: int, visit: Visit | None = None) -> Tensor:
    """Decode noise ``(B, C, H, W)`` to images in [−1, 1] by DDIM with η = 0 (Song et al. 2020a).

    Args:
        bundle: the model.
        x_T: standard normal noise; equal noise gives equal images.
        num_steps: denoising steps.
        visit: called with (x_t, t) before each step.
    """
    scheduler = ddim_scheduler(bundle, num_steps)
    x = x_T
    for t in scheduler.timesteps:
        if visit is not None:
            visit(x, t)
        prediction = bundle.network(x, t.to(x.device)).sample
        x = scheduler.step(prediction, t, x).prev_sample
    return x.clamp(-1, 1)
