"""Figure I: error of the stochastic trace estimator against its number of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from georeg import Estimate
    from georeg_diffusion.experiments.finding import Claim, Finding
    from georeg_diffusion.experiments.lab import Lab

TITLE = "Error of the stochastic trace estimator against the number of samples"
SOURCE = "Figure I, App. A.1"
DATA = "none"

DIMENSION = 256
NAMES = {"gaussian": "Gaussian (the paper's)", "sphere": "fixed norm (our default)", "rademacher": "Rademacher"}
MATRICES = {
    "general": "A ~ N(0, I), as in the paper",
    "near": "R = JᵀJ near a multiple of I, as at the optimum",
}
_STYLES = {"gaussian": ("#0072B2", "o"), "sphere": ("#D55E00", "s"), "rademacher": ("#009E73", "^")}


def run(lab: Lab) -> Finding:
    """Estimate traces of one matrix for each seed, with three kinds of probes."""
    import torch

    from georeg_diffusion.experiments.finding import Cell, Finding, Table
    from georeg_diffusion.experiments.replicates import over_seeds
    from georeg_diffusion.experiments.trace_error import PROBES, probe_variance, slope_of, trace_errors
    from georeg_diffusion.progress import progress

    numbers = [2**k for k in range(9 if lab.quick else 12)]
    repeats = 64
    errors: dict[tuple[str, str], list[Tensor]] = {}
    theory: dict[tuple[str, str], list[float]] = {}
    with progress("drawing probes", len(MATRICES) * len(PROBES) * len(lab.seeds)) as bar:
        for seed in lab.seeds:
            generator = torch.Generator().manual_seed(seed)
            for kind in MATRICES:
                a = matrix(kind, generator)
                for probe in PROBES:
                    found = trace_errors(a, numbers, repeats=repeats, probe=probe, generator=generator)
                    errors.setdefault((kind, probe), []).append(found)
                    theory.setdefault((kind, probe), []).append(probe_variance(a, probe) ** 0.5)
                    bar.advance()
    tables = []
    for kind, name in MATRICES.items():
        heads = [f"{label}, {NAMES[probe].split(' (')[0]}" for probe in PROBES for label in ("RMS error", "theory")]
        rows: list[tuple[Cell | str, ...]] = []
        for k, number in enumerate(numbers):
            cells: list[Cell] = []
            for probe in PROBES:
                root = [float(one[k].square().mean().sqrt()) for one in errors[kind, probe]]
                cells += [Cell.of(over_seeds(root)), Cell(sum(theory[kind, probe]) / len(root) / number**0.5)]
            rows.append((str(number), *cells))
        tables.append(Table(f"{SOURCE}: {name}", ("samples N", *heads), tuple(rows), _caption(repeats)))
    slopes = {  # of errors over that of one sample, so that all matrices' estimates are alike
        key: slope_of(numbers, torch.cat([one / s for one, s in zip(found, theory[key], strict=True)], dim=1))
        for key, found in errors.items()
    }
    tables.append(
        Table(
            "Slope of log(RMS error) against log N; theory says −1/2",
            ("probe", *MATRICES.values()),
            tuple((NAMES[p], *(Cell.of(slopes[kind, p], signed=True) for kind in MATRICES)) for p in PROBES),
            f"Least squares through {repeats * len(lab.seeds)} estimates of each N, ± jackknife standard error over them.",
        )
    )
    picture = _picture(numbers, errors, theory, lab.path("fig_i.png"))
    notes = (
        'App. A.1 says "increases"; its own figure and Eq. 8 say the inverse.',
        "For a general A the three kinds of probes have the same error, to 1/256. Near a multiple of the identity, where "
        "the isometry loss leads, fixed norm and Rademacher have much less; Rademacher's depends on the basis.",
    )
    return Finding(tuple(tables), (picture,), claims_of(slopes["general", "gaussian"]), notes)


def matrix(kind: str, generator: Generator) -> Tensor:
    """A of the paper, or JᵀJ with J = I + N(0, 1)/10√d, float64."""
    import torch

    a = torch.randn(DIMENSION, DIMENSION, generator=generator, dtype=torch.float64)
    if kind == "general":
        return a
    j = torch.eye(DIMENSION, dtype=a.dtype) + 0.1 * a / DIMENSION**0.5
    return j.mT @ j


def claims_of(slope: Estimate) -> tuple[Claim, ...]:
    """What a slope of log(error) against log N says of App. A.1 and of Eq. 8."""
    from georeg import Estimate
    from georeg_diffusion.experiments.finding import Claim
    from georeg_diffusion.experiments.replicates import is_below_zero

    falls = is_below_zero(slope)
    off = is_below_zero(Estimate(slope.value + 0.5, slope.stderr, slope.n), confidence=0.997)
    error = "" if slope.stderr is None else f" ± {slope.stderr:.2g}"
    said = f"slope in logarithms {slope.value:.3f}{error}, {slope.n} estimates of each N"
    return (
        Claim("The error of the estimator increases with the number of samples", None if falls is None else not falls, said),
        Claim("The estimate converges to the trace (Eq. 8): its error falls as 1/√N", bool(falls) and off is None, said),
    )


def _caption(repeats: int) -> str:
    return (
        f"{DIMENSION} × {DIMENSION}, root mean square of {repeats} estimates, mean ± standard error over matrices. "
        "Theory with S = (A + Aᵀ)/2: 2‖S‖² is the variance of one Gaussian sample, 2(‖S‖² − Σ Sᵢᵢ²) of a Rademacher one, "
        "2d/(d+2)·(‖S‖² − (Tr S)²/d) of one of fixed norm."
    )


def _picture(
    numbers: Sequence[int],
    errors: Mapping[tuple[str, str], Sequence[Tensor]],
    theory: Mapping[tuple[str, str], Sequence[float]],
    target: Path,
) -> Path:
    import numpy as np

    from georeg_diffusion.report.pictures import _figure, _save

    figure = _figure(figsize=(11.5, 4.7))
    axes = figure.subplots(1, 2)
    n = np.array(numbers)
    for ax, (kind, title) in zip(axes, MATRICES.items(), strict=True):
        single = errors[kind, "gaussian"][0].abs()[:, :12].numpy()
        each = n.repeat(single.shape[1])
        ax.plot(each, single.ravel(), ".", color="0.75", ms=6, zorder=1, label="single estimates, Gaussian")
        for shift, width, (probe, (colour, marker)) in zip((0.93, 1, 1.07), (4.5, 2.6, 1), _STYLES.items(), strict=True):
            ax.plot(n, theory[kind, probe][0] / np.sqrt(n), color=colour, lw=width, zorder=2, alpha=0.8)
            root = errors[kind, probe][0].square().mean(1).sqrt().numpy()
            ax.plot(n * shift, root, marker, color=colour, ms=6.5, mec="white", mew=0.7, zorder=3, label=NAMES[probe])
        top = max(values[0] for key, values in theory.items() if key[0] == kind)
        ax.set(xscale="log", yscale="log")
        low = min(values[0] for key, values in theory.items() if key[0] == kind) / n[-1] ** 0.5
        ax.set_ylim(low / 8, top * (30 if kind == "general" else 5))  # room for the legend
        ax.set_xlabel("number of samples N", fontsize=11)
        ax.set_title(title, fontsize=12.5)
        ax.grid(alpha=0.25)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    axes[0].set_ylabel("error of the trace", fontsize=11)
    axes[0].plot([], [], color="0.35", lw=1.6, label="theory: falls as 1/√N")
    axes[0].legend(frameon=False, fontsize=10.5, loc="upper right")
    figure.suptitle(f"Error of the estimated trace of a {DIMENSION} × {DIMENSION} matrix: root mean square", fontsize=13)
    _save(figure, target)
    return target
