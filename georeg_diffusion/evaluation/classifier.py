"""Classifiers of images: trained in place, or loaded from a folder; their penultimate features measure images by name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from georeg_diffusion._compat import repair_torchvision
from georeg_diffusion.data.images import Images
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.evaluation.feature_network import FeatureNetwork, as_rgb, features_of
from georeg_diffusion.evaluation.weights import fill, read_weights
from georeg_diffusion.files import replacing, write_json
from georeg_diffusion.progress import progress

KIND = "georeg_diffusion.Classifier"
"""What config.json calls it."""


@dataclass(frozen=True, kw_only=True)
class Classifier(FeatureNetwork):
    """A feature network with a head: probabilities of classes, or of attributes that do not exclude each other.

    Attributes:
        head: features ``(B, F)`` ↦ logits ``(B, K)``.
        names: of the K classes or attributes.
        exclusive: True where exactly one class holds (softmax); False for attributes (a sigmoid each).
        config: what :meth:`save` writes beside the weights; None for a classifier from elsewhere.
    """

    head: nn.Module
    names: tuple[str, ...]
    exclusive: bool
    config: dict[str, Any] | None = None

    def to(self, device: torch.device | str) -> Self:
        self.head.to(device)
        return super().to(device)

    def probabilities(self, images: Tensor, *, batch_size: int = 256) -> Tensor:
        """Probabilities ``(B, K)`` of images ``(B, C, H, W)`` in [−1, 1]."""
        with torch.no_grad():
            logits = self.head(features_of(self, images, batch_size=batch_size))
        return torch.softmax(logits, 1) if self.exclusive else torch.sigmoid(logits)

    def save(self, folder: Path) -> None:
        """Write model.safetensors, then config.json, which marks it as whole; :func:`load_classifier` reads them."""
        if self.config is None:
            raise ValueError(f"self: {self.name} was not made by this package, expected one that was trained here")
        state = nn.ModuleDict({"features": self.features, "head": self.head}).state_dict()
        with replacing(folder / "model.safetensors") as scratch:
            save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, scratch)
        write_json(folder / "config.json", self.config)


class Prepared(nn.Module):
    """A network behind what makes images fit it: channels, and size."""

    def __init__(self, network: nn.Module, channels: int, resolution: int) -> None:
        super().__init__()
        self.network, self.channels, self.resolution = network, channels, resolution

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] != self.channels:
            if self.channels == 1:
                raise UsageError(
                    f"--features: got images of {images.shape[1]} channels, but this network was trained on grey ones; take "
                    "inception, a network of torchvision, or a classifier of your own"
                )
            images = as_rgb(images)
        if tuple(images.shape[-2:]) != (self.resolution, self.resolution):
            images = nn.functional.interpolate(
                images, size=(self.resolution,) * 2, mode="bilinear", align_corners=False, antialias=True
            )
        features: Tensor = self.network(images)
        return features


def build(architecture: str, *, channels: int, resolution: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    """Features and head of an untrained classifier.

    Args:
        architecture: ``"small"``, or a classification network of torchvision with a linear head, such as
            ``"resnext50_32x4d"``.
        channels: of the images, 1 or 3; torchvision's networks see grey as RGB.
        resolution: of the images that it sees.
        outputs: K.

    Raises:
        UsageError: an unknown architecture, or one without a linear head.
    """
    if architecture == "small":
        features: nn.Module = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 64),
            nn.GELU(),
        )
        return Prepared(features, channels, resolution), nn.Linear(64, outputs)
    repair_torchvision()
    from torchvision import models

    try:
        network = models.get_model(architecture, weights=None, num_classes=outputs)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"--architecture: got {architecture!r}, expected small or a classification network of torchvision, such as "
            "resnext50_32x4d or resnet18"
        ) from error
    backbone, head = split_head(network, architecture)
    return Prepared(backbone, 3, resolution), head


def split_head(network: nn.Module, name: str) -> tuple[nn.Module, nn.Linear]:
    """A classification network without its last linear layer, and that layer.

    Raises:
        UsageError: there is no linear layer at its end.
    """
    linear = [(path, layer) for path, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise UsageError(
            f"{name} cannot be used for its features: it has no single linear layer at its end; take a ResNet, a "
            "ResNeXt, a VGG, an EfficientNet, a ConvNeXt or a ViT"
        )
    path, head = linear[-1]
    parent, _, child = path.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return network, head


def train_classifier(images: Images, *, seed: int = 0, epochs: int = 12, device: torch.device | str = "cpu") -> Classifier:
    """Train a small convolutional classifier on a labelled image set; 20 % are held out for its accuracy.

    Raises:
        ValueError: the images have no labels.
    """
    if images.labels is None:
        raise ValueError(f"images: {images.name} has no labels, expected a labelled set")
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        order = torch.randperm(len(images))
        held, kept = order[: len(order) // 5], order[len(order) // 5 :]
        pixels, labels = images.batch(range(len(images))).to(device), images.labels.to(device)
        classes = int(labels.max()) + 1
        features, head = build("small", channels=images.channels, resolution=images.resolution, outputs=classes)
        network = nn.Sequential(features, head).to(device)
        batch, rate = 128, 3e-3
        steps = epochs * (len(kept) // batch)
        optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(steps, 2))
        with progress("Classifier for features", steps) as bar:
            for _ in range(epochs):
                for chosen in kept[torch.randperm(len(kept))].split(batch):
                    if len(chosen) < batch:
                        continue
                    loss = nn.functional.cross_entropy(network(pixels[chosen]), labels[chosen])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    bar.advance()
        network.eval().requires_grad_(False)
        accuracy = float((network(pixels[held]).argmax(1) == labels[held]).float().mean())
    config = {
        "_class_name": KIND,
        "architecture": "small",
        "channels": images.channels,
        "resolution": images.resolution,
        "names": [str(c) for c in range(classes)],
        "exclusive": True,
        "accuracy": accuracy,
        "data": f"a {images.name} classifier trained in place ({accuracy:.1%} of {len(held)} held-out images right)",
    }
    return assemble(config, features, head)


def assemble(config: dict[str, Any], features: nn.Module, head: nn.Module) -> Classifier:
    """A trained classifier, frozen, from its parts and its config."""
    return Classifier(
        f"features of {config['data']}",
        features.eval().requires_grad_(False),
        config["accuracy"],
        head=head.eval().requires_grad_(False),
        names=tuple(config["names"]),
        exclusive=config["exclusive"],
        config=config,
    )


def load_classifier(folder: Path) -> Classifier:
    """Load what ``train-classifier`` wrote, or an image-classification folder of transformers where that is installed.

    Raises:
        RunError: the folder holds neither, or is damaged; transformers is needed and not installed.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise RunError(
            f"{folder} is no classifier: expected config.json and model.safetensors in it, as `georeg-diffusion "
            "train-classifier` writes them, or an image-classification folder of transformers"
        )
    try:
        config = dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise RunError(f"cannot read {file}: {error}") from error
    if config.get("_class_name") != KIND:
        return _from_transformers(folder, config)
    try:
        features, head = build(
            config["architecture"],
            channels=int(config["channels"]),
            resolution=int(config["resolution"]),
            outputs=len(config["names"]),
        )
        classifier = assemble(config, features, head)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"cannot use {file}: {error!r}; train it again with `georeg-diffusion train-classifier`") from error
    both = nn.ModuleDict({"features": features, "head": head})
    fill(both, read_weights(folder / "model.safetensors"), source=folder)
    return classifier


def _from_transformers(folder: Path, config: dict[str, Any]) -> Classifier:
    if "model_type" not in config:
        raise RunError(
            f"{folder} is no classifier: its config.json names neither one of ours nor a model_type of transformers"
        )
    try:
        import transformers
    except ImportError as error:
        raise RunError(f"{folder} is a classifier of transformers: pip install transformers to use it") from error
    try:
        network = transformers.AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot load the classifier {folder}: {str(error).strip().splitlines()[0]}") from error
    size = dict(processor.size)
    resolution = int(size.get("height") or size.get("shortest_edge") or network.config.image_size)
    backbone = _Normalised(network, processor.image_mean, processor.image_std)
    names = tuple(str(network.config.id2label[i]) for i in range(network.config.num_labels))
    return Classifier(
        f"logits of {folder.name} (transformers' {type(network).__name__})",
        Prepared(backbone, 3, resolution).eval().requires_grad_(False),
        head=nn.Identity(),
        names=names,
        exclusive=network.config.problem_type != "multi_label_classification",
    )


class _Normalised(nn.Module):
    """A network of transformers on images in [−1, 1]; its logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Any, std: Any) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(((images + 1) / 2 - self.mean) / self.std).logits
        return logits
