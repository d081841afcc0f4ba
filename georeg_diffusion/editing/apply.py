"""Directions and contents applied to samples: from latents to edited images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from georeg_diffusion.editing.encoder import encoder_at, single_precision
from georeg_diffusion.editing.h_edit import HEdit, add_direction, inject_content, record_h
from georeg_diffusion.editing.shooting import shoot
from georeg_diffusion.editing.sphere import move
from georeg_diffusion.editing.subjects import Interval, Subjects
from georeg_diffusion.progress import track


def edit_x(subjects: Subjects, vectors: Tensor, weights: Tensor | Sequence[Sequence[float]], angle: float) -> Tensor:
    """Images ``(S, B, C, H, W)`` of samples moved along the sphere, x ↦ Exp_x(a Σᵢ γᵢ Δxᵢ).

    Args:
        subjects: B samples at the step where they are edited.
        vectors: Δx ``(k, B, ...)``, or ``(k, 1, ...)`` for all samples.
        weights: γ ``(S, k)``; a row of zeros is the sample as it was.
        angle: a, in radians.

    Raises:
        ValueError: see :func:`georeg_diffusion.editing.sphere.move`.

    Example:
        >>> import torch
        >>> from georeg_diffusion import Bundle, Denoiser
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.editing.apply import edit_x
        >>> from georeg_diffusion.editing.subjects import Subjects
        >>> from georeg_diffusion.sampling.ddim import ddim_steps
        >>> unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        ...     norm_num_groups=4, block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2)
        >>> denoiser = Denoiser(Bundle(unet, diffusers.DDPMScheduler()))
        >>> subjects = Subjects(denoiser, ddim_steps(denoiser.bundle.scheduler, 2), torch.randn(2, 1, 8, 8))
        >>> edit_x(subjects, torch.randn(1, 2, 1, 8, 8), [[-1.0], [0.0], [1.0]], 0.2).shape
        torch.Size([3, 2, 1, 8, 8])
    """
    return images_of(subjects, move(subjects.latents, vectors.to(subjects.latents), weights, angle))


def images_of(subjects: Subjects, latents: Tensor) -> Tensor:
    """Images ``(S, B, C, H, W)`` of other latents ``(S, B, ...)`` of the same samples at the same step."""
    count = len(latents)
    moved = replace(subjects.rows([*range(len(subjects))] * count), latents=latents.flatten(0, 1))
    return moved.images().unflatten(0, (count, len(subjects)))


def shot_latents(
    subjects: Subjects,
    direction: Tensor,
    gammas: Sequence[float],
    angle: float,
    *,
    steps_per_unit: int = 1,
    rank: int = 16,
    at: str | None = None,
    seed: int = 0,
) -> Tensor:
    """Latents ``(S, B, ...)`` at each γ of geodesic shooting along a direction, for :func:`images_of`.

    Args:
        subjects: B samples at the step where they are edited.
        direction: ``(B, ...)`` or ``(1, ...)``, in x.
        gammas: γ, multiples of 1/``steps_per_unit``.
        angle: a, in radians for γ = 1.
        steps_per_unit: shooting steps for γ = 1.
        rank, at, seed: see :func:`georeg_diffusion.editing.shooting.shoot`.

    Raises:
        ValueError: a γ between two steps; a rank below 1.

    References:
        Park et al. 2023, Understanding the latent space of diffusion models through the lens of Riemannian geometry.
    """
    counts = [round(gamma * steps_per_unit) for gamma in gammas]
    if any(abs(gamma * steps_per_unit - count) > 1e-6 for gamma, count in zip(gammas, counts, strict=True)):
        raise ValueError(f"gammas: got {list(gammas)}, expected multiples of 1/{steps_per_unit}, which is one step")
    parts = []
    with single_precision(subjects.denoiser.bundle.network):
        for rows in subjects.chunks():
            part = subjects.rows(rows)
            encode = encoder_at(part.denoiser, subjects.timestep, at=at)
            v = direction.to(part.latents).expand_as(subjects.latents)[rows]
            at_step: dict[int, Tensor] = {}
            for sign in (1, -1):
                far = max([sign * count for count in counts] + [0])
                generator = torch.Generator().manual_seed(seed)
                path = shoot(encode, part.latents, v, sign * angle / steps_per_unit, far, rank=rank, generator=generator)
                at_step |= {sign * i: x for i, x in enumerate(path)}
            parts.append(torch.stack([at_step[count] for count in counts]))
    return torch.cat(parts, dim=1)


def shoot_x(subjects: Subjects, vectors: Tensor, gammas: Sequence[float], angle: float, **options: Any) -> Tensor:
    """Images ``(k, S, B, C, H, W)`` at each γ of shooting along each of the directions ``(k, B, ...)`` or ``(k, 1, ...)``.

    Args:
        subjects, gammas, angle, options: see :func:`shot_latents`.
        vectors: directions in x.
    """
    walks = [shot_latents(subjects, v, gammas, angle, **options) for v in track(vectors, "Shooting", len(vectors))]
    return torch.stack([images_of(subjects, latents) for latents in walks])


def edit_h(
    subjects: Subjects,
    vectors: Tensor,
    weights: Tensor | Sequence[Sequence[float]],
    share: float,
    *,
    interval: Interval,
    asymmetric: bool = True,
    at: str | None = None,
) -> Tensor:
    """Images ``(S, B, C, H, W)`` of samples whose h is moved, h ↦ h + c ‖h‖ Σᵢ γᵢ d̂ᵢ, by the asymmetric process.

    Args:
        subjects: B samples at the step where sampling starts.
        vectors: d ``(k, B, *event of h)``, or ``(k, 1, ...)`` for all samples.
        weights: γ ``(S, k)``; a row of zeros is plain sampling, bit for bit.
        share: c.
        interval, asymmetric, at: see :func:`georeg_diffusion.editing.h_edit.sample_with_h`.

    Raises:
        ValueError: weights and vectors that do not go together; a zero direction.

    References:
        Kwon et al. 2023, Diffusion models already have a semantic latent space.
    """
    gammas = torch.as_tensor(weights, dtype=torch.float32, device=subjects.latents.device)
    if gammas.ndim != 2 or gammas.shape[1] != len(vectors) or vectors.shape[1] not in (1, len(subjects)):
        raise ValueError(
            f"weights, vectors: got shapes {tuple(gammas.shape)} and {tuple(vectors.shape)}, expected (S, k) and "
            f"(k, {len(subjects)} or 1, ...)"
        )
    device_vectors = vectors.to(gammas)
    length = torch.linalg.vector_norm(device_vectors.flatten(2), dim=2)
    if not bool(((length > 0) & torch.isfinite(length)).all()):
        raise ValueError("vectors: hold one that is zero or not finite, expected directions of h-space")
    units = device_vectors / length.reshape(*length.shape, *(1,) * (vectors.ndim - 2))
    units = units.expand(-1, len(subjects), *units.shape[2:])
    count, batch = len(gammas), len(subjects)
    many = subjects.rows([*range(batch)] * count)

    def edit_of(rows: list[int]) -> HEdit:
        index = torch.tensor(rows, device=gammas.device)
        summed = torch.einsum("rk,kr...->r...", gammas[index // batch], units[:, index % batch])
        size = torch.linalg.vector_norm(summed.flatten(1), dim=1)
        still = size == 0  # γ = 0: any direction will do for a step of length 0
        fallback = still.reshape(-1, *(1,) * (summed.ndim - 1))
        return add_direction(torch.where(fallback, units[0, index % batch], summed), share * size)

    images = many.images_with_h(edit_of, interval=interval, asymmetric=asymmetric, at=at)
    return images.unflatten(0, (count, batch))


def inject(
    subjects: Subjects,
    contents: Subjects,
    strengths: Sequence[float],
    *,
    interval: Interval,
    asymmetric: bool = True,
    at: str | None = None,
) -> Tensor:
    """Images ``(S, C, B, ...)`` of B samples with the content of C others, h_t ↦ h_t + c·h′_t (Fig. VI with c = 1.5).

    Args:
        subjects: B samples.
        contents: C samples at the same step.
        strengths: c ``(S,)``; 0 is plain sampling, bit for bit.
        interval, asymmetric, at: see :func:`georeg_diffusion.editing.h_edit.sample_with_h`.

    Raises:
        ValueError: contents at another step.

    References:
        Jeong et al. 2023, Training-free style transfer emerges from h-space in diffusion models.
    """
    if contents.start != subjects.start:
        raise ValueError(f"contents: are at step {contents.start}, expected the samples' step {subjects.start}")
    batch, total = len(subjects), len(contents)
    recorded: dict[float, list[Tensor]] = {}
    for rows in contents.chunks():
        part = contents.rows(rows)
        _, found = record_h(part.denoiser, part.steps, part.latents, start=part.start, at=at, interval=interval)
        for t, h in found.items():  # (branches of guidance, samples, ...)
            recorded.setdefault(t, []).append(h.unflatten(0, (-1, len(rows))))
    h_of = {t: torch.cat(parts, dim=1) for t, parts in recorded.items()}
    many = subjects.rows([*range(batch)] * total)

    def edit_of(rows: list[int], strength: float) -> HEdit:
        which = [row // batch for row in rows]
        return inject_content({t: h[:, which].flatten(0, 1) for t, h in h_of.items()}, strength)

    images = [
        many.images_with_h(lambda rows, c=c: edit_of(rows, c), interval=interval, asymmetric=asymmetric, at=at)  # type: ignore[misc]
        for c in strengths
    ]
    return torch.stack(images).unflatten(1, (total, batch))
