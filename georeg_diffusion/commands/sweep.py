"""``georeg-diffusion sweep``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from georeg_diffusion.commands.experiment_options import ExperimentOptions
from georeg_diffusion.options import option

_WHAT, _RUN = "What is tried", "Run"


@dataclass(frozen=True)
class SweepConfig(ExperimentOptions):
    """What geometry costs in FID: train over λ and its schedules, score each setting over seeds, draw the Pareto front.

    Without a GPU `georeg-diffusion sweep --quick` takes minutes, on scikit-learn's digits. With one, the same command runs
    on the real data: `sweep --dataset celebahq256 --data-dir IMAGES`.

    At the end it says whether a setting was found that improves the geometry at no cost in FID, as far as the seeds can
    tell. Models and scores are kept; to go on after an interruption, or with more values or seeds, run the command again.
    """

    lambda_iso: str = option(
        "0,1e-3,1e-2,1e-1", "Values of λ of the normalised loss; the base, λ = 0, is always among them.", panel=_WHAT
    )
    lambda_iso_schedule: str = option(
        "constant,linear-decay",
        "Courses of λ over the steps: some of constant, warmup, linear-decay, cosine-decay, early.",
        panel=_WHAT,
    )
    isometry_skip: str | None = option(None, "Values of p, such as 0.3,0.5. Default: the recipe's.", panel=_WHAT)
    fid_tolerance: float = option(
        0.05, "The largest relative rise of FID that counts as no cost.", panel=_WHAT, minimum=0, maximum=10
    )

    output_dir: Path = option(Path("outputs/sweep"), "Where tables and pictures are written.", panel=_RUN)
    models_dir: Path | None = option(
        None,
        "Where models and scores are kept; outputs/reproduce shares those of `reproduce`. Default: the output folder.",
        panel=_RUN,
    )


CONFIG = SweepConfig


def run(config: SweepConfig) -> None:
    """Train and score all settings, and show what they trade."""
    from georeg_diffusion.commands.experiment_options import lab_of, refuse_several_processes
    from georeg_diffusion.errors import RunError
    from georeg_diffusion.experiments.bench import claim, refuse_foreign, show
    from georeg_diffusion.experiments.recipe import recipe_of
    from georeg_diffusion.experiments.sweep import grid, measure
    from georeg_diffusion.experiments.sweep_report import write

    refuse_several_processes("sweep")
    settings = grid(config.lambda_iso, config.lambda_iso_schedule, config.isometry_skip)
    recipe = recipe_of(config.dataset, quick=config.quick, data_dir=config.data_dir, pretrained=config.pretrained)
    refuse_foreign(config.output_dir)
    if config.models_dir is None:
        lab = lab_of(config, recipe, config.output_dir)
    else:
        lab = lab_of(config, recipe, config.models_dir, "--models-dir")
    claim(config.output_dir)
    sweep = measure(lab, settings)
    finding = write(sweep, config.output_dir, tolerance=config.fid_tolerance)
    show(finding, config.output_dir, "Is there something for nothing?")
    if sweep.failures:
        raise RunError("; ".join(f"{name}: {failure}" for name, failure in sweep.failures.items()))
