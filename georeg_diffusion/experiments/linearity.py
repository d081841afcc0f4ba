"""How linear images change with moves of the noise along directions (Figures 7 and V)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from georeg_diffusion.editing.apply import edit_x
from georeg_diffusion.editing.find import local_bases
from georeg_diffusion.editing.sources import subjects_of
from georeg_diffusion.editing.subjects import Subjects
from georeg_diffusion.evaluation.feature_network import features_of
from georeg_diffusion.evaluation.setting import Setting
from georeg_diffusion.experiments.comparison import Replicated
from georeg_diffusion.experiments.lab import Lab
from georeg_diffusion.experiments.measured import absent, available, gathered, labels_of, mean_of, models_of, share

STEP_ANGLE = 0.2
"""Radians that γ = 1 turns a noise by: ``edit``'s default."""

SIZE, LINEAR, LINEAR_SEEN = "size of the change, pixels", "linear share, pixels", "linear share, features"
FLIPPED = "images whose class changes"

MEASURES: dict[str, bool | None] = {SIZE: None, LINEAR: False, LINEAR_SEEN: False, FLIPPED: True}
"""What is measured, and whether lower is better."""

MATCHED = "isometric, as large changes"
"""The isometric model, turned so far that its images change as much as the base's."""

Extra = Callable[[Tensor], Mapping[str, float]]


@dataclass(frozen=True)
class Moved:
    """Samples that were moved along their own Local Basis.

    Attributes:
        scores: by model, numbers for each seed; also of :data:`MATCHED`.
        images: by model, ``(S, B, C, H, W)`` of the first seed.
        num_steps: of DDIM.
        notes: about what is not measured.
    """

    scores: Mapping[str, Replicated]
    images: Mapping[str, Tensor]
    num_steps: int
    notes: tuple[str, ...] = ()


def move_all(lab: Lab, weights: Tensor, *, extra: Extra = lambda changes: {}) -> Moved:
    """Move samples of base and isometric along the k directions in which their own h changes most.

    A model whose images change less is more linear for that reason alone, so that the isometric one is also moved as far
    as it takes to change its images as much as the base changes them: linear extrapolation from the first move.

    Args:
        lab: trains the models.
        weights: γ ``(S, k)``, with a row of zeros.
        extra: further numbers from changes of images ``(S, B, D)``.
    """
    names = list(models_of(lab))
    scores: dict[str, list[dict[str, float | None]]] = {name: [] for name in (*names, MATCHED)}
    shown: dict[str, Tensor] = {}
    num_steps = 0
    for seed in lab.seeds:
        sizes: list[float] = []
        for name, changes in models_of(lab).items():
            setting = lab.setting(lab.model(seed, **changes), seed, "edit")
            subjects = subjects_at(setting, setting.num_samples or (8 if lab.quick else 24))
            vectors = local_bases(subjects, weights.shape[1], seed=seed).x_vectors
            images = edit_x(subjects, vectors, weights, STEP_ANGLE)
            scores[name].append(measured(setting, images, weights, extra))
            sizes.append(scores[name][-1][SIZE] or 0.0)
            num_steps = len(subjects.steps)
            if seed == lab.seeds[0]:
                shown[name] = images
        angle = STEP_ANGLE * sizes[0] / sizes[1] if sizes[1] > 0 else STEP_ANGLE
        scores[MATCHED].append(measured(setting, edit_x(subjects, vectors, weights, angle), weights, extra))
    notes = absent(features=setting.features, classifier=setting.classifier)
    return Moved({name: gathered(one) for name, one in scores.items()}, shown, num_steps, notes)


def subjects_at(setting: Setting, count: int, *, first: int = 0) -> Subjects:
    """Samples from the setting's seeds, at pure noise."""
    seeds = [str(setting.seed + first + i) for i in range(count)]
    steps = setting.steps(20, 100)
    return subjects_of(setting.bundle, seeds, num_steps=steps, batch_size=setting.batch_size)[0]


def measured(setting: Setting, images: Tensor, weights: Tensor, extra: Extra) -> dict[str, float | None]:
    """:data:`MEASURES` of images ``(S, B, C, H, W)`` at γ ``(S, k)``, means over samples."""
    zero = origin(weights)
    changes = (images - images[zero]).flatten(2)
    found: dict[str, float | None] = dict.fromkeys(MEASURES)
    moved = [i for i in range(len(weights)) if i != zero]
    found[SIZE] = mean_of(torch.linalg.vector_norm(changes[moved], dim=2))
    found[LINEAR] = mean_of(linear_share(changes, weights))
    network = available(setting.features)
    if network is not None:
        seen = features_of(network, images.flatten(0, 1).to(setting.device), batch_size=setting.batch_size).cpu()
        seen = seen.reshape(*images.shape[:2], -1)
        found[LINEAR_SEEN] = mean_of(linear_share(seen - seen[zero], weights))
    labelled = labels_of(setting, images)
    if labelled is not None:
        found[FLIPPED] = mean_of(share(labelled[0][moved], labelled[0][zero].expand_as(labelled[0][moved])))
    return {**found, **extra(changes)}


def origin(weights: Tensor) -> int:
    """The row of γ = 0.

    Raises:
        ValueError: there is none.
    """
    zeros = (weights == 0).all(1).nonzero().flatten().tolist()
    if not zeros:
        raise ValueError("weights: have no row of zeros, expected one: the unedited samples")
    return int(zeros[0])


def linear_share(changes: Tensor, weights: Tensor) -> Tensor:
    """1 − min_D Σ‖Δ(γ) − Dγ‖²/Σ‖Δ(γ)‖² ``(B,)``: how much of the changes a linear map of γ explains, 1 where all.

    Args:
        changes: Δ ``(S, B, D)``.
        weights: γ ``(S, k)``, of rank k.

    Example:
        >>> import torch
        >>> from georeg_diffusion.experiments.linearity import linear_share
        >>> gamma = torch.tensor([[-1.0], [0.0], [1.0]])
        >>> both = torch.stack([gamma, gamma.square()], dim=1)             # two samples, one linear and one even
        >>> linear_share(both, gamma).round(decimals=6).tolist()
        [1.0, 0.0]
    """
    w, delta = weights.double(), changes.double()
    basis, _ = torch.linalg.qr(w)
    explained = torch.einsum("sk,sbd->kbd", basis, delta).square().sum((0, 2))
    total = delta.square().sum((0, 2))
    return torch.where(total > 0, explained / torch.where(total > 0, total, 1), 1)


def grid_of(gammas: Sequence[float]) -> Tensor:
    """All pairs of strengths ``(S², 2)``; the second changes first."""
    return torch.cartesian_prod(torch.tensor(gammas), torch.tensor(gammas))


def additive_share(changes: Tensor, weights: Tensor) -> float:
    """Mean of 1 − Σ‖Δ(γ₁, γ₂) − Δ(γ₁, 0) − Δ(0, γ₂)‖²/Σ‖Δ(γ₁, γ₂)‖² over samples, γ₁, γ₂ ≠ 0; 1 where directions add.

    Args:
        changes: Δ ``(S², B, D)``.
        weights: γ, from :func:`grid_of`.

    Example:
        >>> import torch
        >>> from georeg_diffusion.experiments.linearity import additive_share, grid_of
        >>> gamma = grid_of([-1.0, 0.0, 1.0])
        >>> sums, products = gamma.pow(3).sum(1), gamma.prod(1)
        >>> [additive_share(one[:, None, None], gamma) for one in (sums, products)]
        [1.0, 0.0]
    """
    at = {tuple(row): i for i, row in enumerate(weights.tolist())}
    both = [(a, b) for a, b in at if a and b]
    delta = changes.double()
    mixed = delta[[at[pair] for pair in both]]
    summed = delta[[at[a, 0.0] for a, _ in both]] + delta[[at[0.0, b] for _, b in both]]
    total = mixed.square().sum((0, 2))
    left = (mixed - summed).square().sum((0, 2))
    return mean_of(torch.where(total > 0, 1 - left / torch.where(total > 0, total, 1), 1))
