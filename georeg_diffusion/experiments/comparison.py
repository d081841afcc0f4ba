"""Configurations compared with a base over seeds: their scores, and their differences from it, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from georeg import Estimate
from georeg_diffusion.evaluation.catalogue import chosen
from georeg_diffusion.experiments.finding import Cell, Claim
from georeg_diffusion.experiments.lab import Lab
from georeg_diffusion.experiments.replicates import in_words, is_below_zero, over_seeds, paired

BASE: dict[str, Any] = {"lambda_iso": 0.0}
"""The changes that make the base."""

_SHORT = {
    **{"ppl": "PPL", "mrtl": "mRTL", "mcn": "MCN", "vor": "VoR", "vor_log": "log-VoR"},
    **{"ls": "LS", "ls_radial": "LS (radial)"},
}


@dataclass(frozen=True)
class Replicated:
    """Scores of one configuration, a value for each seed.

    Attributes:
        values: by score.
        protocols: how each was measured, by score; the first seed's words.
        details: of each score, a record for each seed.
    """

    values: Mapping[str, tuple[float | None, ...]]
    protocols: Mapping[str, str]
    details: Mapping[str, tuple[dict[str, Any], ...]]

    def mean(self, score: str) -> Estimate | None:
        """Over seeds."""
        return over_seeds(self.values[score])


def replicated(lab: Lab, names: Sequence[str], *, options: Mapping[str, Any] | None = None, **changes: Any) -> Replicated:
    """A configuration trained and scored with every seed of the lab.

    Args:
        lab: trains and scores.
        names: of the scores.
        options: of :meth:`georeg_diffusion.experiments.lab.Lab.score`.
        **changes: the configuration, over the recipe's.
    """
    found = [lab.score(lab.model(seed, **changes), seed, *names, **(options or {})) for seed in lab.seeds]
    return Replicated(
        values={name: tuple(one[name]["value"] for one in found) for name in names},
        protocols={name: found[0][name]["protocol"] for name in names},
        details={name: tuple(one[name]["details"] for one in found) for name in names},
    )


def difference(base: Replicated, ours: Replicated, score: str) -> Estimate | None:
    """Mean of ours − base over seeds, each seed's two models compared with each other."""
    return paired(base.values[score], ours.values[score])


def cells(base: Replicated, ours: Replicated, score: str) -> tuple[Cell, Cell, Cell]:
    """Base, ours and their difference; better where the score fell beyond its 95% interval and lower is better."""
    change = difference(base, ours, score)
    is_better = is_below_zero(change)
    if chosen(score)[score].lower_is_better is not True:
        is_better = None
    return Cell.of(base.mean(score)), Cell.of(ours.mean(score)), Cell.of(change, better=is_better, signed=True)


def falls(text: str, base: Replicated, ours: Replicated, score: str) -> Claim:
    """The claim that a score falls from base to ours."""
    change = difference(base, ours, score)
    return Claim(text, is_below_zero(change), _evidence(base, ours, score, change))


def rises(text: str, base: Replicated, ours: Replicated, score: str) -> Claim:
    """The claim that a score rises from base to ours."""
    change = difference(base, ours, score)
    verdict = is_below_zero(change)
    return Claim(text, None if verdict is None else not verdict, _evidence(base, ours, score, change))


def _evidence(base: Replicated, ours: Replicated, score: str, change: Estimate | None) -> str:
    before, after = Cell.of(base.mean(score)), Cell.of(ours.mean(score))
    return f"{score} {before} → {after}, difference {in_words(change)}"


def is_fid(lab: Lab) -> bool:
    """Whether Fréchet distances are by Inception's features."""
    return lab.measures.get("features", "classifier" if lab.recipe.dataset == "digits" else "inception") == "inception"


def label_of(lab: Lab, score: str) -> str:
    """What tables call a score; a Fréchet distance is an FID with Inception's features alone."""
    labels = {"fid": "FID" if is_fid(lab) else "FD", "isometry": "isometry loss"}
    return labels.get(score) or _SHORT.get(score) or chosen(score)[score].label.strip()


def protocols(*configurations: Replicated) -> tuple[str, ...]:
    """How each score was measured, for notes."""
    found: dict[str, str] = {}
    for one in configurations:
        for name, text in one.protocols.items():
            found.setdefault(name, text)
    return tuple(f"{name}: {text}" for name, text in found.items())


def training_of(lab: Lab) -> str:
    """What was trained, in a few words."""
    recipe = lab.recipe
    start = recipe.training.get("pretrained_model_name_or_path")
    begun = f"continued from {Path(str(start)).name}" if start else f"pre-trained for {recipe.pretraining_steps:,} steps"
    length = f"{recipe.steps:,} steps" if recipe.steps else f"{recipe.training.get('num_epochs', 10)} epochs"
    return f"{recipe.label}, {begun}, then {length} of {recipe.batch}"


def setting_of(lab: Lab) -> str:
    """What was trained here, in one line, for a caption."""
    recipe, count = lab.recipe, len(lab.seeds)
    kind = "normalised" if recipe.training.get("normalize", True) else "bare"
    error = f"{count} seeds, ± one standard error of the mean over them" if count > 1 else "one seed, so no standard errors"
    return (
        f"{training_of(lab)} with and without the loss ({kind}, λ = "
        f"{recipe.lambda_iso:g}); {error}; differences are of models of one seed."
        + ("" if is_fid(lab) else " FD is a Fréchet distance by another network's features, no FID.")
    )
