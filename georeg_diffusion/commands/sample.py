"""``georeg-diffusion sample``."""

from __future__ import annotations

from dataclasses import dataclass

from georeg_diffusion.commands.options import ModelOptions
from georeg_diffusion.options import option

_SAMPLING = "Sampling"
_SHOWN = 256


@dataclass(frozen=True)
class SampleConfig(ModelOptions):
    """Draw images from a model: a sheet of all of them, and each as a file of its own.

    Image i follows from seed + i alone, whatever the batch size, with every scheduler. The weights are those in the
    model's folder; what `train` writes there is the average over training (EMA), not the last step. The same command
    again goes on with the images that an interrupted run lacks.
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

    from georeg_diffusion.commands.workspace import names_of, workspace
    from georeg_diffusion.denoiser import conditioned
    from georeg_diffusion.progress import progress
    from georeg_diffusion.report.panels import save_image, saved_image, sheet
    from georeg_diffusion.sampling.images import require_finite, writable_shape
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
        sha256, shape = work.models[config.model]["sha256"], writable_shape(bundle)
        shown: list[torch.Tensor] = []
        with torch.no_grad(), progress("Sampling", len(seeds)) as bar:
            for first in range(0, len(seeds), config.batch_size):
                batch = range(first, min(first + config.batch_size, len(seeds)))
                names = {i: f"images/{seeds[i]:06d}.png" for i in batch}
                images = {
                    i: saved_image(work.folder / names[i], model=sha256, shape=shape) if work.resumed else None
                    for i in batch
                }
                if missing := [i for i in batch if images[i] is None]:
                    some = [seeds[i] for i in missing]
                    _, latents = sample_latents(
                        denoiser.rows(missing), some, config.num_inference_steps, scheduler=config.scheduler, eta=config.eta
                    )
                    pixels = bundle.decode(latents).float().cpu()
                    require_finite(pixels, [f"seed {seed}" for seed in some])
                    for i, image in zip(missing, pixels, strict=True):
                        save_image(image, work.path(names[i]), model=sha256)
                        images[i] = image
                for name in names.values():
                    work.path(name)  # recorded, also where it was there already
                shown += [image for i in batch if i < _SHOWN and (image := images[i]) is not None]
                bar.advance(steps=len(batch))
        last = f" to {seeds[len(shown) - 1]}" if len(shown) > 1 else ""
        few = f" of {len(seeds)} images" if len(shown) < len(seeds) else ""
        how = f"{config.num_inference_steps} {config.scheduler} steps"
        model = names_of([config.model])[0]
        sheet(
            torch.stack(shown),
            work.path("samples.png"),
            title=f"{model}: seed{'s' * bool(last)} {seeds[0]}{last}{few}, {how}",
            columns=config.columns,
        )
        if config.save_latents:
            info = LatentsInfo(
                sha256,
                config.num_inference_steps,
                scheduler=config.scheduler,
                sources=tuple(f"seed {seed}" for seed in seeds),
            )
            save_latents(work.path("latents.safetensors"), seeded_noise(bundle.sample_shape, seeds), info)
