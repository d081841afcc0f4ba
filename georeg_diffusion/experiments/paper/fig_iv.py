"""Figure IV: the autoencoder of Fig. 2 on other parts of the sphere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.lab import Lab

TITLE = "Other parts of the sphere, flattened with three losses"
SOURCE = "Figure IV, App. B"
DATA = "none"

STEPS, QUICK_STEPS = 1500, 200


def run(lab: Lab) -> Finding:
    """As Fig. 2, on a hemisphere, on a cap beside the chart's centre and on most of the sphere."""
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.sphere_pictures import latents
    from georeg_diffusion.experiments.sphere_region import Region
    from georeg_diffusion.experiments.sphere_scores import LOSSES, less, scores_of_maps, scores_of_trained, table_of
    from georeg_diffusion.experiments.sphere_trainings import train_all

    steps, points = (QUICK_STEPS, 1024) if lab.quick else (STEPS, 4096)
    regions = {
        "Hemisphere": Region(90.0),
        "Cap on the equator": Region(60.0, (0.0, -1.0, 0.0)),
        "Most of S²": Region(135.0),
    }
    runs = train_all(
        {
            (name, metric, seed): {"metric": metric, "seed": seed, "region": region}
            for name, region in regions.items()
            for metric in LOSSES
            for seed in lab.seeds
        },
        steps=steps,
        folder=lab.folder / "cache" / "sphere",
    )
    rows, tables, claims = {}, [], []
    for name, region in regions.items():
        scores = {m: [scores_of_trained(runs[name, m, s], region, points=points) for s in lab.seeds] for m in LOSSES}
        rows[name] = (region, {LOSSES[m]: (runs[name, m, lab.seeds[0]].encoder, scores[m]) for m in LOSSES})
        maps = {key: [found] for key, found in scores_of_maps(region, points=points).items()}
        tables.append(table_of(f"{SOURCE}: {name}", {**{LOSSES[m]: scores[m] for m in LOSSES}, **maps}))
        for other in ("none", "flat"):
            letter = "b" if other == "none" else "c"
            text = f"{name}: the sphere's metric (d) preserves the geometry better than ({letter}) {LOSSES[other]}"
            claims.append(less(text, scores["sphere"], scores[other], "loss"))
        text = f"{name}: without the loss (b) points far away are often located closely, with it (d) less so"
        claims.append(less(text, scores["sphere"], scores["none"], "distances"))
        text = f"{name}: G = I (c) distorts less than reconstruction only (b)"
        claims.append(less(text, scores["flat"], scores["none"], "loss"))
    notes = (
        "The paper does not say how its illustrations differ; these are other parts of the sphere. Beside the chart's "
        "centre, its scale differs across the part, and G = I with it.",
        "The wider the part, the less there is of an isometry to find: on most of S² the loss's minimum squeezes the rim, "
        "and loss, condition number and spread no longer agree on what is best.",
    )
    picture = latents(rows, lab.path("fig_iv.png"), seed=lab.seeds[0])
    return Finding(tuple(tables), (picture,), tuple(claims), notes)
