"""Figure V: two directions of X combined."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.lab import Lab

TITLE = "Linear combinations of two directions in X"
SOURCE = "Figure V, App. C"
DATA = "digits"

GAMMAS = (-2.0, -1.0, 0.0, 1.0, 2.0)
ADDITIVE = "additive share, pixels"


def run(lab: Lab) -> Finding:
    """Turn noises along all pairs of strengths of the two directions in which each model's own h changes most."""
    import torch

    from georeg_diffusion.experiments import comparison, linearity
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.linearity import LINEAR, STEP_ANGLE
    from georeg_diffusion.experiments.measured import table_of
    from georeg_diffusion.report.edits import signed
    from georeg_diffusion.report.grids import grid

    weights = linearity.grid_of(GAMMAS)
    found = linearity.move_all(lab, weights, extra=lambda changes: {ADDITIVE: linearity.additive_share(changes, weights)})
    base, ours, matched = found.scores
    across = len(GAMMAS)
    picture = lab.path("fig_v.png")
    left, right = (images[:, 0].unflatten(0, (across, across)) for images in found.images.values())
    strengths = [signed(gamma) for gamma in GAMMAS]
    grid(
        torch.cat([left, torch.ones_like(left[:, :1]), right], dim=1),
        picture,
        rows=strengths,
        columns=[*strengths, "", *strengths],
        title=f"Figure V on {lab.recipe.label}: one x turned along its first two Local Basis directions",
        row_axis="γ of direction 1",
        column_axis=f"γ of direction 2 (left: base, λ = 0; right: isometric, λ = {lab.recipe.lambda_iso:g})",
    )
    samples = found.images[base].shape[1]
    table = table_of(
        f"{SOURCE}: {TITLE}",
        found.scores,
        {**linearity.MEASURES, ADDITIVE: False},
        pairs=(("isometric − base", base, ours), ("as large − base", base, matched)),
        caption=f"All pairs of γ = {', '.join(signed(g) for g in GAMMAS)} times {STEP_ANGLE:g} rad, {samples} samples for "
        f"each seed, {found.num_steps} DDIM steps. Linear share: of a map linear in both γ; additive share: 1 − "
        f"Σ‖Δ(γ₁, γ₂) − Δ(γ₁, 0) − Δ(0, γ₂)‖²/Σ‖Δ(γ₁, γ₂)‖². {comparison.setting_of(lab)}",
    )
    one, two, three = (found.scores[name] for name in (base, ours, matched))
    claims = (
        comparison.rises("Two directions are combined by adding them, better than in the base", one, two, ADDITIVE),
        comparison.rises("Images change more linearly with both strengths", one, two, LINEAR),
        comparison.rises("They add better also where the images change as much as the base's", one, three, ADDITIVE),
        comparison.rises("More linear also where the images change as much as the base's", one, three, LINEAR),
    )
    notes = (
        *found.notes,
        "A model whose images move less is more linear for that reason alone; hence the isometric model is also turned so "
        "far that its images change as much as the base's.",
        "The paper's directions are age and gender; digits have neither, and these are the first two, whatever they change.",
    )
    return Finding((table,), (picture,), claims, notes)
