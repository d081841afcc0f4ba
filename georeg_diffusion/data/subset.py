"""The first images of a set."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from georeg_diffusion.data.images import Images


class FirstImages(Images):
    """The first ``count`` of some images, with their labels and captions.

    Args:
        images: all of them.
        count: how many; more than there are is all.

    Example:
        >>> from georeg_diffusion.data.digits import Digits
        >>> from georeg_diffusion.data.subset import FirstImages
        >>> len(FirstImages(Digits(8), 10))
        10
    """

    def __init__(self, images: Images, count: int) -> None:
        self.images, self.count = images, min(count, len(images))
        self.name, self.channels, self.resolution = images.name, images.channels, images.resolution
        self.labels = None if images.labels is None else images.labels[: self.count]
        self.captions = None if images.captions is None else images.captions[: self.count]
        self.random_flip = images.random_flip

    def __len__(self) -> int:
        return self.count

    def listing(self) -> str:
        return f"{self.images.listing()} {self.count}"

    def fingerprint(self) -> str:
        return f"{self.images.fingerprint()} {self.count}"

    def image(self, index: int, rng: np.random.Generator | None = None) -> Tensor:
        if not 0 <= index < self.count:
            raise IndexError(f"index: got {index}, expected 0 to {self.count - 1}")
        return self.images.image(index, rng)
