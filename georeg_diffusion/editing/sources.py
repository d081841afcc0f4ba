"""Samples by name: seeds, image files, saved latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from georeg_diffusion.bundle import Bundle
from georeg_diffusion.denoiser import conditioned
from georeg_diffusion.editing.subjects import Subjects
from georeg_diffusion.errors import UsageError
from georeg_diffusion.sampling.ddim import ddim_steps
from georeg_diffusion.sampling.ends import end_of


def subjects_of(
    bundle: Bundle,
    texts: Sequence[str],
    *,
    num_steps: int,
    option: str = "sources",
    seed: int = 0,
    refine: int = 5,
    batch_size: int = 16,
    **conditions: Any,
) -> tuple[Subjects, list[str | None]]:
    """The samples that texts name, as :func:`georeg_diffusion.sampling.ends.end_of` reads them.

    Args:
        bundle: the model.
        texts: one for each sample.
        num_steps: of DDIM.
        option: for errors.
        seed: a sample that is no seed itself draws its class, where there are classes and none is given, from seed + its
            number; a seed draws it from itself, as ``sample`` does.
        refine: fixed-point refinements of each step when an image is inverted.
        batch_size: samples at once.
        **conditions: see :func:`georeg_diffusion.denoiser.conditioned`.

    Returns:
        The samples, and for each the hash of the model that its file says it was made with.

    Raises:
        UsageError: samples at different noise levels; what cannot be read as a sample; conditions the model cannot take.
        RunError: a file that cannot be read.

    Example:
        >>> from georeg_diffusion import Bundle
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.editing.sources import subjects_of
        >>> unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        ...     norm_num_groups=4, block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2)
        >>> subjects, _ = subjects_of(Bundle(unet, diffusers.DDPMScheduler()), ["3", "7"], num_steps=4)
        >>> subjects.names, subjects.timestep
        (('seed 3', 'seed 7'), 750.0)
    """
    try:
        steps = ddim_steps(bundle.scheduler, num_steps)
    except ValueError as error:
        raise UsageError(f"--num-inference-steps: {error}") from error
    seeds = [int(text) if text.isascii() and text.isdigit() else seed + i for i, text in enumerate(texts)]
    denoiser = conditioned(bundle, seeds=seeds, **conditions)
    ends = [end_of(text, denoiser.rows([i]), num_steps, option=option, refine=refine) for i, text in enumerate(texts)]
    if len({end.start for end in ends}) > 1:
        raise UsageError(f"{option}: are at different noise levels; invert all of them alike")
    parameter = next(bundle.network.parameters())
    precision = torch.promote_types(parameter.dtype, torch.float32)
    latents = torch.cat([end.latents for end in ends]).to(parameter.device, precision)
    names = tuple(end.name for end in ends)
    return Subjects(denoiser, steps, latents, ends[0].start, names, batch_size), [end.model for end in ends]
