"""What a training set is: images by index, and the order in which a run draws them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler


class Images(ABC):
    """A set of images, each ``(C, H, W)`` in [−1, 1].

    Attributes:
        name: what to call it in tables.
        channels, resolution: C, and H = W.
        labels: class of each image ``(N,)``, or None.
        captions: of each image, a text or a tuple of them of which each draw takes one; or None.
    """

    name: str
    channels: int
    resolution: int
    labels: Tensor | None = None
    captions: Sequence[str | tuple[str, ...]] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int, rng: np.random.Generator | None = None) -> Tensor:
        """Image number ``index``; with ``rng`` augmented by it, otherwise as it is."""

    def batch(self, indices: Any) -> Tensor:
        """Images ``(B, C, H, W)`` without augmentation."""
        return torch.stack([self.image(int(i)) for i in indices])


class Draws(Dataset[dict[str, Any]]):
    """Images by (draw, index): the augmentation follows from the seed and the draw's number in the run alone."""

    def __init__(self, images: Images, seed: int) -> None:
        self.images, self.seed = images, seed

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        draw, index = key
        return {"image": self.images.image(index, np.random.default_rng((self.seed, draw, 1))), "draw": draw}


class TrainingOrder(Sampler[tuple[int, int]]):
    """The draws of a run: its number and the image's index, each epoch a permutation of its own.

    A pure function of the seed, so that a resumed run needs only the number of its first draw.
    """

    def __init__(self, size: int, seed: int, *, first: int, stop: int) -> None:
        self.size, self.seed, self.first, self.stop = size, seed, first, stop

    def __len__(self) -> int:
        return self.stop - self.first

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, permutation = -1, np.arange(0)
        for draw in range(self.first, self.stop):
            if draw // self.size != epoch:
                epoch = draw // self.size
                permutation = np.random.default_rng((self.seed, epoch, 0)).permutation(self.size)
            yield draw, int(permutation[draw % self.size])


def draw_generators(seed: int, draws: Any) -> list[torch.Generator]:
    """One generator per draw, for its timestep, noise and probes: the same on however many processes."""
    return [
        torch.Generator().manual_seed(int(np.random.SeedSequence((seed, int(draw), 2)).generate_state(1, np.uint64)[0]))
        for draw in draws
    ]
