"""What measures images: a network's features, under the name by which every figure that used them is reported."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from georeg_diffusion.errors import RunError
from georeg_diffusion.evaluation.weights import weights_hash


@dataclass(frozen=True)
class FeatureNetwork:
    """Features of images.

    Attributes:
        name: such as ``"features of a digits classifier trained in place (98.6% of 359 held-out images right)"``.
        features: the network, images ``(B, C, H, W)`` in [−1, 1] ↦ ``(B, F)``, its own resizing included.
        accuracy: share of held-out images it classifies right, None where that is not known.

    Example:
        >>> from torch import nn
        >>> from georeg_diffusion.evaluation.feature_network import FeatureNetwork
        >>> FeatureNetwork("the pixels", nn.Flatten()).key == FeatureNetwork("other pixels", nn.Flatten()).key
        False
    """

    name: str
    features: nn.Module
    accuracy: float | None = None

    @property
    def key(self) -> str:
        """A hash of the name and the weights: equal keys give equal features."""
        return hashlib.sha256(f"{self.name}\n{weights_hash(self.features)}".encode()).hexdigest()

    def to(self, device: torch.device | str) -> Self:
        """Move it, in place."""
        self.features.to(device)
        return self


@torch.no_grad()
def features_of(network: FeatureNetwork, images: Tensor, *, batch_size: int = 256) -> Tensor:
    """Features ``(N, F)`` of images ``(N, C, H, W)`` in [−1, 1], in batches, in the network's own precision.

    Raises:
        RunError: an image that is not finite. A conversion to 8 bits would hide it.
    """
    if not bool(torch.isfinite(images).all()):
        bad = int((~torch.isfinite(images)).flatten(1).any(1).sum())
        raise RunError(
            f"{bad} of {len(images)} images hold NaN or infinite pixels; if the model made them, try --dtype float32"
        )
    dtype = precision_of(network.features, images)
    with full_precision(images.device):
        return torch.cat([network.features(chunk.to(dtype)) for chunk in images.split(batch_size)])


def precision_of(network: nn.Module, images: Tensor) -> torch.dtype:
    """What a network that measures computes in: its weights' precision; without weights the images', at least float32."""
    weight = next((p for p in network.parameters() if p.is_floating_point()), None)
    return torch.promote_types(images.dtype, torch.float32) if weight is None else weight.dtype


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast and no TF32, whose ten bits are too few for distances between images that differ by 1e-4."""
    conv, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = conv, products


def as_rgb(images: Tensor) -> Tensor:
    """Three channels: grey is repeated, a fourth channel or more is refused.

    Raises:
        ValueError: neither one channel nor three.
    """
    if images.shape[1] == 1:
        return images.expand(-1, 3, -1, -1)
    if images.shape[1] != 3:
        raise ValueError(f"images: got {images.shape[1]} channels, expected 1 or 3; decode latents first")
    return images
