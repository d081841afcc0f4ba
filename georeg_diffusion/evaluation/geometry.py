"""Geometry of the encoder x_t ↦ h at true x_t: isometry loss, condition number, VoR, effective rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import georeg
from georeg import Estimate, diagnostics, jackknife
from georeg_diffusion.bundle import Bundle
from georeg_diffusion.h_space import HSpace
from georeg_diffusion.progress import track
from georeg_diffusion.schedule import alphas_cumprod, noised

NOISY_HALF = (0.55, 0.65, 0.75, 0.85, 0.95)
"""Where geometry is measured, as fractions of T."""

MAX_SPECTRUM = 768
"""The largest d whose full Jacobians are decomposed; at 32 × 32 in colour, d = 3071, that would take an hour of CPU time."""


@dataclass(frozen=True)
class Geometry:
    """Scores of one model, on the tangent space of the sphere through each x_t.

    Attributes:
        timesteps: where they were measured.
        isometry_per_t: normalised isometry loss pooled within each t, one estimate for each timestep.
        isometry: mean of those over t.
        isometry_pooled: the same samples pooled over all t into one ratio, whose floor is above 1 when the scale of
            the Jacobian varies with t.
        mcn: mean condition number (Eq. 10) over samples and timesteps; this and the next three are None where
            d > ``MAX_SPECTRUM``, or where a Jacobian is singular.
        vor, vor_log: variance of the Riemannian metric (Eq. 11) and its scale-free form, means over t.
        effective_rank: mean of (Tr R)²/Tr R².
        dimension: d, the largest effective rank there can be.
    """

    timesteps: list[int]
    isometry_per_t: list[Estimate]
    isometry: Estimate
    isometry_pooled: Estimate
    mcn: Estimate | None
    vor: Estimate | None
    vor_log: Estimate | None
    effective_rank: Estimate | None
    dimension: int


def geometry(
    bundle: Bundle,
    x0: Tensor,
    *,
    seed: int = 0,
    num_probes: int = 4,
    num_spectra: int = 16,
    batch_size: int = 64,
    at: str | None = None,
    title: str = "Geometry",
) -> Geometry:
    """Measure the geometry of a model's encoder.

    Args:
        bundle: the model, in evaluation mode.
        x0: real images ``(N, C, H, W)``; each is noised anew at each timestep, the same for every model at one seed.
        seed: of noise and probes.
        num_probes: probes per sample of the isometry loss.
        num_spectra: samples per timestep whose full Jacobian is decomposed.
        batch_size: samples at once.
        at: name of the h-space module.
        title: on the progress bar.
    """
    total = bundle.scheduler.config.num_train_timesteps
    timesteps = [int(fraction * total) for fraction in NOISY_HALF]
    encoder, generator = HSpace(bundle.network, at), torch.Generator().manual_seed(seed)
    functional = georeg.IsometryLoss(normalize=True)
    estimator = georeg.Hutchinson(num_probes)
    moments, sigmas = [], []
    for t in track(timesteps, title, len(timesteps)):
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)
        x_t = noised(x0, noise, alphas_cumprod(bundle.scheduler, torch.full((len(x0),), t)))

        def encode(x: Tensor, t: int = t) -> Tensor:
            return encoder.encode(x, torch.full((len(x),), t, device=x.device))

        parts = []
        with torch.no_grad():
            for chunk in x_t.split(batch_size):
                parts.append(
                    georeg.spectral_moments(
                        encode, chunk, domain=georeg.Sphere(), estimator=estimator, generator=generator, chunk_size=1
                    )
                )
        moments.append(_joined(parts))
        if parts[0].rank <= MAX_SPECTRUM:
            sigmas.append(diagnostics.singular_values(encode, x_t[:num_spectra], domain=georeg.Sphere(), chunk_size=32))
    per_t = [jackknife(functional, m) for m in moments]
    sigma = torch.cat(sigmas) if sigmas else None
    if sigma is not None and not bool((sigma > 0).all()):
        sigma = None  # a singular Jacobian has no condition number and no logarithm
    return Geometry(
        timesteps,
        per_t,
        _mean(per_t),
        jackknife(functional, _joined(moments)),
        None if sigma is None else Estimate.of(diagnostics.condition_number(sigma)),
        None if sigma is None else _mean([diagnostics.variance_of_metric(s) for s in sigmas]),
        None if sigma is None else _mean([diagnostics.variance_of_metric(s, log=True) for s in sigmas]),
        None if sigma is None else Estimate.of(diagnostics.effective_rank_of(sigma)),
        moments[0].rank,
    )


def _joined(parts: list[georeg.SpectralMoments]) -> georeg.SpectralMoments:
    return georeg.SpectralMoments(torch.cat([m.trace for m in parts]), torch.cat([m.trace_sq for m in parts]), parts[0].rank)


def _mean(estimates: list[Estimate]) -> Estimate:
    """Mean of independent estimates."""
    count = len(estimates)
    error = sum((e.stderr or 0.0) ** 2 for e in estimates) ** 0.5 / count
    return Estimate(sum(e.value for e in estimates) / count, error, sum(e.n for e in estimates))
