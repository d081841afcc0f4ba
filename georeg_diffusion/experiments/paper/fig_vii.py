"""Figure VII: more traversals, here between noises that both models make one class of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from georeg_diffusion.evaluation.setting import Setting
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.lab import Lab

TITLE = "More traversals: between two latents of one class"
SOURCE = "Figure VII, App. H"
DATA = "digits"

CANDIDATES = 6


def run(lab: Lab) -> Finding:
    """Slerp between noises whose images have one class in both models: every other class on the way is unwanted."""
    from georeg_diffusion.experiments.traversal_grid import finding

    return finding(
        lab,
        same_class,
        target="fig_vii.png",
        title=f"{SOURCE}: {TITLE}",
        heading=f"Figure VII on {lab.recipe.label}: slerps between noises of one class",
        notes=(
            "The paper's ends are any of CelebA-HQ; here both ends have one class in both models, as the two men of Fig. 1, "
            "where a classifier is at hand.",
        ),
    )


def same_class(settings: Mapping[str, Setting], count: int) -> tuple[dict[str, Tensor], str]:
    """Pairs of noises of which each model makes images of one class, the same in all; others where these are too few."""
    import torch

    from georeg_diffusion.experiments.linearity import subjects_at
    from georeg_diffusion.experiments.measured import labels_of

    total = CANDIDATES * count
    seen = []
    for setting in settings.values():
        labelled = labels_of(setting, subjects_at(setting, total).images("Looking for pairs of one class"))
        seen += [] if labelled is None else [labelled[0]]
    waiting: dict[tuple[bool, ...], int] = {}
    pairs: list[tuple[int, int]] = []
    for i in range(total if seen else 0):
        if not all(torch.equal(one[i], seen[0][i]) for one in seen):
            continue
        key = tuple(seen[0][i].tolist())
        if key in waiting:
            pairs.append((waiting.pop(key), i))
        else:
            waiting[key] = i
    used = {i for pair in pairs for i in pair}
    left = [i for i in range(total) if i not in used]
    fill = list(zip(left[::2], left[1::2], strict=False))
    chosen = [*pairs, *fill][:count]
    setting = next(iter(settings.values()))
    x = setting.noise([setting.seed + i for pair in chosen for i in pair]).unflatten(0, (count, 2)).transpose(0, 1)
    return dict.fromkeys(settings, x), f"{min(len(pairs), count)} of {count} pairs have one class at both ends"
