"""Figure II: latent coordinates learned with the stochastic trace estimator and with the exact trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.lab import Lab

TITLE = "The sphere flattened with the trace estimated from one probe, and with the exact trace"
SOURCE = "Figure II, App. A.1"
DATA = "none"

STEPS, QUICK_STEPS = 1500, 250

NAMES = {
    "gaussian": "One Gaussian probe",
    "exact": "Exact trace",
    "fixed-norm": "One fixed-norm probe",
    "none": "Reconstruction only",
}


def run(lab: Lab) -> Finding:
    """Train with every estimator and seed from equal starts, and compare the latents after alignment."""
    import torch

    from georeg_diffusion.experiments.finding import Cell, Finding, Table
    from georeg_diffusion.experiments.replicates import over_seeds
    from georeg_diffusion.experiments.sphere_autoencoder import disagreement
    from georeg_diffusion.experiments.sphere_pictures import latents
    from georeg_diffusion.experiments.sphere_region import Region
    from georeg_diffusion.experiments.sphere_scores import alike, less, scores_of_trained, table_of
    from georeg_diffusion.experiments.sphere_trainings import train_all

    region, (steps, points) = Region(), (QUICK_STEPS, 1024) if lab.quick else (STEPS, 4096)
    trainings = {
        (name, seed): {
            "metric": "none" if name == "none" else "sphere",
            "seed": seed,
            "probe_seed": seed,
            "estimator": "exact" if name == "none" else name,
            "region": region,
        }
        for name in NAMES
        for seed in lab.seeds
    }
    runs = train_all(trainings, steps=steps, folder=lab.folder / "cache" / "sphere")
    x = region.sample(points, torch.Generator().manual_seed(0))
    scores: dict[str, list[dict[str, float]]] = {}
    for name in NAMES:
        scores[name] = []
        for seed in lab.seeds:
            apart = disagreement(runs[name, seed].encoder, runs["exact", seed].encoder, x)
            scores[name].append({**scores_of_trained(runs[name, seed], region, points=points), "apart": apart})
    apart_rows = [(NAMES[n], Cell.of(over_seeds([one["apart"] for one in scores[n]]))) for n in NAMES if n != "exact"]
    tables = (
        table_of(f"{SOURCE}: {TITLE}", {NAMES[name]: scores[name] for name in NAMES}),
        Table(
            "How far latents are from those of the exact trace with the same seed",
            ("trained with", "distance"),
            tuple(apart_rows),
            "Root mean square after the best similarity, over the root mean square radius of the latents.",
        ),
    )
    losses = {name: [one["loss"] for one in scores[name]] for name in NAMES}
    claims = [
        alike(
            f"{NAMES[name]} yields a similar result as the exact trace",
            [(e - t) / (n - t) for e, t, n in zip(losses[name], losses["exact"], losses["none"], strict=True)],
        )
        for name in ("gaussian", "fixed-norm")
    ]
    text = "One Gaussian probe: the latents are nearer to those of the exact trace than reconstruction alone"
    claims.append(less(text, scores["gaussian"], scores["none"], "apart", called="distance"))
    drawn = {NAMES[n]: (runs[n, lab.seeds[0]].encoder, scores[n]) for n in ("gaussian", "exact", "fixed-norm")}
    picture = latents({"": (region, drawn)}, lab.path("fig_ii.png"), seed=lab.seeds[0])
    notes = (
        "The paper's probes are Gaussian; ours have fixed norm by default, without variance where the map is an isometry. "
        "Weights and points of the training are equal within a seed.",
    )
    return Finding(tables, (picture,), tuple(claims), notes)
