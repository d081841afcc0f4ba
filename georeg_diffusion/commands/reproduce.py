"""``georeg-diffusion reproduce``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from georeg_diffusion.commands.experiment_options import ExperimentOptions
from georeg_diffusion.experiments import available
from georeg_diffusion.options import argument, option

_WHAT, _RUN = "What is reproduced", "Run"


@dataclass(frozen=True)
class ReproduceConfig(ExperimentOptions):
    """Reproduce the paper's tables and figures: train what they need, score it over seeds, print the paper's numbers beside.

    `reproduce table1 --quick` trains on scikit-learn's digits and takes minutes on two cores. With a GPU the same command
    runs the paper's protocol: `reproduce table1 --dataset celebahq256 --data-dir IMAGES`.

    Each experiment writes tables (.md, .csv), pictures and finding.json into a folder of its name, with the paper's claims
    decided by 95% intervals over the seeds. Models and scores are kept and shared; to go on after an interruption, or to
    see a finished experiment again, run the same command.
    """

    names: tuple[str, ...] = argument(f"Any of {', '.join(available())}, or all.", metavar="NAME", many=True)

    lambda_iso: float | None = option(
        None, "λ of the normalised loss, above 0, in place of the recipe's.", panel=_WHAT, minimum=0
    )

    output_dir: Path = option(
        Path("outputs/reproduce"), "Where results, models and scores are kept; each experiment has a folder.", panel=_RUN
    )


CONFIG = ReproduceConfig


def run(config: ReproduceConfig) -> None:
    """Run the experiments, and show what they found."""
    from georeg_diffusion.commands.experiment_options import lab_of, refuse_several_processes
    from georeg_diffusion.errors import RunError, UsageError
    from georeg_diffusion.experiments import chosen, find
    from georeg_diffusion.experiments.bench import show, worked_off
    from georeg_diffusion.experiments.recipe import recipe_of
    from georeg_diffusion.progress import console

    refuse_several_processes("reproduce")
    modules = {name: find(name) for name in chosen(config.names)}
    recipe = recipe_of(
        config.dataset,
        quick=config.quick,
        data_dir=config.data_dir,
        pretrained=config.pretrained,
        lambda_iso=config.lambda_iso,
    )
    lab = lab_of(config, recipe, config.output_dir)
    failures = []
    for name, module in modules.items():
        console.rule(f"{name}: {module.TITLE}")
        try:
            finding = worked_off(lab, name, module)
        except (RunError, UsageError) as error:
            if len(modules) == 1:
                raise
            failures.append(f"{name}: {error}")
            console.print(f"{name} failed: {error}", style="red", markup=False, highlight=False)
            continue
        show(finding, lab.folder / name)
    if failures:
        raise RunError("; ".join(failures))
