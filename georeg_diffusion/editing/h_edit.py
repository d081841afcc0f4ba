"""Edits of h during sampling: a direction added, or the content of other images injected."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from georeg_diffusion.denoiser import Denoiser
from georeg_diffusion.editing.asymmetric import asymmetric_ddim
from georeg_diffusion.h_space import HSpace
from georeg_diffusion.sampling.ddim import DDIMSteps, ddim

HEdit = Callable[[Tensor, float], Tensor]
"""(h, timestep) ↦ edited h, of the same shape. Under guidance h has the rows of both branches, one after the other."""


def sample_with_h(
    denoiser: Denoiser,
    steps: DDIMSteps,
    x: Tensor,
    edit: HEdit,
    *,
    interval: tuple[float, float] = (0, float("inf")),
    asymmetric: bool = True,
    start: int = 0,
    at: str | None = None,
) -> Tensor:
    """x₀, or latents of it, by DDIM from x with h edited inside an interval of timesteps.

    Args:
        denoiser: the model with its conditions; guidance is edited on both branches.
        steps, x, interval, asymmetric, start: see :func:`georeg_diffusion.editing.asymmetric.asymmetric_ddim`.
        edit: such as :func:`add_direction` or :func:`inject_content`.
        at: the submodule whose output is h.

    Raises:
        ValueError: an edit that changes the shape of h; an interval or a start out of range.

    References:
        Kwon et al. 2023, Diffusion models already have a semantic latent space.

    Example:
        >>> import torch
        >>> from georeg_diffusion import Bundle, Denoiser
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.editing.h_edit import sample_with_h
        >>> from georeg_diffusion.sampling.ddim import ddim, ddim_steps
        >>> unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        ...     norm_num_groups=4, block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2)
        >>> denoiser = Denoiser(Bundle(unet, diffusers.DDPMScheduler()))
        >>> steps, x = ddim_steps(denoiser.bundle.scheduler, 3), torch.randn(2, 1, 8, 8)
        >>> torch.equal(sample_with_h(denoiser, steps, x, lambda h, t: h + 0), ddim(denoiser, steps, x))
        True
    """
    space = HSpace(denoiser.bundle.network, at)

    def edited(x: Tensor, t: Tensor) -> Tensor:
        with space.inject(lambda h: edit(h, float(t))):
            return denoiser(x, t)

    return asymmetric_ddim(
        denoiser,
        edited,
        steps,
        denoiser.bundle.scheduler,
        x,
        interval=interval,
        asymmetric=asymmetric,
        start=start,
    )


def add_direction(directions: Tensor, strengths: Tensor | float) -> HEdit:
    """The edit h ↦ h + c ‖h‖ d̂: a share c of h's own length along a direction, at every timestep.

    h is not on a sphere and its length changes with t, hence the relative length.

    Args:
        directions: d ``(B, *event of h)`` or ``(1, ...)``, scaled to length 1.
        strengths: c, one for all or ``(B,)``.

    Raises:
        ValueError: a direction of length zero, or not finite.

    Example:
        >>> import torch
        >>> from georeg_diffusion.editing.h_edit import add_direction
        >>> add_direction(torch.tensor([[0.0, 7.0]]), 0.5)(torch.tensor([[2.0, 0.0]]), 900)
        tensor([[2., 1.]])
    """
    length = torch.linalg.vector_norm(directions.flatten(1), dim=1)
    if not bool(((length > 0) & torch.isfinite(length)).all()):
        raise ValueError("directions: hold one that is zero or not finite, expected vectors of h-space")
    units = directions / length.reshape(-1, *(1,) * (directions.ndim - 1))
    c = torch.as_tensor(strengths, dtype=units.dtype, device=units.device).reshape(-1)

    def edit(h: Tensor, _t: float) -> Tensor:
        size = torch.linalg.vector_norm(h.flatten(1), dim=1, dtype=torch.promote_types(h.dtype, torch.float32))
        share = _rows_for(c, h, "strengths").to(size) * size
        return h + (share.reshape(-1, *(1,) * (h.ndim - 1)) * _rows_for(units, h, "directions").to(size)).to(h.dtype)

    return edit


def inject_content(content: dict[float, Tensor], strength: float = 1.5) -> HEdit:
    """The edit h_t ↦ h_t + c·h′_t, h′ of other images (Fig. VI with c = 1.5).

    h_t is that of the running, edited sample, as in Jeong et al.

    Args:
        content: h′ by timestep, from :func:`record_h`.
        strength: c.

    Raises:
        ValueError: when it is used at a timestep that was not recorded, or with another number of rows.

    References:
        Jeong, Kwon, Uh 2023, Training-free style transfer emerges from h-space in diffusion models.

    Example:
        >>> import torch
        >>> from georeg_diffusion.editing.h_edit import inject_content
        >>> inject_content({900: torch.tensor([[2.0]])})(torch.tensor([[1.0]]), 900)
        tensor([[4.]])
    """

    def edit(h: Tensor, t: float) -> Tensor:
        if t not in content:
            raise ValueError(f"content: has no h for timestep {t}, expected those of the same steps: {sorted(content)}")
        return h + strength * _rows_for(content[t], h, "content").to(h)

    return edit


def record_h(
    denoiser: Denoiser,
    steps: DDIMSteps,
    x: Tensor,
    *,
    start: int = 0,
    at: str | None = None,
    interval: tuple[float, float] = (0, float("inf")),
) -> tuple[Tensor, dict[float, Tensor]]:
    """Sample plainly from x, and keep h of each step by its timestep; under guidance of both branches.

    Args:
        denoiser, steps, x, start, at: see :func:`sample_with_h`.
        interval: lowest and highest t whose h is kept.

    Returns:
        x₀ (or latents of it), and h by timestep.

    Raises:
        RuntimeError: the network ran without passing the h-space module.

    Example:
        >>> import torch
        >>> from georeg_diffusion import Bundle, Denoiser
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.editing.h_edit import record_h
        >>> from georeg_diffusion.sampling.ddim import ddim_steps
        >>> unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        ...     norm_num_groups=4, block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2)
        >>> denoiser = Denoiser(Bundle(unet, diffusers.DDPMScheduler()))
        >>> _, h = record_h(denoiser, ddim_steps(denoiser.bundle.scheduler, 2), torch.randn(3, 1, 8, 8))
        >>> {t: tuple(v.shape) for t, v in h.items()}
        {500.0: (3, 16, 4, 4), 0.0: (3, 16, 4, 4)}
    """
    space = HSpace(denoiser.bundle.network, at)
    kept: dict[float, Tensor] = {}

    def predict(x: Tensor, t: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def see(h: Tensor) -> Tensor:
            seen.append(h)
            return h

        with space.inject(see):
            prediction = denoiser(x, t)
        if not seen:
            raise RuntimeError("at: the network ran to its end without passing the h-space module; name another with at=")
        if interval[0] <= float(t) <= interval[1]:
            kept[float(t)] = seen[-1].detach().clone()
        return prediction

    return ddim(predict, steps, x, start=start), kept


def _rows_for(values: Tensor, h: Tensor, name: str) -> Tensor:
    """One row for each of h's: shared by all, or repeated for the second branch of guidance."""
    if len(values) in (1, len(h)):
        return values
    if len(h) == 2 * len(values):
        return torch.cat([values, values])
    raise ValueError(f"{name}: got {len(values)} rows for {len(h)} rows of h, expected 1, {len(h)} or half of them")
