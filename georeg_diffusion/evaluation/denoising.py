"""The denoising loss on fixed draws, comparable between models."""

from __future__ import annotations

import torch
from torch import Tensor

from georeg import Estimate
from georeg_diffusion.bundle import Bundle
from georeg_diffusion.progress import track
from georeg_diffusion.schedule import alphas_cumprod, noised, training_target


@torch.no_grad()
def denoising_loss(
    bundle: Bundle, x0: Tensor, *, seed: int = 0, batch_size: int = 128, title: str = "Denoising loss"
) -> Estimate:
    """E‖prediction − target‖² per pixel over images ``(N, C, H, W)``, one stratified timestep each.

    Models that are compared at one seed see the same noise at the same timesteps; the standard error is that of
    one model's number, larger than that of a difference.
    """
    total = bundle.scheduler.config.num_train_timesteps
    generator = torch.Generator().manual_seed(seed)
    timesteps = (torch.arange(len(x0)) * total // len(x0))[torch.randperm(len(x0), generator=generator)]
    noise = torch.randn(x0.shape, generator=generator).to(x0.device)
    chunks = list(torch.arange(len(x0)).split(batch_size))
    losses = []
    for rows in track(chunks, title, len(chunks)):
        alpha_bar = alphas_cumprod(bundle.scheduler, timesteps[rows])
        x_t = noised(x0[rows], noise[rows], alpha_bar)
        target = training_target(x0[rows], noise[rows], alpha_bar, bundle.scheduler.config.prediction_type)
        prediction = bundle.network(x_t, timesteps[rows].to(x0.device)).sample
        losses.append((prediction - target).square().flatten(1).mean(1))
    each = torch.cat(losses).double()
    return Estimate.of(each)
