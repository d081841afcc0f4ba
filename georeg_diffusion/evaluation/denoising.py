"""The denoising loss on fixed draws, comparable between models."""

from __future__ import annotations

import torch
from torch import Tensor

from georeg import Estimate
from georeg_diffusion.bundle import Bundle
from georeg_diffusion.denoiser import conditioned
from georeg_diffusion.progress import track
from georeg_diffusion.schedule import network_timesteps, noised_at, target_at


@torch.no_grad()
def denoising_loss(
    bundle: Bundle,
    x0: Tensor,
    *,
    seed: int = 0,
    batch_size: int = 128,
    prompt: str | None = None,
    title: str = "Denoising loss",
) -> Estimate:
    """E‖prediction − target‖² per pixel, or number of a latent, over images ``(N, C, H, W)``, one stratified timestep each.

    Models that are compared at one seed see the same noise at the same timesteps; the standard error is that of
    one model's number, larger than that of a difference. A model of classes draws one for each image.
    """
    total = bundle.scheduler.config.num_train_timesteps
    generator = torch.Generator().manual_seed(seed)
    draws = (torch.arange(len(x0)) * total // len(x0))[torch.randperm(len(x0), generator=generator)]
    timesteps = network_timesteps(bundle.scheduler, draws)
    noise = torch.randn((len(x0), *bundle.encode(x0[:1]).shape[1:]), generator=generator)
    denoiser = conditioned(bundle, prompt=prompt, guidance_scale=1.0, seeds=range(seed, seed + len(x0)))
    chunks = list(torch.arange(len(x0)).split(batch_size))
    losses = []
    for rows in track(chunks, title, len(chunks)):
        clean = bundle.encode(x0[rows])
        eps = noise[rows].to(clean)
        x_t = noised_at(bundle.scheduler, clean, eps, timesteps[rows])
        target = target_at(bundle.scheduler, clean, eps, timesteps[rows])
        prediction = denoiser.rows(rows)(x_t, timesteps[rows].to(x_t.device))
        losses.append((prediction - target).square().flatten(1).mean(1))
    each = torch.cat(losses).double()
    return Estimate.of(each)
