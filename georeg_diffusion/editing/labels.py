"""Directions from labelled latents: the normal of a linear SVM, or the difference of class means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

METHODS = ("svm", "means")


@dataclass(frozen=True)
class LabelDirection:
    """A direction towards a label, the normal of the hyperplane ⟨vector, x⟩ + offset = 0.

    Attributes:
        vector: of length 1 ``(1, ...)``, from without to with.
        offset: how far the hyperplane is from the origin, negative where it lies on the label's side.

    Example:
        >>> import torch
        >>> from georeg_diffusion.editing.labels import LabelDirection
        >>> LabelDirection(torch.tensor([[1.0, 0.0]]), -0.5).offset
        -0.5
    """

    vector: Tensor
    offset: float


def label_direction(latents: Tensor, labels: Tensor, *, method: str = "svm") -> LabelDirection:
    """The direction that leads from latents without a label to those with it.

    Args:
        latents: ``(N, ...)``.
        labels: true or false for each ``(N,)``.
        method: ``"svm"``, the normal of the soft-margin linear SVM (Shen et al. 2020), classes weighted as if they were of
            one size; ``"means"``, the difference of the two means.

    Raises:
        ValueError: an unknown method; labels of another number; latents of one label only, or not finite.

    References:
        Shen et al. 2020, InterfaceGAN: interpreting the disentangled face representation learned by GANs.

    Example:
        >>> import torch
        >>> from georeg_diffusion.editing.labels import label_direction
        >>> x = torch.tensor([[1.0, 5.0], [2.0, -5.0], [-1.0, 5.0], [-2.0, -5.0]])
        >>> label_direction(x, x[:, 0] > 0, method="means").vector
        tensor([[1., 0.]])
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")
    if latents.ndim < 2 or labels.shape != latents.shape[:1]:
        raise ValueError(
            f"labels: got shape {tuple(labels.shape)} for latents {tuple(latents.shape)}, expected (N,) for (N, ...)"
        )
    points, is_one = latents.detach().flatten(1).double().cpu(), labels.detach().bool().cpu()
    if not bool(is_one.any()) or bool(is_one.all()):
        raise ValueError(
            f"labels: {int(is_one.sum())} of {len(is_one)} latents have the label, expected some with and some without"
        )
    if not bool(torch.isfinite(points).all()):
        raise ValueError("latents: hold NaN or infinity, expected finite numbers")
    if method == "means":
        one, other = points[is_one].mean(0), points[~is_one].mean(0)
        normal, offset = one - other, -float((one - other) @ (one + other)) / 2
    else:
        from sklearn.svm import SVC

        machine = SVC(kernel="linear", class_weight="balanced").fit(points.numpy(), is_one.numpy())
        normal, offset = torch.tensor(machine.coef_[0]), float(machine.intercept_[0])
    length = torch.linalg.vector_norm(normal)
    if not bool(length > 0):
        raise ValueError("latents: those with the label and those without are the same, expected them to differ")
    vector = (normal / length).reshape(1, *latents.shape[1:]).to(latents.device, latents.dtype)
    return LabelDirection(vector, offset / float(length))


def held_out_accuracy(latents: Tensor, labels: Tensor, *, method: str = "svm", folds: int = 5) -> float | None:
    """How well hyperplanes tell latents apart that they were not found from: mean of both labels' shares, chance is 0.5.

    On those they were found from any direction looks perfect where there are more dimensions than latents.

    Args:
        latents, labels, method: see :func:`label_direction`.
        folds: parts that are held out in turn, each with its share of both labels.

    Returns:
        None where a label has fewer latents than there are folds.

    Raises:
        ValueError: as :func:`label_direction`; fewer than two folds.

    Example:
        >>> import torch
        >>> from georeg_diffusion.editing.labels import held_out_accuracy
        >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]).repeat(5, 1)
        >>> held_out_accuracy(x, x[:, 0] > 0)
        1.0
    """
    if folds < 2:
        raise ValueError(f"folds: got {folds}, expected at least 2")
    label_direction(latents, labels, method="means" if method in METHODS else method)  # refuses what is wrong
    is_one = labels.detach().bool().cpu()
    if min(int(is_one.sum()), int((~is_one).sum())) < folds:
        return None
    fold = torch.where(is_one, is_one.cumsum(0), (~is_one).cumsum(0)) % folds
    points = latents.detach().flatten(1).cpu()
    right = torch.zeros(len(is_one), dtype=torch.bool)
    for held in (fold == i for i in range(folds)):
        found = label_direction(points[~held], is_one[~held], method=method)
        right[held] = ((points[held] @ found.vector[0] + found.offset) > 0) == is_one[held]
    return float(right[is_one].double().mean() + right[~is_one].double().mean()) / 2
