"""What a training set is: images by index, and the order in which a run draws them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from georeg_diffusion.data.conditions import Conditions
from georeg_diffusion.errors import RunError


class Images(ABC):
    """A set of images, each ``(C, H, W)`` in [−1, 1].

    Attributes:
        name: what to call it in tables.
        channels, resolution: C, and H = W.
        labels: class of each image ``(N,)``, or None.
        captions: of each image, a text or a tuple of them of which each draw takes one; or None.
        random_flip: whether training flips images left to right.
    """

    name: str
    channels: int
    resolution: int
    labels: Tensor | None = None
    captions: Sequence[str | tuple[str, ...]] | None = None
    random_flip: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int, rng: np.random.Generator | None = None) -> Tensor:
        """Image number ``index``; with ``rng`` augmented by it, otherwise as it is."""

    def batch(self, indices: Any) -> Tensor:
        """Images ``(B, C, H, W)`` without augmentation."""
        return torch.stack([self.image(int(i)) for i in indices])

    def listing(self) -> str:
        """What must agree between processes for number i to be the same image in all of them; cheap."""
        return f"{self.name} {len(self)}"

    def fingerprint(self) -> str:
        """A hash of what the images are before they are resized and cropped; by default of all un-augmented pixels."""
        digest = hashlib.sha256(f"{self.name} {len(self)}".encode())
        for index in range(len(self)):
            digest.update(self.image(index).contiguous().numpy().tobytes())
        return digest.hexdigest()


class Draws(Dataset[dict[str, Any]]):
    """Images by (draw, index), with what conditions them; all chance follows from the seed and the draw's number alone."""

    def __init__(self, images: Images, seed: int, conditions: Conditions | None = None) -> None:
        self.images, self.seed, self.conditions = images, seed, conditions

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        draw, index = key
        entry = {"image": self.images.image(index, np.random.default_rng((self.seed, draw, 1))), "draw": draw}
        if self.conditions is not None:
            conditioning, is_given = self.conditions.draw(index, np.random.default_rng((self.seed, draw, 3)))
            entry |= {"conditioning": conditioning, "is_conditional": is_given}
        return entry


def batches(loader: Iterable[dict[str, Any]]) -> Generator[dict[str, Any], None, None]:
    """The batches of a loader; what an image's own error says comes back from another process without its traceback.

    Close it: the processes that load end with it. Left to the interpreter's end they are asked by a signal that they
    ignore, and are waited for without end.
    """
    try:
        yield from loader
    except RunError as error:
        raise RunError(str(error).rpartition(f"{RunError.__module__}.{RunError.__qualname__}: ")[2].strip()) from error
    finally:
        iterator = getattr(getattr(loader, "base_dataloader", loader), "_iterator", None)
        shut_down = getattr(iterator, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()


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
