"""Figure VIII: more traversals, here between real images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from georeg_diffusion.evaluation.setting import Setting
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.lab import Lab

TITLE = "More traversals: between two real images, inverted by DDIM"
SOURCE = "Figure VIII, App. H"
DATA = "digits"


def run(lab: Lab) -> Finding:
    """Invert real images with each model, and slerp between what each finds."""
    from georeg_diffusion.experiments.traversal_grid import finding

    return finding(
        lab,
        inverted,
        target="fig_viii.png",
        title=f"{SOURCE}: {TITLE}",
        heading=f"Figure VIII on {lab.recipe.label}: slerps between inverted real images",
        notes=(
            "The paper's are of LSUN-Church (--dataset lsun-church256); here the ends are images of the data set, inverted "
            "by each model itself, so that the noises differ and the ends agree up to the inversion's error.",
        ),
    )


def inverted(settings: Mapping[str, Setting], count: int) -> tuple[dict[str, Tensor], str]:
    """Noises of the same real images, by each model's own inversion."""
    import torch

    from georeg_diffusion.sampling.ddim import ddim, ddim_steps
    from georeg_diffusion.sampling.inversion import ddim_invert

    found, errors = {}, []
    for name, setting in settings.items():
        rows = [i % setting.num_real(2 * count) for i in range(2 * count)]
        seeds = [setting.seed + i // 2 for i in range(2 * count)]
        steps = ddim_steps(setting.bundle.scheduler, setting.steps(20, 100))
        parts = []
        for chosen in torch.arange(2 * count).split(setting.batch_size):
            denoiser = setting.denoiser([seeds[i] for i in chosen])
            x0 = setting.bundle.encode(setting.real([rows[i] for i in chosen]))
            x = ddim_invert(denoiser, steps, x0, refine=5).latents
            errors.append(float((ddim(denoiser, steps, x) - x0).square().mean()))
            parts.append(x)
        found[name] = torch.cat(parts).unflatten(0, (count, 2)).transpose(0, 1)
    return found, f"the ends are the real images up to a mean-squared error of {max(errors):.2g}"
