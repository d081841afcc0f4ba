"""Where noised samples are near enough to a sphere for the isometry loss: the p of its gate t > pT, from the data alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from georeg import Estimate
from georeg_diffusion.schedule import coefficients, network_timesteps

TOLERANCE = 0.1
"""The share of ‖x_t‖² that the data may add to the noise's, 5 % of the radius."""


@dataclass(frozen=True)
class SuggestedSkip:
    """The p that the rule of :func:`suggested_skip` gives.

    Attributes:
        value: p, or None where the rule holds at no timestep.
        low, high: p at the ends of the 95 % interval of E‖x₀‖²/n; None without one.
        energy: E‖x₀‖²/n.
        tolerance: see :func:`suggested_skip`.
    """

    value: float | None
    low: float | None
    high: float | None
    energy: Estimate
    tolerance: float


def excess_energy(scheduler: Any, timesteps: Tensor, energy: float) -> Tensor:
    """E‖x_t‖²/(n s²) − 1 = (a²/s²)·E‖x₀‖²/n at the network's timesteps ``(B,)``, for x_t = a·x₀ + s·ε.

    Example:
        >>> import torch
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.evaluation.skip import excess_energy
        >>> excess_energy(diffusers.FlowMatchEulerDiscreteScheduler(), torch.tensor([500.0]), 0.25).tolist()
        [0.25]
    """
    a, s = coefficients(scheduler, timesteps)
    return energy * (a / s).square()


def skip_for(scheduler: Any, energy: float, *, tolerance: float = TOLERANCE) -> float | None:
    """The smallest p, in hundredths, such that the data adds at most ``tolerance`` to ‖x_t‖² wherever t > pT.

    The paper takes x_t to lie on the sphere of radius r_t ≈ s·√n that the noise alone would reach (Sec. 3.1), for
    t > pT, and leaves p open. With E‖x_t‖² = a²·E‖x₀‖² + s²·n, that holds up to the relative excess
    (a²/s²)·E‖x₀‖²/n, half of which is the excess of the radius.

    Args:
        scheduler: gives a and s, or σ for a flow.
        energy: E‖x₀‖²/n, of images in [−1, 1] or of latents as the network sees them.
        tolerance: the largest excess of ‖x_t‖².

    Returns:
        p, or None where even the last timestep exceeds the tolerance.

    Raises:
        ValueError: a negative energy; a tolerance that is not positive; either of them not finite.

    Example:
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.evaluation.skip import skip_for
        >>> skip_for(diffusers.DDPMScheduler(), 0.3)              # the paper's schedule, and about natural images
        0.37
    """
    if not (energy >= 0 and math.isfinite(energy)):
        raise ValueError(f"energy: got {energy}, expected E‖x₀‖²/n ≥ 0")
    if not (tolerance > 0 and math.isfinite(tolerance)):
        raise ValueError(f"tolerance: got {tolerance}, expected a positive share of ‖x_t‖², such as {TOLERANCE}")
    total = int(scheduler.config.num_train_timesteps)
    steps = network_timesteps(scheduler, torch.arange(total))
    far = steps[~(excess_energy(scheduler, steps, energy) <= tolerance)]
    last = float(far.max()) if len(far) else 0.0
    p = math.ceil(100 * last / total - 1e-9) / 100
    return p if float(steps.max()) > p * total else None


def suggested_skip(scheduler: Any, energies: Tensor, *, tolerance: float = TOLERANCE) -> SuggestedSkip:
    """:func:`skip_for` the mean of the images' ‖x₀‖²/n ``(N,)``, with its interval.

    Raises:
        ValueError: no images; see :func:`skip_for`.
    """
    energy = Estimate.of(energies)
    p = skip_for(scheduler, energy.value, tolerance=tolerance)
    if energy.stderr is None:
        return SuggestedSkip(p, None, None, energy, tolerance)
    low, high = (max(energy.value + side * 1.96 * energy.stderr, 0.0) for side in (-1, 1))
    return SuggestedSkip(
        p,
        skip_for(scheduler, low, tolerance=tolerance),
        skip_for(scheduler, high, tolerance=tolerance),
        energy,
        tolerance,
    )
