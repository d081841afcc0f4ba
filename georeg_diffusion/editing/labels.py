"""Directions from labelled latents: the normal of a linear SVM, or the difference of class means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

METHODS = ("svm", "means")


@dataclass(frozen=True)
class LabelDirection:
    """A direction towards a label.

    Attributes:
        vector: of length 1 ``(1, ...)``, from without to with.
        accuracy: share of the latents on their label's side of the hyperplane, which were used to find it.

    Example:
        >>> import torch
        >>> from georeg_diffusion.editing.labels import LabelDirection
        >>> LabelDirection(torch.tensor([[1.0, 0.0]]), 0.9).accuracy
        0.9
    """

    vector: Tensor
    accuracy: float


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
    accuracy = float((((points @ normal + offset) > 0) == is_one).double().mean())
    vector = (normal / length).reshape(1, *latents.shape[1:]).to(latents.device, latents.dtype)
    return LabelDirection(vector, accuracy)
