"""``georeg-diffusion evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from georeg_diffusion.commands.options import ModelOptions, timesteps_of
from georeg_diffusion.options import option

if TYPE_CHECKING:
    from georeg_diffusion.commands.workspace import Workspace
    from georeg_diffusion.evaluation.runner import Outcome
    from georeg_diffusion.evaluation.score import Score
    from georeg_diffusion.evaluation.setting import Setting
    from georeg_diffusion.report.strips import Strips

_WHAT, _MEASURE, _RUN = "What is measured", "What measures", "Run"


@dataclass(frozen=True)
class EvaluateConfig(ModelOptions):
    """Score a model, beside a baseline if you name one: FID, KID, PPL, mRTL, MCN, VoR and more, each with its protocol.

    Writes metrics.json and report.html. To resume, run the same command again.
    """

    baseline: str | None = option(None, "A second model to compare with, given as MODEL is.", panel=_WHAT)
    scores: str | None = option(None, "Scores to measure, such as fid,ppl. Default: all that can be had.", panel=_WHAT)
    protocol: str = option(
        "default",
        "paper takes the paper's sizes: FID 10,000 images, PPL 50,000 at 100 steps with AlexNet, MCN and VoR 1,000.",
        panel=_WHAT,
        choices=("default", "paper"),
    )
    num_samples: int | None = option(
        None, "Samples of every score: images, pairs, latents. Default: each score's own.", panel=_WHAT, minimum=1
    )
    reference: str | None = option(
        None, "Real images: a folder, digits, or statistics as .npz. Default: what the model was trained on.", panel=_WHAT
    )
    timesteps: str | None = option(
        None, "Where geometry is measured, such as 600,800. Default: 0.55 T, 0.65 T, …, 0.95 T.", panel=_WHAT
    )
    compat: str | None = option(
        None, "Measure MCN and VoR as the published code does (pure noise, pooled h).", panel=_WHAT, choices=("isodiff",)
    )
    h_module: str | None = option(None, "The submodule whose output is h. Default: the family's own.", panel=_WHAT)

    features: str | None = option(
        None,
        "Of FID and KID: inception, a network of torchvision, a folder of train-classifier, or digits. Default: inception, "
        "for digits a classifier trained in place.",
        panel=_MEASURE,
    )
    inception_weights: Path | None = option(None, "File of Inception's weights. Default: torch's hub cache.", panel=_MEASURE)
    lpips_backbone: str | None = option(
        None,
        "Of PPL and inversion: LPIPS with alex, vgg or squeeze, or features. Default: alex, but for digits without "
        "--protocol paper features.",
        panel=_MEASURE,
        choices=("alex", "vgg", "squeeze", "features"),
    )
    lpips_backbone_weights: Path | None = option(
        None, "File of that backbone's weights. Default: torch's hub cache.", panel=_MEASURE
    )
    classifier: str | None = option(
        None, "Of linear separability: a folder of train-classifier. Default for digits: trained in place.", panel=_MEASURE
    )
    ppl_protocol: str | None = option(
        None,
        "stylegan2 divides by ε², paper by ε. Default: paper with --protocol paper, else stylegan2.",
        panel=_MEASURE,
        choices=("stylegan2", "paper"),
    )
    ppl_sampling: str = option("full", "Of PPL's slerps: all of them, or the ends.", panel=_MEASURE, choices=("full", "end"))

    ls_split: str | None = option(
        None,
        "Of linear separability: held-out predicts latents by SVMs that have not seen them, in-sample (the paper) by those "
        "that have. Default: held-out, with --protocol paper in-sample.",
        panel=_MEASURE,
        choices=("held-out", "in-sample"),
    )
    ls_entropy: str = option(
        "nats", "Of linear separability: nats (paper) or bits (StyleGAN).", panel=_MEASURE, choices=("nats", "bits")
    )

    num_inference_steps: int | None = option(  # type: ignore[assignment]
        None, "Denoising steps of every score. Default: 20 (PPL with --protocol paper: 100).", panel=_RUN, minimum=1
    )
    max_minutes: float | None = option(
        None, "Stop after so long and report what there is; the same command goes on.", panel=_RUN, minimum=0
    )


CONFIG = EvaluateConfig


def run(config: EvaluateConfig) -> None:
    """Score the models, and write metrics.json and report.html."""
    import shutil
    import time
    from math import inf

    from georeg_diffusion.commands.workspace import UnfinishedError, workspace
    from georeg_diffusion.errors import RunError
    from georeg_diffusion.evaluation.catalogue import chosen
    from georeg_diffusion.evaluation.runner import evaluate
    from georeg_diffusion.progress import console

    deadline = inf if config.max_minutes is None else time.monotonic() + 60 * config.max_minutes
    scores = chosen(config.scores)
    failure = None
    with workspace(config, "evaluate") as work:
        state = work.folder / "state"
        if not work.resumed:
            shutil.rmtree(state, ignore_errors=True)
        settings = _settings(config, work, deadline)
        metrics: dict[str, Any] = {"models": {name: {} for name in settings}, **_notes(config, work)}

        def keep(model: str, score: str, outcome: Outcome) -> None:
            from georeg_diffusion.files import write_json

            metrics["models"][model][score] = outcome.as_json()
            write_json(work.path("metrics.json"), metrics)

        try:
            found = evaluate(settings, scores, state=state, deadline=deadline, on_outcome=keep)
        except KeyboardInterrupt:
            console.print("Interrupted; the same command goes on from here")
            raise
        _show(config, work, settings, metrics, scores, deadline)
        outcomes = [outcome for model in found.values() for outcome in model.values()]
        failed = {
            f"{name}: {outcome.failure}" for model in found.values() for name, outcome in model.items() if outcome.failure
        }
        if config.scores is not None and failed:
            failure = "; ".join(sorted(failed))
            raise UnfinishedError
        if any(outcome.failure is None and not outcome.is_finished for outcome in outcomes):
            text = f"Stopped after {config.max_minutes:g} minutes; results so far are in {work.folder}"
            console.print(f"{text}, and the same command goes on from here", highlight=False)
            raise UnfinishedError
    if failure is not None:
        raise RunError(failure)


def _settings(config: EvaluateConfig, work: Workspace, deadline: float) -> dict[str, Setting]:
    """The baseline first, then the model, by the names of their folders."""
    from georeg_diffusion.errors import RunError
    from georeg_diffusion.evaluation.setting import Setting
    from georeg_diffusion.evaluation.tools import tools

    paths = {Path(config.model).resolve().name: config.model}
    if config.baseline is not None:
        name = Path(config.baseline).resolve().name
        both = {name: config.baseline, **paths}
        paths = both if len(both) == 2 else {"base": config.baseline, "isometric": config.model}
    bundles = {name: work.open(path).to(work.device, work.dtype) for name, path in paths.items()}
    shapes = {name: Setting(bundle=bundle, device=work.device).image_shape for name, bundle in bundles.items()}
    if len(set(shapes.values())) > 1:
        sizes = ", ".join(f"{name} {' × '.join(map(str, shape))}" for name, shape in shapes.items())
        raise RunError(f"--baseline: the models make images of different sizes ({sizes}), which do not compare")
    shared = tools(
        config.reference,
        config.model,
        next(iter(shapes.values())),
        features=config.features,
        inception_weights=config.inception_weights,
        lpips_backbone=config.lpips_backbone or ("alex" if config.protocol == "paper" else None),
        lpips_weights=config.lpips_backbone_weights,
        classifier=config.classifier,
        batch_size=config.batch_size,
        device=work.device,
        cache=work.folder / "cache",
        deadline=deadline,
    )
    ppl = config.ppl_protocol or ("paper" if config.protocol == "paper" else "stylegan2")
    return {
        name: Setting(
            bundle=bundle,
            **shared,
            protocol=config.protocol,
            seed=config.seed,
            num_samples=config.num_samples,
            num_inference_steps=config.num_inference_steps,
            batch_size=config.batch_size,
            device=work.device,
            timesteps=timesteps_of(config.timesteps),
            compat=config.compat,
            at=config.h_module,
            prompt=config.prompt,
            negative_prompt=config.negative_prompt,
            guidance_scale=config.guidance_scale,
            class_label=config.class_label,
            options={
                "ppl": ppl,
                "ppl_sampling": config.ppl_sampling,
                "ls_entropy": config.ls_entropy,
                **({} if config.ls_split is None else {"ls_split": config.ls_split}),
            },
            cache=work.folder / "cache",
        )
        for name, bundle in bundles.items()
    }


def _notes(config: EvaluateConfig, work: Workspace) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "protocol": config.protocol,
        "seed": config.seed,
        "dtype": config.dtype,
        "paths": [model["path"] for model in work.models.values()],
        "versions": {name: version(name) for name in ("georeg", "torch", "diffusers")},
    }


def _show(
    config: EvaluateConfig,
    work: Workspace,
    settings: dict[str, Setting],
    metrics: dict[str, Any],
    scores: dict[str, type[Score]],
    deadline: float,
) -> None:
    """The table on the terminal, and the page."""
    from georeg_diffusion.files import replacing
    from georeg_diffusion.progress import console
    from georeg_diffusion.report.page import page
    from georeg_diffusion.report.table import cautions, comparison, measures

    rows = [(name, score.label, score.lower_is_better) for name, score in scores.items()]
    title = f"Scores ({config.protocol} protocol, seed {config.seed}, ± half a 95 % interval)"
    console.print(comparison(metrics["models"], title, rows))
    for measure, names in measures(metrics["models"]).items():
        console.print(f"{', '.join(names)}: by {measure}", style="dim", markup=False, highlight=False)
    for name, caution in cautions(metrics["models"]).items():
        console.print(f"{name}: {caution}", style="dim", markup=False, highlight=False)
    images, notes = _images(settings, deadline)
    abouts = {name: score.__doc__ or "" for name, score in scores.items()}
    with replacing(work.path("report.html")) as scratch:
        scratch.write_text(page(metrics, rows, abouts=abouts, images=images, notes=notes), encoding="utf-8")


def _images(settings: dict[str, Setting], deadline: float) -> tuple[dict[str, Strips], list[str]]:
    """Pictures of each model, and why some are missing."""
    import torch

    from georeg_diffusion.errors import RunError
    from georeg_diffusion.report.strips import strips

    images, notes = {}, []
    for name, setting in settings.items():
        try:
            found = strips(setting, f"{name}: pictures" if len(settings) > 1 else "pictures", deadline=deadline)
        except (RunError, torch.OutOfMemoryError) as error:
            notes.append(f"No pictures of {name}: {' '.join(str(error).split())}")
            continue
        if found is None:
            notes.append(f"No pictures of {name} yet: out of time; the same command goes on from here.")
        else:
            images[name] = found
    return images, notes
