"""Features of generated images, piece by piece, kept on disk so that FID and KID generate each image once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from georeg_diffusion.evaluation.feature_network import FeatureNetwork, features_of
from georeg_diffusion.evaluation.setting import Setting
from georeg_diffusion.files import replacing

PIECE = 64
"""Images of one piece of work; not the batch size, which may change when a run is taken up again."""

GROUPS = 5
"""Disjoint groups of seeds whose spread gives the confidence interval."""

STUDENT = 2.776
"""97.5 % quantile of Student's t with GROUPS − 1 degrees of freedom."""


@dataclass(frozen=True)
class GeneratedFeatures:
    """Features of image i, made from seed + i, for i < ``num_images``.

    Args:
        sample: seeds ↦ images ``(B, C, H, W)`` in [−1, 1], each from its own seed.
        network: the features.
        num_images: N.
        seed: of image 0.
        batch_size: images at once.
        how: the sampler's part of a protocol, such as ``"20 DDIM steps"``.
        cache: folder to keep features in; None keeps none.
        model_key: a hash of all that the images depend on beside their seeds: weights, sampler, conditions. It goes
            into the files' names with the key of the features.
    """

    sample: Callable[[Sequence[int]], Tensor]
    network: FeatureNetwork
    num_images: int
    seed: int
    batch_size: int
    how: str
    cache: Path | None = None
    model_key: str = ""

    def pieces(self) -> int:
        """Number of pieces of at most 64 images."""
        return -(-self.num_images // PIECE)

    def indices(self, piece: int) -> range:
        """The images of a piece."""
        return range(piece * PIECE, min((piece + 1) * PIECE, self.num_images))

    def __call__(self, piece: int) -> Tensor:
        """Features ``(n, F)`` of a piece on the CPU."""
        seeds = [self.seed + i for i in self.indices(piece)]
        target = self._target(seeds)
        if target is not None and target.is_file():
            try:
                return load_file(target)["features"]
            except (OSError, SafetensorError, KeyError):
                pass  # damaged: made anew
        batches = [seeds[i : i + self.batch_size] for i in range(0, len(seeds), self.batch_size)]
        features = torch.cat([features_of(self.network, self.sample(batch)).cpu() for batch in batches])
        if target is not None:
            with replacing(target) as scratch:
                save_file({"features": features.contiguous()}, scratch)
        return features

    def _target(self, seeds: list[int]) -> Path | None:
        if self.cache is None:
            return None
        key = hashlib.sha256(f"{self.model_key} {self.how} {self.network.key} {seeds[0]} {len(seeds)}".encode()).hexdigest()
        return self.cache / f"generated-{key[:32]}.safetensors"


def generated_features(setting: Setting) -> GeneratedFeatures:
    """The images that FID and KID share: 10,000 at 20 DDIM steps under the paper's protocol, else 2,048 at 20."""
    steps = setting.steps(20, 20)
    return GeneratedFeatures(
        lambda seeds: setting.sample(seeds, steps),
        setting.features(),
        setting.count(2048, 10_000),
        setting.seed,
        setting.batch_size,
        f"{steps} DDIM steps",
        setting.cache,
        setting.key,
    )


def group_rows(indices: Sequence[int]) -> list[list[int]]:
    """Rows of a piece by group: image i belongs to group i mod 5, so that all grow together."""
    return [[row for row, index in enumerate(indices) if index % GROUPS == g] for g in range(GROUPS)]


def spread(values: Sequence[float], centre: float) -> tuple[float, float]:
    """95 % interval around a score of all N images, from the same score of disjoint groups of N/R.

    The score of N images fluctuates √R less than that of N/R (to first order; a score near its minimum of 0 even less),
    so its standard error is the groups' standard deviation over √R. Only the spread of the groups is used, because
    their mean has another bias. With fewer images in a group than features the interval is too wide rather than too narrow:
    measured on 64 features, its half-width is 1.02 times the right one at N = 1,280, 1.1 to 1.4 times at 256, 1.6 at 100.
    Images are not resampled: a bootstrap repeats images and so shifts the covariance.

    References:
        Politis & Romano 1994, Large sample confidence regions based on subsamples.
    """
    error = float(torch.tensor(values, dtype=torch.float64).std()) / len(values) ** 0.5
    return centre - STUDENT * error, centre + STUDENT * error
