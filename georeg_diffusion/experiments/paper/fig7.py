"""Figure 7: spherical perturbations of various strengths along a direction that is found without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.lab import Lab

TITLE = "Linearity: moves along a Local Basis direction"
SOURCE = "Figure 7, Sec. 4.3"
DATA = "digits"

GAMMAS = (-2.0, -1.0, 0.0, 1.0, 2.0)
SHOWN = 3


def run(lab: Lab) -> Finding:
    """Turn noises by γ · 0.2 rad along the direction in which each model's own h changes most."""
    import torch

    from georeg_diffusion.experiments import comparison, linearity
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.linearity import FLIPPED, LINEAR, LINEAR_SEEN, STEP_ANGLE
    from georeg_diffusion.experiments.measured import table_of
    from georeg_diffusion.report.edits import signed
    from georeg_diffusion.report.grids import grid

    found = linearity.move_all(lab, torch.tensor(GAMMAS)[:, None])
    base, ours, matched = found.scores
    count = min(SHOWN, found.images[base].shape[1])
    picture = lab.path("fig7.png")
    grid(
        torch.stack([images[:, i] for i in range(count) for images in found.images.values()]),
        picture,
        rows=[f"{i + 1}: {name.split(' (')[0]}" for i in range(count) for name in found.images],
        columns=[signed(gamma) for gamma in GAMMAS],
        title=f"Figure 7 on {lab.recipe.label}: x turned along its first Local Basis direction\n"
        f"base (λ = 0) above isometric (λ = {lab.recipe.lambda_iso:g})",
        column_axis=f"γ: turns x by γ · {STEP_ANGLE:g} rad",
        marked=GAMMAS.index(0.0),
    )
    samples = found.images[base].shape[1]
    table = table_of(
        f"{SOURCE}: {TITLE}",
        found.scores,
        linearity.MEASURES,
        pairs=(("isometric − base", base, ours), ("as large − base", base, matched)),
        caption=f"γ = {', '.join(signed(g) for g in GAMMAS)} times {STEP_ANGLE:g} rad, {samples} samples for each seed, "
        f"{found.num_steps} DDIM steps. Linear share: 1 − min_d Σ‖Δ(γ) − γd‖²/Σ‖Δ(γ)‖². {comparison.setting_of(lab)}",
    )
    one, two, three = (found.scores[name] for name in (base, ours, matched))
    claims = (
        comparison.rises("Images change more linearly with γ than the base's", one, two, LINEAR),
        comparison.rises("They do so also in features", one, two, LINEAR_SEEN),
        comparison.falls("Fewer abrupt changes: fewer images change their class", one, two, FLIPPED),
        comparison.rises("More linear also where the images change as much as the base's", one, three, LINEAR),
        comparison.falls("Fewer changes of class also where the images change as much as the base's", one, three, FLIPPED),
    )
    notes = (
        *found.notes,
        "A model whose images move less is more linear for that reason alone; hence the isometric model is also turned so "
        "far that its images change as much as the base's.",
        "Each model has its own directions, and which way is positive is arbitrary in each. The paper's direction changes "
        "the age; this one is the first, whatever it changes.",
    )
    return Finding((table,), (picture,), claims, notes)
