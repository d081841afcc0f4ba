"""Figure 1: a traversal between two latents, straight and on the sphere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.lab import Lab

TITLE = "Traversal between two latents: Lerp, Slerp, and Slerp with the isometry loss"
SOURCE = "Figure 1, Sec. 1"
DATA = "digits"

LERP, SLERP, OURS = "base, Lerp", "base, Slerp", "isometric, Slerp"


def run(lab: Lab) -> Finding:
    """Walk between the same noises in three ways; the first pair is drawn, and all pairs of all seeds are measured."""
    from georeg_diffusion.experiments import comparison, traversals
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.traversals import CONFIDENCE, STRAY, Walk
    from georeg_diffusion.report.panels import strips

    walks = {LERP: Walk(comparison.BASE, "lerp"), SLERP: Walk(comparison.BASE), OURS: Walk({})}
    found = traversals.walk_all(lab, walks, traversals.noises)
    picture = lab.path("fig1.png")
    strips(
        {name: frames[:, 0] for name, frames in found.frames.items()},
        {name: steps[:, 0] for name, steps in found.steps.items()},
        picture,
        title=f"{SOURCE.split(',')[0]} on {lab.recipe.label}: from one noise to another, λ = {lab.recipe.lambda_iso:g}",
        ends=("a noise x", "a noise x′"),
        path="path",
        unit=found.unit,
    )
    columns = (("Slerp − Lerp", LERP, SLERP), ("isometric − base", SLERP, OURS))
    claims = (
        comparison.rises(
            "Lerp makes unwanted images between the ends: with Slerp the classifier is surer of the frames",
            found.scores[LERP],
            found.scores[SLERP],
            CONFIDENCE,
        ),
        comparison.falls(
            "Lerp makes unwanted images between the ends: with Slerp fewer have a class that neither end has",
            found.scores[LERP],
            found.scores[SLERP],
            STRAY,
        ),
        *traversals.claims_of(found.scores, SLERP, OURS),
    )
    notes = (
        *found.notes,
        "The first pair of the first seed is drawn, whatever it shows.",
        "Lerp's inner points are shorter than noise is, at the middle by about 1/√2: where no noise lies.",
    )
    return Finding((traversals.table(lab, f"{SOURCE}: {TITLE}", found, columns),), (picture,), claims, notes)
