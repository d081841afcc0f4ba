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

LOSS_WEIGHTINGS = ("uniform", "snr", "min-snr")


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
    return is_named or getattr(scheduler.config, "prediction_type", None) == "flow_prediction"


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
    return _mean_chi(n) * (1 - torch.as_tensor(alpha_bar, dtype=torch.float64)).sqrt()


def radius_at(scheduler: Any, n: int, timesteps: Tensor) -> Tensor:
    """The radius s·E[χ(n)] of the noise of n numbers at timesteps ``(B,)``: √(1−ᾱ_t)·E[χ(n)], or σ·E[χ(n)] ≈ σ√n for a flow.

    Example:
        >>> import torch
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.schedule import radius_at
        >>> r = radius_at(diffusers.FlowMatchEulerDiscreteScheduler(), 10_000, torch.tensor([500.0]))
        >>> round(float(r), 2)                                              # σ√n = 50
        50.0
    """
    return _mean_chi(n) * coefficients(scheduler, timesteps)[1]


def _mean_chi(n: int) -> float:
    return math.sqrt(2) * math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2))


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
    raise ValueError(unknown_prediction(prediction_type))


def noised_at(scheduler: Any, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x_t of clean samples ``(B, ...)`` at timesteps ``(B,)``: √ᾱ_t x₀ + √(1−ᾱ_t) ε, or (1−σ) x₀ + σ ε for a flow.

    Example:
        >>> import torch
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.schedule import noised_at
        >>> flow = diffusers.FlowMatchEulerDiscreteScheduler()
        >>> noised_at(flow, torch.tensor([[4.0]]), torch.tensor([[8.0]]), torch.tensor([750])).item()
        7.0
    """
    signal, sigma = coefficients(scheduler, timesteps)
    return per_sample(signal, x0) * x0 + per_sample(sigma, x0) * noise


def target_at(scheduler: Any, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network is asked to predict there: ε, x₀, v, or the velocity ε − x₀ of a flow (Lipman et al. 2023)."""
    if is_flow(scheduler):
        return noise - x0
    return training_target(x0, noise, alphas_cumprod(scheduler, timesteps), scheduler.config.prediction_type)


def network_timesteps(scheduler: Any, steps: Tensor) -> Tensor:
    """The timesteps that draws 0 to T − 1 ``(B,)`` stand for: the draws themselves, or for a flow t = σT with its shift.

    A flow has no step at clean data, and σ = 1 is its last: draw k is u = (k+1)/T, and σ = s·u/(1 + (s−1)·u) with the
    shift s of Esser et al. 2024 (Sec. 5.3.2).
    """
    if not is_flow(scheduler):
        return steps
    total, shift = int(scheduler.config.num_train_timesteps), float(scheduler.config.get("shift") or 1.0)
    u = (steps.double() + 1) / total
    return (total * shift * u / (1 + (shift - 1) * u)).float()


def loss_weights(scheduler: Any, timesteps: Tensor, weighting: str = "uniform", gamma: float = 5.0) -> Tensor:
    """λ(t) of Eq. 1 for the loss of the network's own target, at timesteps ``(B,)``: float64 on the host.

    With x_t = a·x₀ + s·ε and SNR = a²/s², ``"uniform"`` is 1, ``"snr"`` weighs the error of x̂₀ by SNR and
    ``"min-snr"`` by min(SNR, γ) (Hang et al. 2023). An error of x̂₀ is s²/a² times one of ε̂, and s² times one of v̂, so:

    ========== ======================= =============== ===========================
    weighting  ε                       x₀              v, and a flow's ε − x₀
    ========== ======================= =============== ===========================
    uniform    1                       1               1
    snr        1                       a²/s²           a²
    min-snr    min(1, γ s²/a²)         min(a²/s², γ)   min(a², γ s²)
    ========== ======================= =============== ===========================

    Raises:
        ValueError: an unknown weighting or prediction type; γ ≤ 0.

    Example:
        >>> import torch
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.schedule import loss_weights
        >>> flow = diffusers.FlowMatchEulerDiscreteScheduler()
        >>> loss_weights(flow, torch.tensor([100.0, 500.0]), "min-snr").tolist()       # min(0.81, 0.05), min(0.25, 1.25)
        [0.05..., 0.25]
    """
    if weighting not in LOSS_WEIGHTINGS:
        raise ValueError(f"weighting: got {weighting!r}, expected one of {', '.join(LOSS_WEIGHTINGS)}")
    if not gamma > 0:
        raise ValueError(f"gamma: got {gamma}, expected a bound of the signal-to-noise ratio above 0")
    signal, noise = coefficients(scheduler, timesteps)
    a, s = signal.square(), noise.square()
    kind = "v_prediction" if is_flow(scheduler) else scheduler.config.prediction_type
    if kind not in ("epsilon", "sample", "v_prediction"):
        raise ValueError(unknown_prediction(kind))
    if weighting == "uniform" or (weighting == "snr" and kind == "epsilon"):
        return torch.ones_like(a)
    weight = {"epsilon": torch.ones_like(a), "sample": a / s, "v_prediction": a}[kind]
    bound = {"epsilon": gamma * s / a, "sample": torch.full_like(a, gamma), "v_prediction": gamma * s}[kind]
    return torch.minimum(weight, bound) if weighting == "min-snr" else weight


def unknown_prediction(kind: str) -> str:
    """What is said of a prediction type that nothing here knows."""
    return f"prediction_type: the scheduler says {kind!r}, expected 'epsilon', 'sample' or 'v_prediction'"
