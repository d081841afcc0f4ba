"""KID: the kernel distance between features of generated and of real images."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from georeg import register
from georeg_diffusion.evaluation.generated import GROUPS, GeneratedFeatures, generated_features, group_rows, spread
from georeg_diffusion.evaluation.mmd import polynomial_mmd, subset_mmd
from georeg_diffusion.evaluation.reference import Reference
from georeg_diffusion.evaluation.score import Result, Score
from georeg_diffusion.evaluation.setting import Setting

SUBSETS, SUBSET_SIZE = 100, 1000


@register("score", "kid")
class Kid(Score):
    """Unbiased MMD² with the kernel (xᵀy/F + 1)³, mean over 100 subsets of 1,000 images (fewer where there are fewer).

    It is a KID only under Inception's features, and says whose they are. Unbiased at any number of images.

    Args:
        generated: features of the generated images.
        reference: of the real ones; one from published moments has no features, and then there is no KID.

    References:
        Bińkowski et al. 2018, Demystifying MMD GANs.
    """

    name: ClassVar[str] = "kid"
    label: ClassVar[str] = "kernel distance (KID)"
    lower_is_better: ClassVar[bool | None] = True

    def __init__(self, generated: GeneratedFeatures, reference: Reference) -> None:
        self.generated, self.reference = generated, reference
        self.features: list[Tensor] = []

    @classmethod
    def of(cls, setting: Setting) -> Self:
        return cls(generated_features(setting), setting.reference())

    def pieces(self) -> int:
        return 0 if self.reference.features is None else self.generated.pieces()

    def update(self, piece: int) -> None:
        self.features.append(self.generated(piece))

    def compute(self) -> Result:
        source, real, seed = self.generated, self.reference.features, self.generated.seed
        fake = torch.cat(self.features) if self.features else torch.empty(0, 1)
        count = len(fake)
        protocol = f"{source.network.name}; {count:,} generated images, {source.how}, against {self.reference.name}"
        if real is None:
            return Result(None, None, 0, seed, f"{protocol}; published moments hold no features, which a KID needs")
        if count < 2:
            return Result(None, None, count, seed, f"{protocol}; an unbiased estimate needs at least 2 images")
        size = min(SUBSET_SIZE, count, len(real))
        generator = torch.Generator().manual_seed(seed)
        value = subset_mmd(real, fake, subsets=SUBSETS, subset_size=size, generator=generator)
        protocol += f"; mean over {SUBSETS} subsets of {size:,}"
        ci = None
        details: dict[str, object] = {"measure": source.network.name}
        groups = [fake[rows] for rows in group_rows(range(count))]
        if min(len(group) for group in groups) >= 2:
            each = [polynomial_mmd(real, group) for group in groups]
            ci, details = spread(each, value), details | {"groups": each}
            protocol += f"; interval: spread over {GROUPS} disjoint groups of seeds with {count // GROUPS:,} images each"
        else:
            protocol += f"; no interval: {GROUPS} groups of at least 2 images are needed"
        return Result(value, ci, count, seed, protocol, details)

    def state(self) -> dict[str, Tensor]:
        return {"features": torch.cat(self.features)} if self.features else {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.features = [state["features"]] if state else []
