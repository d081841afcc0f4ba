"""The asymmetric reverse process: what is edited enters the predicted x₀ alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from georeg_diffusion.denoiser import predicted_x0
from georeg_diffusion.sampling.ddim import DDIMSteps, Predict
from georeg_diffusion.schedule import coefficients, target_at


def x0_shares(scheduler: Any, steps: DDIMSteps) -> Tensor:
    """γᵢ ``(K,)``, float64: how the part a′x̂₀ of a step x′ = a′x̂₀ + s′ε̂ changes with the prediction, a′·∂x̂₀/∂p.

    −a′s/a for ε, a′ for x₀, −a′s for v and for flow matching.

    Example:
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.editing.asymmetric import x0_shares
        >>> from georeg_diffusion.sampling.ddim import ddim_steps
        >>> flow = diffusers.FlowMatchEulerDiscreteScheduler()
        >>> [round(float(share), 3) for share in x0_shares(flow, ddim_steps(flow, 2))]        # −(1 − σ′)σ
        [-0.999, -0.001]
    """
    t = steps.timesteps
    one, zero = torch.ones(len(t), 1, dtype=torch.float64), torch.zeros(len(t), 1, dtype=torch.float64)
    # a′: where a step αx + βp leads from x = a·1 + s·0, with the prediction that is right there.
    clean = target_at(scheduler, one, zero, t)[:, 0]
    arrives = steps.alpha * coefficients(scheduler, t)[0] + steps.beta * clean
    return arrives * predicted_x0(scheduler, one, zero, t)[:, 0]


@torch.no_grad()
def asymmetric_ddim(
    predict: Predict,
    edited: Predict,
    steps: DDIMSteps,
    scheduler: Any,
    x: Tensor,
    *,
    interval: tuple[float, float] = (0, float("inf")),
    asymmetric: bool = True,
    start: int = 0,
) -> Tensor:
    """DDIM whose steps inside an interval of t take P_t, the predicted x₀, from an edited prediction.

    x′ = P_t(ε̃) + D_t(ε) with P_t = a′x̂₀ and D_t = s′ε̂: an edit that changed both would nearly cancel out, since
    x̂₀ and ε̂ move against each other (Kwon et al., Theorem 1). Written as the plain step plus γ(p̃ − p), so that no edit
    leaves plain sampling bit for bit.

    Args:
        predict: (x, t) ↦ p.
        edited: (x, t) ↦ p̃.
        steps: from :func:`georeg_diffusion.sampling.ddim.ddim_steps`.
        scheduler: of the model.
        x: ``(B, ...)`` at ``steps.timesteps[start]``.
        interval: lowest and highest t that are edited, both included.
        asymmetric: False takes p̃ for both terms.
        start: first step.

    Raises:
        ValueError: ``start`` out of range; an interval that is empty.

    References:
        Kwon, Jeong, Uh 2023, Diffusion models already have a semantic latent space, Eq. 4.

    Example:
        >>> import torch
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.editing.asymmetric import asymmetric_ddim
        >>> from georeg_diffusion.sampling.ddim import ddim, ddim_steps
        >>> scheduler = diffusers.DDPMScheduler()
        >>> steps, x, predict = ddim_steps(scheduler, 10), torch.randn(2, 3), lambda x, t: 0.5 * x
        >>> torch.equal(asymmetric_ddim(predict, predict, steps, scheduler, x), ddim(predict, steps, x))
        True
    """
    if not 0 <= start <= len(steps):
        raise ValueError(f"start: got {start}, expected the number of a step from 0 to {len(steps)}")
    low, high = interval
    if not low <= high:
        raise ValueError(f"interval: got {low} to {high}, expected the lowest timestep, then the highest")
    shares = x0_shares(scheduler, steps) if asymmetric else steps.beta
    for i in range(start, len(steps)):
        t = steps.timesteps[i]
        p = predict(x, t)
        step = float(steps.alpha[i]) * x + float(steps.beta[i]) * p
        if low <= float(t) <= high:
            step = step + float(shares[i]) * (edited(x, t) - p)
        x = step
    return x
