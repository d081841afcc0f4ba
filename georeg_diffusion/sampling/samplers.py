"""Images from seeds, by DDIM or any scheduler of diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from georeg_diffusion._compat import diffusers
from georeg_diffusion.denoiser import Denoiser
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.sampling.ddim import ddim, ddim_steps
from georeg_diffusion.sampling.noise import seeded_noise
from georeg_diffusion.schedule import is_flow

_ENDINGS = ("scheduler", "discretescheduler", "multistepscheduler", "discretemultistepscheduler")


def scheduler_class(name: str) -> Any:
    """A scheduler class of diffusers by its name or a short form: ddpm, euler, heun, dpmsolver, unipc, pndm, …

    Raises:
        UsageError: no such scheduler, with those there are.

    Example:
        >>> from georeg_diffusion.sampling.samplers import scheduler_class
        >>> scheduler_class("dpmsolver").__name__, scheduler_class("euler-ancestral").__name__
        ('DPMSolverMultistepScheduler', 'EulerAncestralDiscreteScheduler')
    """
    wanted = name.lower().replace("-", "").replace("_", "")
    known = {n.lower(): n for n in dir(diffusers) if n.endswith("Scheduler") and not n.startswith(("Flax", "Base"))}
    for ending in ("", *_ENDINGS):
        if wanted + ending in known:
            return getattr(diffusers, known[wanted + ending])
    short = sorted(n.removesuffix("Scheduler") for n in known.values())
    raise UsageError(f"--scheduler: got {name!r}, expected ddim, ddpm, euler, dpmsolver or another of {', '.join(short)}")


@torch.no_grad()
def sample_latents(
    denoiser: Denoiser, seeds: Sequence[int], num_steps: int, *, scheduler: str = "ddim", eta: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Sample ``(x_T, x_0)``, each ``(B, C, H, W)``, sample i from seed i alone, also by schedulers that add noise.

    DDIM with η = 0 never clips, so that it can be inverted; all others do what the model's configuration says.

    Args:
        denoiser: the model with its conditions.
        seeds: of the samples; one stream for each serves its x_T and every noise that the scheduler adds to it.
        num_steps: K.
        scheduler: see :func:`scheduler_class`.
        eta: DDIM's share of noise: 0 is deterministic, 1 that of DDPM.

    Raises:
        UsageError: an unknown scheduler; one that this model or these steps do not go with; η for another than DDIM.

    Example:
        >>> from georeg_diffusion import Bundle, Denoiser
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.sampling.samplers import sample_latents
        >>> unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        ...     norm_num_groups=4, block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2)
        >>> denoiser = Denoiser(Bundle(unet, diffusers.DDPMScheduler()))
        >>> sample_latents(denoiser, [0, 1], 2, scheduler="euler-ancestral")[1].shape
        torch.Size([2, 1, 8, 8])
    """
    bundle = denoiser.bundle
    kind = scheduler_class(scheduler)
    flow = is_flow(bundle.scheduler)
    is_ddim = kind.__name__ == "DDIMScheduler"
    if eta and (not is_ddim or flow):
        raise UsageError("--eta: is DDIM's share of noise on a diffusion schedule; leave it out here")
    device = next(bundle.network.parameters()).device
    noise = seeded_noise(bundle.sample_shape, seeds).to(device)
    if not len(noise):
        return noise, noise
    if (is_ddim or kind.__name__ == "FlowMatchEulerDiscreteScheduler") and not eta and (is_ddim or flow):
        try:
            steps = ddim_steps(bundle.scheduler, num_steps)
        except ValueError as error:
            raise UsageError(f"--num-inference-steps: {error}") from error
        return noise, ddim(denoiser, steps, noise)
    return noise, _by_scheduler(denoiser, kind, noise, seeds, num_steps, eta)


def _by_scheduler(denoiser: Denoiser, kind: Any, noise: Tensor, seeds: Sequence[int], num_steps: int, eta: float) -> Tensor:
    source, name = denoiser.bundle.scheduler, kind.__name__.removesuffix("Scheduler")
    if is_flow(source) != name.startswith("FlowMatch"):
        trained = "flow matching" if is_flow(source) else "diffusion"
        raise UsageError(f"--scheduler: got {name}, which does not go with this model's {trained}; leave it out for DDIM")
    changes: dict[str, Any] = {}
    if str(source.config.get("variance_type", "")).startswith("learned"):
        changes["variance_type"] = "fixed_small"  # the denoiser returns the mean alone
    try:
        scheduler = kind.from_config(source.config, **changes)
        scheduler.set_timesteps(num_steps)
        takes = inspect.signature(scheduler.step).parameters
    except (ValueError, TypeError, AttributeError, ImportError, NotImplementedError, IndexError) as error:
        raise UsageError(f"--scheduler: {name} with {num_steps} steps: {' '.join(str(error).split())}") from error
    # On from where seeded_noise stopped in each stream: the noise of a step is not that of x_T once more.
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    for generator in generators:
        torch.randn(noise.shape[1:], generator=generator)
    if "generator" not in takes and "noise_sampler" in inspect.getsource(kind.step):
        raise UsageError(f"--scheduler: {name} draws noise that cannot follow from the seed of each sample; choose another")
    extra = {k: v for k, v in {"generator": generators, "eta": eta}.items() if k in takes}
    x = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
    try:
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(denoiser(scaled, t), t, x, **extra).prev_sample
    except (TypeError, AttributeError, NotImplementedError) as error:
        raise RunError(f"--scheduler: {name} does not run on this model: {' '.join(str(error).split())}") from error
    return x.to(noise.dtype)
