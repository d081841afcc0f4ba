"""Figures of many traversals: a row for each model under each other, pair by pair."""

from __future__ import annotations

import torch

from georeg_diffusion.experiments import traversals
from georeg_diffusion.experiments.finding import Finding
from georeg_diffusion.experiments.lab import Lab
from georeg_diffusion.experiments.measured import models_of
from georeg_diffusion.experiments.traversals import FRAMES, Ends, Walk
from georeg_diffusion.report.grids import grid

SHOWN = 5


def finding(lab: Lab, ends_of: Ends, *, target: str, title: str, heading: str, notes: tuple[str, ...]) -> Finding:
    """Slerps between the same ends in base and isometric: the first pairs drawn, all pairs of all seeds measured.

    Args:
        lab: trains the models.
        ends_of: where the paths begin and end.
        target: name of the picture.
        title: of the table.
        heading: of the picture.
        notes: of the finding.
    """
    walks = {name: Walk(changes) for name, changes in models_of(lab).items()}
    base, ours = walks
    found = traversals.walk_all(lab, walks, ends_of)
    count = min(SHOWN, found.frames[base].shape[1])
    rows = [frames[:, i] for i in range(count) for frames in found.frames.values()]
    picture = lab.path(target)
    grid(
        torch.stack(rows),
        picture,
        rows=[f"{i + 1}: {name.split(' (')[0]}" for i in range(count) for name in walks],
        columns=["x", *[""] * (FRAMES - 2), "x′"],
        title=f"{heading}; base (λ = 0) above isometric (λ = {lab.recipe.lambda_iso:g})",
    )
    table = traversals.table(lab, title, found, (("isometric − base", base, ours),))
    shown = f"The first {count} pairs of the first seed are drawn, whatever they show."
    claims = traversals.claims_of(found.scores, base, ours)
    return Finding((table,), (picture,), claims, (*notes, *found.notes, shown))
