"""Feature networks by name: what ``--features`` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from georeg_diffusion._compat import repair_torchvision
from georeg_diffusion.data.digits import Digits
from georeg_diffusion.errors import UsageError
from georeg_diffusion.evaluation.classifier import load_classifier, split_head, train_classifier
from georeg_diffusion.evaluation.feature_network import FeatureNetwork, as_rgb
from georeg_diffusion.evaluation.inception import inception
from georeg_diffusion.evaluation.weights import fill, read_weights, weights_file


def open_features(
    name: str,
    *,
    resolution: int,
    inception_weights: Path | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> FeatureNetwork:
    """A feature network, on a device.

    Args:
        name: ``"inception"``, which alone makes a Fréchet distance an FID; ``"digits"``, a small classifier of
            scikit-learn's digits trained in place; a classification network of torchvision, such as ``"resnet50"``,
            with its ImageNet weights; or a folder that ``train-classifier`` wrote.
        resolution: of the images, at which the digits are learnt.
        inception_weights: a local file of Inception's weights.
        seed: of the training in place.
        device: where to compute.

    Raises:
        UsageError: no such name; a file of weights that does not exist.
        RunError: weights that are not there and cannot be downloaded.
    """
    if name == "inception":
        network = inception(inception_weights)
    elif name == "digits":
        network = train_classifier(Digits(resolution), seed=seed, device=device)
    elif Path(name).is_dir():
        network = load_classifier(Path(name))
    else:
        network = _torchvision(name)
    return network.to(device)


def _torchvision(name: str) -> FeatureNetwork:
    """The penultimate features of a classification network with its default ImageNet weights."""
    if name in ("inception_v3", "googlenet"):
        raise UsageError(f"--features: {name} of torchvision is not the network of the FID; take inception")
    repair_torchvision()
    from torchvision import models

    try:
        choice: Any = models.get_model_weights(name).DEFAULT
        network = models.get_model(name, weights=None)
    except ValueError as error:
        raise UsageError(
            f"--features: got {name!r}, expected inception, digits, a folder of train-classifier, or a classification "
            "network of torchvision, such as resnet50"
        ) from error
    transforms = choice.transforms()
    if len(choice.meta.get("categories", ())) != 1000 or not hasattr(transforms, "crop_size"):
        raise UsageError(f"--features: {name} is no classification network of ImageNet; take one such as resnet50")
    network_name = f"{name}'s features (torchvision, {choice.name})"
    file = weights_file(choice.url, what=f"--features {name}")
    fill(network, read_weights(file), source=file)
    backbone, _ = split_head(network, name)
    size = int(transforms.crop_size[0])
    prepared = ImageNetInput(backbone, size, transforms.mean, transforms.std)
    return FeatureNetwork(network_name, prepared.eval().requires_grad_(False))


class ImageNetInput(nn.Module):
    """A network of torchvision on images in [−1, 1] of any size, which it resizes and normalises."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, size: int, mean: Any, std: Any) -> None:
        super().__init__()
        self.network, self.size = network, size
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        resized = nn.functional.interpolate(
            as_rgb(images), size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=True
        )
        features: Tensor = self.network(((resized + 1) / 2 - self.mean) / self.std)
        return features
