"""A small autoencoder trained in place, for a latent diffusion model where none can be downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from georeg_diffusion._compat import diffusers
from georeg_diffusion.codec import decode, encode, load_codec
from georeg_diffusion.data.images import Images
from georeg_diffusion.files import replacing
from georeg_diffusion.progress import progress

_BATCH, _RATE, _KL = 64, 2e-3, 1e-4


def train_autoencoder(
    images: Images, folder: Path, *, steps: int, device: torch.device | str = "cpu", seed: int = 0
) -> Path:
    """An AutoencoderKL that halves height and width, to four channels, with latents scaled to unit size.

    Args:
        images: to learn.
        folder: where it is saved, whole; one that is there already is taken.
        steps: of 64 images.
        device: where to compute.
        seed: of weights and batches.
    """
    if (folder / "config.json").is_file():
        return folder
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = diffusers.AutoencoderKL(
            in_channels=images.channels,
            out_channels=images.channels,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=8,
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ).to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=max(steps, 2))
        with progress("Autoencoder", steps) as bar:
            for _ in range(steps):
                pixels = images.batch(torch.randint(len(images), (_BATCH,))).to(device)
                posterior = network.encode(pixels).latent_dist
                error = nn.functional.mse_loss(network.decode(posterior.sample()).sample, pixels)
                loss = error + _KL * posterior.kl().mean() / pixels[0].numel()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.advance(f"error {float(error.detach()):.4f}")
        network.eval()
        with torch.no_grad():
            modes = network.encode(images.batch(range(min(len(images), 1024))).to(device)).latent_dist.mode()
        # Unit size is what the noise schedule expects.
        network.register_to_config(scaling_factor=float(1 / modes.std()))
    with replacing(folder) as scratch:
        network.to("cpu").save_pretrained(scratch)
    return folder


@torch.no_grad()
def signal_to_noise(folder: Path, images: Images) -> float:
    """PSNR in dB of decoded latents of images in [−1, 1], up to 256 of them."""
    codec = load_codec(str(folder))
    pixels = images.batch(range(min(len(images), 256)))
    error = (decode(codec, encode(codec, pixels)).clamp(-1, 1) - pixels).square().mean()
    return float(10 * torch.log10(4 / error))
