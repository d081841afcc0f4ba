"""What follows from the noise schedule: noised samples, training targets, the gate, the sphere's radius.

All of it is decided on the host, from the timesteps before they move to a device: no synchronisation, and
the whole objective runs on the meta device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class IsometryGate:
    """λ_iso(p, t) = λ·1[t > pT] (Eq. 7): which samples pay for the isometry term, and how much it weighs.

    Args:
        weight: λ ≥ 0, for the *normalised* loss, whose perfect value is 1.
        skip: p in [0, 1], the share of timesteps, counted from clean data, that is left alone. There the
            samples are not near a sphere.

    Raises:
        ValueError: a negative or infinite weight; p outside [0, 1].

    Example:
        >>> import torch
        >>> from georeg_diffusion import IsometryGate
        >>> IsometryGate(skip=0.5).open(torch.tensor([0, 500, 501, 999]), 1000)
        tensor([False, False,  True,  True])
    """

    weight: float = 1e-2
    skip: float = 0.5

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise ValueError(f"weight: got {self.weight}, expected λ ≥ 0")
        if not 0 <= self.skip <= 1:
            raise ValueError(f"skip: got {self.skip}, expected the share p of timesteps in [0, 1]")

    def open(self, timesteps: Tensor, num_train_timesteps: int) -> Tensor:
        """1[t > pT] for each sample ``(B,)``, T = num_train_timesteps."""
        return timesteps > self.skip * num_train_timesteps


def alphas_cumprod(scheduler: Any, timesteps: Tensor) -> Tensor:
    """ᾱ_t of each timestep ``(B,)``, float64 on the host."""
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"scheduler: got {type(scheduler).__name__}, which has no ᾱ_t; expected one of a diffusion, such as DDPM"
        )
    table: Tensor = scheduler.alphas_cumprod
    return table.double().cpu()[timesteps.cpu()]


def is_flow(scheduler: Any) -> bool:
    """Whether it is flow matching, x_t = (1 − σ) x₀ + σ ε with σ = t/T, rather than a diffusion with ᾱ_t."""
    is_named = type(scheduler).__name__.startswith("FlowMatch")
    return is_named or scheduler.config.get("prediction_type") == "flow_prediction"


def coefficients(scheduler: Any, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """a and s of x_t = a·x₀ + s·ε at timesteps ``(B,)``, float64 on the host.

    √ᾱ_t and √(1−ᾱ_t) for a diffusion, 1 − σ and σ = t/T for flow matching: both run from data at small t to noise.

    Raises:
        ValueError: timesteps outside the schedule; fractions of a step where there is a table of ᾱ_t.

    Example:
        >>> import torch
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.schedule import coefficients
        >>> a, s = coefficients(diffusers.FlowMatchEulerDiscreteScheduler(), torch.tensor([250.0, 1000.0]))
        >>> a.tolist(), s.tolist()
        ([0.75, 0.0], [0.25, 1.0])
    """
    steps = timesteps.detach().cpu()
    total = int(scheduler.config.num_train_timesteps)
    last = total if is_flow(scheduler) else total - 1
    if steps.numel() and not 0 <= float(steps.min()) <= float(steps.max()) <= last:
        raise ValueError(f"timesteps: got {float(steps.min()):g} to {float(steps.max()):g}, expected them in [0, {last}]")
    if is_flow(scheduler):
        sigma = steps.double() / total
        return 1 - sigma, sigma
    if steps.is_floating_point() and not bool((steps == steps.round()).all()):
        raise ValueError("timesteps: got fractions of a step, expected whole numbers: ᾱ_t is a table")
    alpha_bar = alphas_cumprod(scheduler, steps.long())
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def sphere_radius(n: int, alpha_bar: float | Tensor) -> Tensor:
    """r_t = √(1−ᾱ_t)·E[χ(n)], the radius near which noised samples of n numbers concentrate (Sec. 3.1).

    E[χ(n)] = √2 Γ((n+1)/2)/Γ(n/2), by log-gamma; ≈ √n.

    Example:
        >>> round(float(sphere_radius(1, 0.0)), 6)      # E|N(0, 1)| = √(2/π)
        0.797885
    """
    mean_chi = math.sqrt(2) * math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2))
    return mean_chi * (1 - torch.as_tensor(alpha_bar, dtype=torch.float64)).sqrt()


def per_sample(coefficient: Tensor, like: Tensor) -> Tensor:
    """One number for each sample ``(B,)``, shaped to multiply ``(B, ...)``."""
    return coefficient.to(device=like.device, dtype=like.dtype).reshape(-1, *(1,) * (like.ndim - 1))


def noised(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t = √ᾱ_t x₀ + √(1−ᾱ_t) ε (Sec. 2.1).

    diffusers' ``add_noise`` moves the scheduler's tables to the samples' device for good; this does not.
    """
    return per_sample(alpha_bar.sqrt(), x0) * x0 + per_sample((1 - alpha_bar).sqrt(), x0) * noise


def training_target(x0: Tensor, noise: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """What the network is asked to predict: ε, x₀, or v = √ᾱ ε − √(1−ᾱ) x₀."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    if prediction_type == "v_prediction":
        return per_sample(alpha_bar.sqrt(), x0) * noise - per_sample((1 - alpha_bar).sqrt(), x0) * x0
    raise ValueError(
        f"prediction_type: the scheduler says {prediction_type!r}, expected 'epsilon', 'sample' or 'v_prediction'"
    )
