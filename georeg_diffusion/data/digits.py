"""scikit-learn's digits: 1,797 real scans of 8 × 8, inside the package, no network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from georeg_diffusion.data.images import Images


class Digits(Images):
    """The digits, enlarged bilinearly, with their classes.

    Args:
        resolution: height and width.
        random_flip: flip at random (off by default: a mirrored digit is no digit).
    """

    name = "digits"
    channels = 1

    def __init__(self, resolution: int = 16, *, random_flip: bool = False) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        small = torch.from_numpy(data.images).float().unsqueeze(1) / 8 - 1
        self.resolution, self.random_flip = resolution, random_flip
        self.pixels = torch.nn.functional.interpolate(small, size=resolution, mode="bilinear", align_corners=False)
        self.labels = torch.from_numpy(data.target)

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, index: int, rng: np.random.Generator | None = None) -> Tensor:
        image = self.pixels[index]
        return image.flip(-1) if self.random_flip and rng is not None and rng.random() < 0.5 else image
