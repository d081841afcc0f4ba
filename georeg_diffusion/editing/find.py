"""Directions of a model at one timestep: of each sample, of all samples, of labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from georeg_diffusion.editing.directions import Directions, DirectionsInfo, load_directions
from georeg_diffusion.editing.encoder import encoder_at, single_precision
from georeg_diffusion.editing.global_basis import GlobalBasis, global_basis
from georeg_diffusion.editing.labels import held_out_accuracy, label_direction
from georeg_diffusion.editing.local_basis import LocalBasis, local_basis
from georeg_diffusion.editing.subjects import Subjects
from georeg_diffusion.evaluation.classifier import Classifier
from georeg_diffusion.progress import track


def local_bases(subjects: Subjects, k: int, *, at: str | None = None, seed: int = 0) -> LocalBasis:
    """The Local Basis of every sample where it is, batch by batch, in single precision or better.

    Raises:
        ValueError: k out of range.
    """
    chunks = subjects.chunks()
    parts = []
    with single_precision(subjects.denoiser.bundle.network):
        for rows in track(chunks, "Local Basis", len(chunks)):
            part = subjects.rows(rows)
            encode = encoder_at(part.denoiser, subjects.timestep, at=at)
            parts.append(local_basis(encode, part.latents, k, generator=torch.Generator().manual_seed(seed)))
    return LocalBasis(
        torch.cat([p.x_vectors for p in parts], dim=1),
        torch.cat([p.h_vectors for p in parts], dim=1),
        torch.cat([p.values for p in parts]),
        torch.cat([p.converged for p in parts]),
    )


def local_directions(subjects: Subjects, basis: LocalBasis, space: str = "x", *, model: str = "") -> Directions:
    """The directions of each sample, in x (right singular vectors) or in h (left ones)."""
    names = tuple(f"v{i + 1}" for i in range(len(basis.x_vectors)))
    info = DirectionsInfo(space, names, "local-basis", model, subjects.timestep, subjects.names)
    return Directions(basis.x_vectors if space == "x" else basis.h_vectors, info, basis.values.T)


def global_directions(
    subjects: Subjects, k: int, space: str = "x", *, at: str | None = None, seed: int = 0, model: str = ""
) -> tuple[Directions, GlobalBasis]:
    """Directions for all samples: the Fréchet mean of the local subspaces of these.

    Raises:
        ValueError: k out of range; local bases in h that are degenerate.
    """
    basis = local_bases(subjects, k, at=at, seed=seed)
    found = global_basis(basis.x_vectors if space == "x" else basis.h_vectors, basis.values)
    names = tuple(f"v{i + 1}" for i in range(k))
    info = DirectionsInfo(space, names, "global", model, subjects.timestep)
    return Directions(found.vectors, info, found.values.T), found


def label_directions(
    subjects: Subjects,
    labels_of: Callable[[Tensor], Tensor],
    names: Sequence[str],
    space: str = "x",
    *,
    method: str = "svm",
    at: str | None = None,
    model: str = "",
) -> tuple[Directions, list[float | None]]:
    """Directions towards labels, from samples that are decoded and labelled.

    Args:
        subjects: samples where they are to be edited.
        labels_of: images ``(N, C, H, W)`` ↦ labels ``(N, K)``, true or false.
        names: of the K labels.
        space: where the directions live.
        method: see :func:`georeg_diffusion.editing.labels.label_direction`.
        at: the submodule whose output is h.
        model: the model's hash.

    Returns:
        The directions, and of each its accuracy on held-out samples (:func:`held_out_accuracy`).

    Raises:
        ValueError: a label that all samples or none have, by its name.
    """
    labels = labels_of(subjects.images("Sampling images to label"))
    points = subjects.latents if space == "x" else _features(subjects, at)
    found, accuracies = [], []
    for name, column in zip(names, labels.T, strict=True):
        try:
            found.append(label_direction(points, column, method=method))
            accuracies.append(held_out_accuracy(points, column, method=method))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    info = DirectionsInfo(space, tuple(names), f"labels ({method})", model, subjects.timestep)
    return Directions(torch.stack([f.vector for f in found]), info), accuracies


def saved_directions(subjects: Subjects, file: Path, space: str | None = None, *, at: str | None = None) -> Directions:
    """Directions from a file, held to the samples that they are for.

    Args:
        subjects: the samples.
        file: see :func:`georeg_diffusion.editing.directions.load_directions`.
        space: ``"x"`` or ``"h"``; by default what the file says, or what its shape fits.
        at: the submodule whose output is h.

    Raises:
        RunError: a file that cannot be read, or holds no directions of this model in this space.
        ValueError: directions of another number of samples.
    """
    h = _features(subjects.rows([0]), at)
    shapes = {"x": tuple(subjects.latents.shape[1:]), "h": tuple(h.shape[1:])}
    found = load_directions(file, shapes if space is None else {space: shapes[space]})
    count = found.vectors.shape[1]
    if count not in (1, len(subjects)):
        names = ", ".join(found.info.sources) or "unnamed"
        raise ValueError(
            f"{file} holds directions of {count} samples ({names}), expected them for all, or for each of the "
            f"{len(subjects)} here"
        )
    return found


def labeller(classifier: Classifier, names: Sequence[str], device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """Images ↦ whether each has the named labels ``(N, K)``: the likeliest class, or attributes above one half.

    Raises:
        ValueError: a name that the classifier does not know.
    """
    unknown = [name for name in names if name not in classifier.names]
    if unknown:
        raise ValueError(f"labels: got {unknown[0]!r}, expected some of the classifier's: {', '.join(classifier.names)}")
    columns = [classifier.names.index(name) for name in names]

    def labels_of(images: Tensor) -> Tensor:
        p = classifier.probabilities(images.to(device)).cpu()
        likely = torch.nn.functional.one_hot(p.argmax(1), p.shape[1]).bool() if classifier.exclusive else p > 0.5
        return likely[:, columns]

    return labels_of


@torch.no_grad()
def _features(subjects: Subjects, at: str | None) -> Tensor:
    """h of every sample."""
    parts = []
    for rows in subjects.chunks():
        part = subjects.rows(rows)
        parts.append(encoder_at(part.denoiser, subjects.timestep, at=at)(part.latents))
    return torch.cat(parts)
