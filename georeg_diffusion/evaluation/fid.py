"""FID: the Fréchet distance between features of generated and of real images."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from georeg import register
from georeg_diffusion.evaluation.feature_moments import FeatureMoments
from georeg_diffusion.evaluation.frechet import frechet_of_gaussians, symmetric_root
from georeg_diffusion.evaluation.generated import GROUPS, GeneratedFeatures, generated_features, group_rows, spread
from georeg_diffusion.evaluation.reference import Reference
from georeg_diffusion.evaluation.score import Result, Score
from georeg_diffusion.evaluation.setting import Setting


@register("score", "fid")
class Fid(Score):
    """‖μ₁ − μ₂‖² + Tr(C₁ + C₂ − 2 (C₁C₂)^½) of all N generated images and the real ones.

    It is an FID only under Inception's features, and says whose they are. It is biased upwards, by about F/N and more,
    so that only numbers of equal N compare. The interval comes from five disjoint groups of seeds.

    Args:
        generated: features of the generated images.
        reference: of the real ones.

    Raises:
        ValueError: statistics of another number of features.

    References:
        Heusel et al. 2017, GANs trained by a two time-scale update rule; Chong & Forsyth 2020 on the bias.
    """

    name: ClassVar[str] = "fid"
    label: ClassVar[str] = "Fréchet distance (FID)"
    lower_is_better: ClassVar[bool | None] = True

    def __init__(self, generated: GeneratedFeatures, reference: Reference) -> None:
        self.generated, self.reference = generated, reference
        self.groups: list[FeatureMoments] | None = None

    @classmethod
    def of(cls, setting: Setting) -> Self:
        return cls(generated_features(setting), setting.reference())

    def pieces(self) -> int:
        return self.generated.pieces()

    def update(self, piece: int) -> None:
        features = self.generated(piece)
        size = len(self.reference.mean)
        if features.shape[1] != size:
            raise ValueError(
                f"reference: got statistics of {size} features, expected {features.shape[1]}, those of "
                f"{self.generated.network.name}"
            )
        parts = [FeatureMoments.of(features[rows]) for rows in group_rows(self.generated.indices(piece))]
        self.groups = parts if self.groups is None else [a + b for a, b in zip(self.groups, parts, strict=True)]

    def compute(self) -> Result:
        groups = self.groups or []
        count = sum(group.count for group in groups)
        source, seed = self.generated, self.generated.seed
        protocol = f"{source.network.name}; {count:,} generated images, {source.how}, against {self.reference.name}"
        if count < 2:
            return Result(None, None, count, seed, f"{protocol}; a covariance needs at least 2 images")
        total = groups[0]
        for group in groups[1:]:
            total = total + group
        real = self.reference
        root = symmetric_root(real.covariance)

        def distance(moments: FeatureMoments) -> float:
            return frechet_of_gaussians(real.mean, real.covariance, moments.mean, moments.covariance, root_a=root)

        value, size = distance(total), len(total.mean)
        details: dict[str, object] = {
            "measure": source.network.name,
            "features": size,
            "rank": total.rank_bound,
            "real_images": real.count,
        }
        cautions = []
        if total.rank_bound < size:
            cautions.append(
                f"too few images for the covariance: its rank is at most {total.rank_bound} of {size}, and the distance "
                f"is biased upwards; take more than {size}"
            )
        if real.count is not None and real.count <= size:
            cautions.append(
                f"too few real images: the real images' covariance has a rank of at most {real.count - 1} of {size}; take "
                f"more than {size}"
            )
        if cautions:
            details["caution"] = "; ".join(cautions)
            protocol += f"; {details['caution']}"
        ci = None
        if min(group.count for group in groups) >= 2:
            each = [distance(group) for group in groups]
            ci = spread(each, value)
            details["groups"] = each
            protocol += f"; interval: spread over {GROUPS} disjoint groups of seeds with {count // GROUPS:,} images each"
        else:
            protocol += f"; no interval: {GROUPS} groups of at least 2 images are needed"
        return Result(value, ci, count, seed, protocol, details)

    def state(self) -> dict[str, Tensor]:
        if self.groups is None:
            return {}
        return {
            "count": torch.tensor([group.count for group in self.groups]),
            "mean": torch.stack([group.mean for group in self.groups]),
            "scatter": torch.stack([group.scatter for group in self.groups]),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        if not state:
            self.groups = None
            return
        parts = zip(state["count"].tolist(), state["mean"], state["scatter"], strict=True)
        self.groups = [FeatureMoments(int(count), mean, scatter) for count, mean, scatter in parts]
