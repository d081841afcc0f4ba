"""Images as an autoencoder's latents, encoded once."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from georeg_diffusion.data.images import Images
from georeg_diffusion.data.rows import Rows
from georeg_diffusion.errors import UsageError


class Latents(Images):
    """The latents of some images, read from disk one at a time.

    A flipped image's latent is no flipped latent, so both are kept: ``rows[i]["latents"]`` is ``(1, C, h, w)``, or
    ``(2, C, h, w)`` with the flipped image's behind it, of which each draw takes one.

    Args:
        images: that were encoded; name, labels and captions are theirs.
        rows: from :func:`georeg_diffusion.data.rows.write_rows`.

    Raises:
        UsageError: latents that are not square.
    """

    def __init__(self, images: Images, rows: Rows) -> None:
        self.rows, self.name = rows, images.name
        self.labels, self.captions, self.random_flip = images.labels, images.captions, images.random_flip
        _, self.channels, self.resolution, width = rows[0]["latents"].shape
        if self.resolution != width:
            raise UsageError(f"--vae: its latents are {self.resolution} × {width}, expected square ones")

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int, rng: np.random.Generator | None = None) -> Tensor:
        variants = self.rows[index]["latents"]
        return variants[int(rng.integers(len(variants))) if rng is not None else 0]
