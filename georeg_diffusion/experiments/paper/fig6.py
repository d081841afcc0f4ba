"""Figure 6: traversals between two latents, and how far adjacent frames are apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.lab import Lab

TITLE = "Traversals between two latents, with the distance between adjacent frames"
SOURCE = "Figure 6, Sec. 4.3"
DATA = "digits"

SHOWN = 3


def run(lab: Lab) -> Finding:
    """Slerp between the same noises in both models; the first pairs are drawn, and all pairs of all seeds are measured."""
    from georeg_diffusion.experiments import traversals
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.measured import models_of
    from georeg_diffusion.experiments.traversals import Walk
    from georeg_diffusion.report.panels import strips

    walks = {name: Walk(changes) for name, changes in models_of(lab).items()}
    base, ours = walks
    found = traversals.walk_all(lab, walks, traversals.noises)
    count = min(SHOWN, found.frames[base].shape[1])
    pictures = tuple(lab.path(f"fig6-{i + 1}.png") for i in range(count))
    for i, picture in enumerate(pictures):
        strips(
            {name: frames[:, i] for name, frames in found.frames.items()},
            {name: steps[:, i] for name, steps in found.steps.items()},
            picture,
            title=f"Figure 6 on {lab.recipe.label}: pair {i + 1} of noises",
            ends=("a noise x", "a noise x′"),
            path="slerp",
            unit=found.unit,
        )
    table = traversals.table(lab, f"{SOURCE}: {TITLE}", found, (("isometric − base", base, ours),))
    notes = (*found.notes, f"The first {count} pairs of the first seed are drawn, whatever they show.")
    return Finding((table,), pictures, traversals.claims_of(found.scores, base, ours), notes)
