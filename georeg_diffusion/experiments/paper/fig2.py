"""Figure 2: an autoencoder that flattens the sphere, with three losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.lab import Lab

TITLE = "The sphere S² flattened by an autoencoder with three losses"
SOURCE = "Figure 2, Sec. 3"
DATA = "none"

STEPS, QUICK_STEPS = 1500, 250


def run(lab: Lab) -> Finding:
    """Train with every loss and seed; draw the first seed, score all."""
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.sphere_pictures import latents
    from georeg_diffusion.experiments.sphere_region import Region
    from georeg_diffusion.experiments.sphere_scores import LOSSES, less, scores_of_maps, scores_of_trained, table_of
    from georeg_diffusion.experiments.sphere_trainings import train_all

    region, steps, points = Region(), *((QUICK_STEPS, 1024) if lab.quick else (STEPS, 4096))
    runs = train_all(
        {(metric, seed): {"metric": metric, "seed": seed, "region": region} for metric in LOSSES for seed in lab.seeds},
        steps=steps,
        folder=lab.folder / "cache" / "sphere",
    )
    scores = {m: [scores_of_trained(runs[m, seed], region, points=points) for seed in lab.seeds] for m in LOSSES}
    none, flat, sphere = scores["none"], scores["flat"], scores["sphere"]
    maps = {name: [found] for name, found in scores_of_maps(region, points=points).items()}
    picture = latents(
        {"": (region, {LOSSES[m]: (runs[m, lab.seeds[0]].encoder, scores[m]) for m in LOSSES})},
        lab.path("fig2.png"),
        seed=lab.seeds[0],
    )
    claims = (
        less("Reconstruction only (b) distorts the sphere more than the full loss (d)", sphere, none, "loss"),
        less("Without the loss, points far away are often located closely; with it (d) less so", sphere, none, "distances"),
        less("G = I (c) distorts less than reconstruction only (b)", flat, none, "loss"),
        less("The sphere's metric (d) preserves the geometry better than G = I (c)", sphere, flat, "loss"),
        less("G = I (c) does not preserve geodesics as well as the sphere's metric (d)", sphere, flat, "rtl"),
    )
    notes = (
        "The paper names neither network nor weight nor region. Ours: three hidden layers of 64, λ = 0.03, S² without the "
        f"cap within 60° of the chart's pole, {steps} steps of Adam.",
        "G = I has a perfect solution, stereographic projection: it keeps angles (condition number 1) and not sizes. How "
        "much reconstruction alone distorts depends on network and initialisation.",
        "Straight images of great circles (RTL near 1) and equal distances are two things: central projection maps all "
        "great circles to straight lines and is far from an isometry.",
    )
    rows = {**{LOSSES[m]: scores[m] for m in LOSSES}, **maps}
    return Finding((table_of(f"{SOURCE}: {TITLE}", rows),), (picture,), claims, notes)
