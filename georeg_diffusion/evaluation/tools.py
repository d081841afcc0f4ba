"""What measures and what is compared with, as the options of ``evaluate`` name it; each is built when it is first needed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypedDict

import torch

from georeg_diffusion.data.digits import Digits
from georeg_diffusion.data.images import Images
from georeg_diffusion.errors import RunError
from georeg_diffusion.evaluation.classifier import Classifier, load_classifier, train_classifier
from georeg_diffusion.evaluation.feature_network import FeatureNetwork
from georeg_diffusion.evaluation.features import open_features
from georeg_diffusion.evaluation.once import Once
from georeg_diffusion.evaluation.perceptual import PerceptualDistance, feature_distance, lpips_distance
from georeg_diffusion.evaluation.real_images import real_images
from georeg_diffusion.evaluation.reference import Reference, reference_from_file, reference_of


class Tools(TypedDict):
    """The fields of a :class:`georeg_diffusion.evaluation.setting.Setting` that all models share."""

    images: Once[Images]
    features: Once[FeatureNetwork]
    distance: Once[PerceptualDistance]
    classifier: Once[Classifier]
    reference: Once[Reference]


def tools(
    reference: str | None,
    model: str,
    shape: tuple[int, int, int],
    *,
    features: str | None = None,
    inception_weights: Path | None = None,
    lpips_backbone: str | None = None,
    lpips_weights: Path | None = None,
    classifier: str | None = None,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    cache: Path | None = None,
    deadline: float = math.inf,
) -> Tools:
    """The tools for images of a shape.

    Digits are measured by a classifier that is trained in place on them, everything else by Inception and LPIPS with
    AlexNet, unless an option names another.

    Args:
        reference: ``"digits"``, a folder, a file of statistics (``.npz``), or None for what the model was trained on.
        model: the model's path.
        shape: channels, height and width of its images.
        features: see :func:`georeg_diffusion.evaluation.features.open_features`.
        inception_weights: a local file.
        lpips_backbone: ``"alex"``, ``"vgg"``, ``"squeeze"``, or ``"features"`` for the features' own distance.
        lpips_weights: a local file of the backbone's weights.
        classifier: a folder that ``train-classifier`` wrote.
        batch_size: real images at once.
        device: where to compute.
        cache: folder to keep features of the real images in.
        deadline: by ``time.monotonic()``, of measuring the real images.
    """
    statistics = Path(reference) if reference is not None and reference.endswith(".npz") else None
    images = Once(lambda: real_images(None if statistics else reference, model, shape))

    def are_digits() -> bool:
        try:
            return isinstance(images(), Digits)
        except RunError:
            return False

    @Once
    def trained() -> Classifier:
        return train_classifier(Digits(shape[1]), device=device)

    @Once
    def measure() -> FeatureNetwork:
        if features == "digits" or (features is None and are_digits()):
            return trained()
        name = features or "inception"
        return open_features(name, resolution=shape[1], inception_weights=inception_weights, device=device)

    @Once
    def distance() -> PerceptualDistance:
        backbone = lpips_backbone or ("features" if are_digits() and lpips_weights is None else "alex")
        if backbone == "features":
            return feature_distance(measure())
        found = lpips_distance(backbone, lpips_weights)
        found.network.to(device)
        return found

    @Once
    def labels() -> Classifier:
        if classifier is not None:
            found = load_classifier(Path(classifier))
            found.features.to(device)
            found.head.to(device)
            return found
        if are_digits():
            return trained()
        raise RunError("linear separability needs a classifier: train one by `train-classifier`, name it by --classifier")

    @Once
    def real() -> Reference:
        if statistics is not None:
            return reference_from_file(statistics)
        return reference_of(images(), measure(), cache=cache, batch_size=batch_size, device=device, deadline=deadline)

    return Tools(images=images, features=measure, distance=distance, classifier=labels, reference=real)
