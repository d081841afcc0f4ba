"""``georeg-diffusion sample``."""

from __future__ import annotations

from dataclasses import dataclass

from georeg_diffusion.commands.options import ModelOptions
from georeg_diffusion.options import option

_SAMPLING = "Sampling"


@dataclass(frozen=True)
class SampleConfig(ModelOptions):
    """Draw images from a model: a sheet of all of them, and each as a file of its own.

    Image i follows from seed + i alone, whatever the batch size, with every scheduler. The weights are those in the
    model's folder; what `train` writes there is the average over training (EMA), not the last step.
    """

    num_images: int = option(16, "How many.", panel=_SAMPLING, minimum=1)
    scheduler: str = option(
        "ddim",
        "ddim, ddpm, euler, euler-ancestral, heun, dpmsolver, unipc, pndm, … or any scheduler class of diffusers.",
        panel=_SAMPLING,
    )
    eta: float = option(0.0, "Noise of DDIM: 0 is deterministic, 1 as much as DDPM.", panel=_SAMPLING, minimum=0, maximum=1)
    columns: int | None = option(None, "Of the sheet. Default: about a square.", panel=_SAMPLING, minimum=1)
    save_latents: bool = option(
        False, "Also write the starting noise, for `interpolate` and `edit`: latents.safetensors.", panel=_SAMPLING
    )


CONFIG = SampleConfig


def run(config: SampleConfig) -> None:
    """Sample in batches, write every image, then the sheet."""
    import torch

    from georeg_diffusion.commands.workspace import workspace
    from georeg_diffusion.denoiser import conditioned
    from georeg_diffusion.progress import progress
    from georeg_diffusion.report.panels import save_image, sheet
    from georeg_diffusion.sampling.latents import LatentsInfo, save_latents
    from georeg_diffusion.sampling.noise import seeded_noise
    from georeg_diffusion.sampling.samplers import sample_latents

    with workspace(config, "sample") as work:
        bundle = work.open(config.model)
        seeds = list(range(config.seed, config.seed + config.num_images))
        denoiser = conditioned(
            bundle,
            prompt=config.prompt,
            negative_prompt=config.negative_prompt,
            guidance_scale=config.guidance_scale,
            class_label=config.class_label,
            seeds=seeds,
        )
        parts = []
        with torch.no_grad(), progress("Sampling", len(seeds)) as bar:
            for first in range(0, len(seeds), config.batch_size):
                rows = slice(first, first + config.batch_size)
                _, latents = sample_latents(
                    denoiser.rows(rows), seeds[rows], config.num_inference_steps, scheduler=config.scheduler, eta=config.eta
                )
                parts.append(bundle.decode(latents).float().cpu())
                for seed, pixels in zip(seeds[rows], parts[-1], strict=True):
                    save_image(pixels, work.path(f"images/{seed:06d}.png"))
                    bar.advance()
        last = f" to {seeds[-1]}" if len(seeds) > 1 else ""
        title = f"{config.model}: seeds {seeds[0]}{last}, {config.num_inference_steps} {config.scheduler} steps"
        sheet(torch.cat(parts), work.path("samples.png"), title=_short(title), columns=config.columns)
        if config.save_latents:
            info = LatentsInfo(
                work.models[config.model]["sha256"],
                config.num_inference_steps,
                scheduler=config.scheduler,
                sources=tuple(f"seed {seed}" for seed in seeds),
            )
            save_latents(work.path("latents.safetensors"), seeded_noise(bundle.sample_shape, seeds), info)


def _short(title: str) -> str:
    return title if len(title) <= 80 else "…" + title[-79:]
