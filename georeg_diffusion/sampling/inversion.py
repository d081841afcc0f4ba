"""From images back to the noise that they come from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from georeg_diffusion.sampling.ddim import DDIMSteps, Predict


@dataclass(frozen=True)
class Inversion:
    """Noise whose DDIM samples are the given images.

    Attributes:
        latents: ``(B, ...)`` at ``steps.timesteps[start]``.
        start: the step from which sampling leads back: 0 after a full inversion.

    Example:
        >>> import torch
        >>> from georeg_diffusion.sampling.inversion import Inversion
        >>> Inversion(torch.zeros(2, 1, 8, 8), start=0).latents.shape
        torch.Size([2, 1, 8, 8])
    """

    latents: Tensor
    start: int


@torch.no_grad()
def ddim_invert(predict: Predict, steps: DDIMSteps, x: Tensor, *, portion: float = 1.0, refine: int = 0) -> Inversion:
    """Invert DDIM from data to noise, step by step.

    A step x′ = αx + βp(x, t) is solved for x. Plain inversion takes p at x′ in place of x, an error of first order
    in the step size. Each refinement evaluates p at the last solution: x ← x + (x′ − αx − βp(x, t))/α. A sample whose
    residual grew goes back to its best x and halves its step, so refinement does no harm where the network is not
    contracting. For x₀-prediction, where α → 0 towards clean data, the residual is divided by a′/a, as it is for ε.

    Args:
        predict: (x, t) ↦ prediction, such as a :class:`georeg_diffusion.Denoiser`.
        steps: the steps of the sampler that is to be inverted, from :func:`ddim_steps`.
        x: data ``(B, ...)``.
        portion: share of the steps that is inverted, counted from the data: less keeps more of the image.
        refine: refinements of each step; 0 is plain inversion.

    Raises:
        ValueError: ``portion`` outside (0, 1]; ``refine`` negative.

    Example:
        >>> import torch
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.sampling.ddim import ddim, ddim_steps
        >>> from georeg_diffusion.sampling.inversion import ddim_invert
        >>> steps = ddim_steps(diffusers.DDPMScheduler(), 20)
        >>> predict = lambda x, t: 0.5 * x
        >>> x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
        >>> for n in (0, 60):
        ...     z = ddim_invert(predict, steps, x, refine=n).latents
        ...     print(bool((ddim(predict, steps, z) - x).norm() < 1e-10))
        False
        True

    References:
        Song et al. 2021, Denoising diffusion implicit models; Pan et al. 2023, Effective real image editing with
        accelerated iterative diffusion inversion (fixed points).
    """
    if not 0 < portion <= 1:
        raise ValueError(f"portion: got {portion}, expected a share of the steps in (0, 1]")
    if refine < 0:
        raise ValueError(f"refine: got {refine}, expected a number of refinements ≥ 0")
    start = len(steps) - max(round(portion * len(steps)), 1)
    for i in reversed(range(start, len(steps))):
        x = _solve(predict, steps, i, x, refine)
    return Inversion(x, start)


def _solve(predict: Predict, steps: DDIMSteps, i: int, target: Tensor, refine: int) -> Tensor:
    """x with αx + βp(x, t) = target."""
    alpha, beta, t = float(steps.alpha[i]), float(steps.beta[i]), steps.timesteps[i]
    inverse = float(steps.inverse[i])

    def correction(x: Tensor) -> Tensor:
        return inverse * (target - alpha * x - beta * predict(x, t))

    def size(v: Tensor) -> Tensor:
        return torch.linalg.vector_norm(v.flatten(1), dim=1).reshape(-1, *(1,) * (v.ndim - 1))

    best, move = target, correction(target)
    if not refine:
        return best + move
    step = torch.ones_like(size(move))
    for _ in range(refine):
        x = best + step * move
        other = correction(x)
        is_better = size(other) < size(move)
        step = torch.where(is_better, step, step / 2)
        best, move = torch.where(is_better, x, best), torch.where(is_better, other, move)
    return best + step * move
