"""Figure III: the toy's loss during training, with the exact trace and with the estimator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.lab import Lab
    from georeg_diffusion.experiments.sphere_autoencoder import Trained

TITLE = "The toy's losses during training: exact trace, and five repeats of the estimator"
SOURCE = "Figure III, App. A.1"
DATA = "none"

REPEATS = 5
STEPS, QUICK_STEPS = 1500, 150
NAMES = {"gaussian": "one Gaussian probe", "fixed-norm": "one fixed-norm probe"}
COLOURS = {"gaussian": "#D55E00", "fixed-norm": "#009E73", "exact": "#0072B2"}


def run(lab: Lab) -> Finding:
    """Train with every seed, once with the exact trace and five times with each kind of probe."""
    from georeg_diffusion.experiments.finding import Cell, Finding, Table
    from georeg_diffusion.experiments.replicates import over_seeds
    from georeg_diffusion.experiments.sphere_scores import alike
    from georeg_diffusion.experiments.sphere_trainings import train_all

    repeats = {"exact": 1, "none": 1, **dict.fromkeys(NAMES, REPEATS)}
    trainings = {
        (kind, seed, repeat): {
            "metric": "none" if kind == "none" else "sphere",
            "seed": seed,
            "probe_seed": 100 * seed + repeat,
            "estimator": "exact" if kind == "none" else kind,
        }
        for kind in repeats
        for seed in lab.seeds
        for repeat in range(repeats[kind])
    }
    steps = QUICK_STEPS if lab.quick else STEPS
    runs = train_all(trainings, steps=steps, folder=lab.folder / "cache" / "sphere")

    def last(kind: str, seed: int, column: int) -> list[float]:
        return [runs[kind, seed, r].curve[-1][column] for r in range(repeats[kind])]

    def mean(kind: str, seed: int, column: int) -> float:
        values = last(kind, seed, column)
        return sum(values) / len(values)

    rows, claims = [], []
    for kind, name in {"exact": "exact trace", **NAMES, "none": "no isometry loss"}.items():
        ends = [over_seeds([mean(kind, seed, column) for seed in lab.seeds]) for column in (2, 1)]
        spread = over_seeds([stdev(last(kind, seed, 2)) for seed in lab.seeds]) if kind in NAMES else None
        rows.append((name, Cell.of(ends[0]), Cell.of(spread), Cell.of(ends[1])))
        if kind in NAMES:
            shares = [
                (mean(kind, s, 2) - mean("exact", s, 2)) / (mean("none", s, 2) - mean("exact", s, 2)) for s in lab.seeds
            ]
            claims.append(alike(f"With {name} the loss converges as with the exact trace", shares))
    table = Table(
        f"{SOURCE}: at the end of training",
        ("", "isometry loss", "between repeats", "error"),
        tuple(rows),
        "At held-out points, exact, whatever was trained with. Between repeats: standard deviation over five sequences of "
        "probes, all else equal. Mean ± standard error over seeds.",
    )
    first = {key: one for key, one in runs.items() if key[1] == lab.seeds[0]}
    picture = _picture({(kind, repeat): one for (kind, _, repeat), one in first.items()}, lab.path("fig_iii.png"))
    notes = ("The curves are the loss itself at held-out points, not the noisy estimates that training sees.",)
    return Finding((table,), (picture,), tuple(claims), notes)


def _picture(runs: Mapping[tuple[str, int], Trained], target: Path) -> Path:
    from georeg_diffusion.report.pictures import _figure, _save

    figure = _figure(figsize=(11, 4.2))
    axes = figure.subplots(1, 2)
    for ax, column, label in zip(axes, (2, 1), ("normalised isometry loss", "reconstruction error E‖x̂ − x‖²"), strict=True):
        for (kind, repeat), one in runs.items():
            if kind == "none":
                continue
            steps, values = [point[0] for point in one.curve], [point[column] for point in one.curve]
            name = "exact trace" if kind == "exact" else f"{NAMES[kind]}, five repeats"
            style = {"lw": 2.4, "ls": (0, (4, 2)), "zorder": 3} if kind == "exact" else {"lw": 1.0, "alpha": 0.9}
            ax.plot(steps, values, color=COLOURS[kind], label=name if repeat == 0 else None, **style)
        ax.set_xlabel("step of training", fontsize=11)
        ax.set_title(label, fontsize=13)
        ax.grid(alpha=0.25)
        ax.tick_params(labelsize=10)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    axes[1].set_yscale("log")
    axes[0].legend(frameon=False, fontsize=11)
    _save(figure, target)
    return target
