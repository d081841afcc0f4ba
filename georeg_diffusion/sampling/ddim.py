"""Deterministic sampling: DDIM with η = 0, one affine formula for every parametrisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from georeg_diffusion._compat import diffusers
from georeg_diffusion.bundle import Bundle
from georeg_diffusion.denoiser import Denoiser
from georeg_diffusion.schedule import coefficients, is_flow

Visit = Callable[[Tensor, Tensor], Any]
Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class DDIMSteps:
    """The K steps x′ = αᵢ·x + βᵢ·p(x, tᵢ) of DDIM, from noise to data; p is what the network predicts.

    From x′ = a′x̂₀ + s′ε̂ with x = a·x₀ + s·ε: for ε, α = a′/a and β = s′ − s·a′/a; for v, α = aa′ + ss′ and
    β = s′a − a′s; for x₀, α = s′/s and β = a′ − a·s′/s; for flow matching, which this makes Euler's rule, α = 1 and
    β = σ′ − σ.

    Attributes:
        timesteps: ``(K,)``, descending.
        alpha, beta: ``(K,)``, float64 on the host.
        inverse: ``(K,)``, what a residual of x′ is multiplied by to correct x: 1/α, and for x₀ the a/a′ of ε, since
            α → 0 towards clean data.

    Example:
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.sampling.ddim import ddim_steps
        >>> steps = ddim_steps(diffusers.FlowMatchEulerDiscreteScheduler(), 2)
        >>> steps.alpha.tolist()
        [1.0, 1.0]
        >>> round(float(steps.beta.sum()), 6)      # from σ = 1 to σ = 0
        -1.0
    """

    timesteps: Tensor
    alpha: Tensor
    beta: Tensor
    inverse: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)


def ddim_steps(scheduler: Any, num_steps: int) -> DDIMSteps:
    """The steps of DDIM on a model's schedule, never clipped: a clipped step is not invertible.

    Timesteps are spaced as the scheduler says (``timestep_spacing``, ``steps_offset``, flow matching's ``shift``). A
    step leads exactly to the next timestep, where diffusers' goes T // K back, which for ``linspace`` is elsewhere; the
    last one leads to a = 1, s = 0, or with ``set_alpha_to_one=False`` to those of t = 0.

    Args:
        scheduler: of the model; only its schedule is used.
        num_steps: K.

    Raises:
        ValueError: K outside 1 to the schedule's length; ε-prediction from a timestep with a = 0.

    References:
        Song, Meng, Ermon 2021, Denoising diffusion implicit models, Eq. 12.

    Example:
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.sampling.ddim import ddim_steps
        >>> ddim_steps(diffusers.DDPMScheduler(), 4).timesteps.tolist()
        [750, 500, 250, 0]
    """
    total = int(scheduler.config.num_train_timesteps)
    if not 1 <= num_steps <= total:
        raise ValueError(f"num_steps: got {num_steps}, expected a number of steps from 1 to {total}")
    if is_flow(scheduler):
        grid = diffusers.FlowMatchEulerDiscreteScheduler.from_config(scheduler.config, use_dynamic_shifting=False)
        kind, last = "flow", (1.0, 0.0)
    else:
        grid = diffusers.DDIMScheduler.from_config(scheduler.config, clip_sample=False)
        clean = float(grid.final_alpha_cumprod)
        kind, last = scheduler.config.prediction_type, (clean**0.5, (1 - clean) ** 0.5)
    grid.set_timesteps(num_steps)
    timesteps = torch.as_tensor(grid.timesteps).cpu()
    a, s = coefficients(scheduler if kind == "flow" else grid, timesteps)
    a_next, s_next = (torch.cat([c[1:], c.new_tensor([end])]) for c, end in zip((a, s), last, strict=True))
    if kind == "flow":
        alpha, beta = torch.ones_like(a), s_next - s
    elif kind == "epsilon":
        if not bool(a.all()):
            raise ValueError("scheduler: ᾱ_t = 0 at the first timestep, and there ε-prediction says nothing about x₀")
        alpha, beta = a_next / a, s_next - s * a_next / a
    elif kind == "v_prediction":
        alpha, beta = a * a_next + s * s_next, s_next * a - a_next * s
    elif kind == "sample":
        alpha, beta = s_next / s, a_next - a * s_next / s
    else:
        raise ValueError(f"prediction_type: the scheduler says {kind!r}, expected 'epsilon', 'sample' or 'v_prediction'")
    return DDIMSteps(timesteps, alpha, beta, a / a_next if kind == "sample" else 1 / alpha)


@torch.no_grad()
def ddim(predict: Predict, steps: DDIMSteps, x: Tensor, *, start: int = 0, visit: Visit | None = None) -> Tensor:
    """Run the steps from number ``start`` to the end.

    Args:
        predict: (x, t) ↦ prediction, such as a :class:`georeg_diffusion.Denoiser`.
        steps: from :func:`ddim_steps`.
        x: ``(B, ...)`` at ``steps.timesteps[start]``.
        start: first step; ``len(steps)`` changes nothing.
        visit: called with (x_t, t) before each step.

    Raises:
        ValueError: ``start`` out of range.

    Example:
        >>> import torch
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.sampling.ddim import ddim, ddim_steps
        >>> steps = ddim_steps(diffusers.FlowMatchEulerDiscreteScheduler(), 4)
        >>> ddim(lambda x, t: torch.ones_like(x), steps, torch.zeros(1, 1))      # a constant velocity
        tensor([[-1.]])
    """
    if not 0 <= start <= len(steps):
        raise ValueError(f"start: got {start}, expected the number of a step from 0 to {len(steps)}")
    for i in range(start, len(steps)):
        t = steps.timesteps[i]
        if visit is not None:
            visit(x, t)
        x = float(steps.alpha[i]) * x + float(steps.beta[i]) * predict(x, t)
    return x


@torch.no_grad()
def ddim_sample(
    model: Bundle | Denoiser, x_T: Tensor, num_steps: int, visit: Visit | None = None, *, start: int = 0
) -> Tensor:
    """Decode noise ``(B, C, H, W)`` to images in [−1, 1] by DDIM with η = 0.

    Args:
        model: a bundle, or a denoiser with its conditions.
        x_T: standard normal noise; equal noise gives equal images.
        num_steps: denoising steps.
        visit: called with (x_t, t) before each step.
        start: first step, for latents of a partial inversion.
    """
    denoiser = Denoiser(model) if isinstance(model, Bundle) else model
    bundle = denoiser.bundle
    return bundle.decode(ddim(denoiser, ddim_steps(bundle.scheduler, num_steps), x_T, start=start, visit=visit))
