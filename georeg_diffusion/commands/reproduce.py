"""``georeg-diffusion reproduce``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from georeg_diffusion.experiments import available
from georeg_diffusion.experiments.recipe import DATASETS
from georeg_diffusion.options import argument, option

_WHAT, _DATA, _MEASURE, _RUN = "What is reproduced", "Data and model", "What measures", "Run"


@dataclass(frozen=True)
class ReproduceConfig:
    """Reproduce the paper's tables and figures: train what they need, score it over seeds, print the paper's numbers beside.

    Without a GPU `georeg-diffusion reproduce table1 --quick` takes minutes, on scikit-learn's digits. With one, the same
    command runs the paper's protocol on the real data: `reproduce table1 --dataset celebahq256 --data-dir IMAGES`.

    Models and scores are kept and shared between experiments; to go on after an interruption, run the same command again.
    """

    names: tuple[str, ...] = argument(f"Any of {', '.join(available())}, or all.", metavar="NAME", many=True)

    quick: bool = option(False, "A first look: shorter trainings and smaller scores.", panel=_WHAT)
    seeds: int = option(3, "How many seeds: replicates, from which the standard errors come.", panel=_WHAT, minimum=1)
    seed: int = option(0, "The first of them.", panel=_WHAT, minimum=0, maximum=2**31)
    lambda_iso: float | None = option(None, "λ of the normalised loss, in place of the recipe's.", panel=_WHAT, minimum=0)

    dataset: str = option("digits", "The data; all but digits take the paper's settings.", panel=_DATA, choices=DATASETS)
    data_dir: Path | None = option(
        None, "Folder of the real images. Default: the data set of that name on Hugging Face's hub.", panel=_DATA
    )
    pretrained: str | None = option(
        None,
        "Model to continue: a diffusers folder or hub id. Default: the paper's on the hub; for digits one is trained.",
        panel=_DATA,
    )

    features: str | None = option(
        None,
        "Of FID: inception, a network of torchvision, or a folder of train-classifier. Default: inception; for digits a "
        "classifier trained in place.",
        panel=_MEASURE,
    )
    inception_weights: Path | None = option(None, "File of Inception's weights. Default: torch's hub cache.", panel=_MEASURE)
    lpips_backbone: str | None = option(
        None,
        "Of PPL: LPIPS with alex, vgg or squeeze, or features. Default: alex; for digits features.",
        panel=_MEASURE,
        choices=("alex", "vgg", "squeeze", "features"),
    )
    lpips_backbone_weights: Path | None = option(
        None, "File of that backbone's weights. Default: torch's hub cache.", panel=_MEASURE
    )
    classifier: str | None = option(
        None, "Of linear separability: a folder of train-classifier. Default for digits: trained in place.", panel=_MEASURE
    )

    output_dir: Path = option(
        Path("outputs/reproduce"), "Where results, models and scores are kept; each experiment has a folder.", panel=_RUN
    )
    device: str | None = option(None, "Device, such as cpu, cuda or cuda:1. Default: a GPU where there is one.", panel=_RUN)


CONFIG = ReproduceConfig


def run(config: ReproduceConfig) -> None:
    """Run the experiments, and show what they found."""
    from georeg_diffusion.commands.workspace import device_of
    from georeg_diffusion.errors import RunError, UsageError
    from georeg_diffusion.experiments import chosen, find
    from georeg_diffusion.experiments.bench import claim, show, worked_off
    from georeg_diffusion.experiments.lab import Lab
    from georeg_diffusion.experiments.recipe import recipe_of
    from georeg_diffusion.progress import console

    modules = {name: find(name) for name in chosen(config.names)}
    recipe = recipe_of(
        config.dataset,
        quick=config.quick,
        data_dir=config.data_dir,
        pretrained=config.pretrained,
        lambda_iso=config.lambda_iso,
    )
    device = device_of(config.device)
    claim(config.output_dir)
    lab = Lab(
        recipe=recipe,
        seeds=tuple(range(config.seed, config.seed + config.seeds)),
        folder=config.output_dir,
        quick=config.quick,
        device=device,
        measures=_measures(config),
    )
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


def _measures(config: ReproduceConfig) -> dict[str, Any]:
    given = {
        "features": config.features,
        "inception_weights": config.inception_weights,
        "lpips_backbone": config.lpips_backbone,
        "lpips_weights": config.lpips_backbone_weights,
        "classifier": config.classifier,
    }
    return {key: value for key, value in given.items() if value is not None}
