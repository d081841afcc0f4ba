"""``georeg-diffusion inspect``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from georeg_diffusion.commands.options import ModelOptions, timesteps_of
from georeg_diffusion.options import option

if TYPE_CHECKING:
    from georeg_diffusion.bundle import Bundle
    from georeg_diffusion.commands.workspace import Workspace
    from georeg_diffusion.evaluation.inspection import Inspection
    from georeg_diffusion.evaluation.points import Points
    from georeg_diffusion.evaluation.setting import Setting

_WHAT, _RUN = "What is measured", "Run"


@dataclass(frozen=True)
class InspectConfig(ModelOptions):
    """The geometry of any frozen model at each timestep, with nothing trained.

    Of the map x_t to h: the normalised isometry loss with its standard error,
    conformality, effective rank, the largest singular values, and how near x_t
    is to a sphere. Writes inspection.json and inspection.png. To resume, run
    the same command again.

    The suggested p (--isometry-skip of train) is the smallest, in hundredths,
    such that for all t > pT the data adds at most --tolerance to ‖x_t‖²:
    (a²/s²) E‖x₀‖²/n ≤ tolerance, where x_t = a x₀ + s ε.
    """

    baseline: str | None = option(None, "A second model to draw beside it, given as MODEL is.", panel=_WHAT)
    reference: str | None = option(
        None,
        "Images whose x_t is taken: a folder, digits, generated (the model's own samples) or noise (noise alone, where t is "
        "near T). Default: what the model was trained on, else generated.",
        panel=_WHAT,
    )
    num_images: int = option(32, "Images, at every timestep.", panel=_WHAT, minimum=1)
    timesteps: str | None = option(
        None, "Where it is measured, such as 600,800. Default: 0.05 T, 0.15 T, …, 0.95 T.", panel=_WHAT
    )
    num_probes: int = option(4, "Random probes for each image and timestep.", panel=_WHAT, minimum=1)
    top: int = option(4, "How many of the largest singular values.", panel=_WHAT, minimum=1)
    spectrum_images: int = option(
        4, "Images at which those are taken; 0 leaves them out, and saves most of the time.", panel=_WHAT, minimum=0
    )
    tolerance: float = option(
        0.1, "Of the rule for p: the share of ‖x_t‖² that the data may add.", panel=_WHAT, minimum=1e-6, maximum=10
    )
    h_module: str | None = option(None, "The submodule whose output is h. Default: the family's own.", panel=_WHAT)

    num_inference_steps: int = option(20, "Denoising steps of generated images.", panel=_RUN, minimum=1)
    max_minutes: float | None = option(
        None, "Stop after so long and report what there is; the same command goes on.", panel=_RUN, minimum=0
    )


CONFIG = InspectConfig


def run(config: InspectConfig) -> None:
    """Measure, and write inspection.json and inspection.png."""
    import shutil
    import time
    from math import inf

    from georeg_diffusion.commands.workspace import UnfinishedError, names_of, workspace
    from georeg_diffusion.errors import RunError
    from georeg_diffusion.evaluation.runner import work_off
    from georeg_diffusion.files import write_json
    from georeg_diffusion.progress import console
    from georeg_diffusion.report.geometry import advice, geometry_picture, geometry_table

    deadline = inf if config.max_minutes is None else time.monotonic() + 60 * config.max_minutes
    with workspace(config, "inspect") as work:
        state = work.folder / "state"
        paths = [config.baseline, config.model] if config.baseline is not None else [config.model]
        names = names_of(paths)
        settings = {name: _setting(config, work, work.open(path)) for name, path in zip(names, paths, strict=True)}
        scores = {
            name: _inspection(config, setting, path) for (name, setting), path in zip(settings.items(), paths, strict=True)
        }
        if not work.resumed:
            shutil.rmtree(state, ignore_errors=True)
        outcomes = {}
        for i, (name, score) in enumerate(scores.items()):
            target = state / f"{i}-{settings[name].key[:16]}.safetensors"
            outcomes[name] = work_off(score, config.seed, f"Inspecting {name}", target, deadline=deadline)
            if (reason := outcomes[name].failure) is not None:
                raise RunError(f"{name}: {reason}")
        records: dict[str, Any] = {name: outcome.as_json() for name, outcome in outcomes.items()}
        write_json(work.path("inspection.json"), {"seed": config.seed, "models": records})
        drawn = {name: record["details"] for name, record in records.items() if record["details"]}
        if drawn:
            geometry_picture(drawn, work.path("inspection.png"), title=f"Geometry of {' and '.join(drawn)}")
        for name, record in records.items():
            if name in drawn:
                console.print(geometry_table(name, drawn[name]))
                console.print(advice(drawn[name], record["value"], record["ci"]), markup=False, highlight=False)
            console.print(record["protocol"], style="dim", markup=False, highlight=False)
        if not all(outcome.is_finished for outcome in outcomes.values()):
            text = f"Stopped after {config.max_minutes:g} minutes; results so far are in {work.folder}"
            console.print(f"{text}, and the same command goes on from here", highlight=False)
            raise UnfinishedError


def _setting(config: InspectConfig, work: Workspace, bundle: Bundle) -> Setting:
    from georeg_diffusion.errors import UsageError
    from georeg_diffusion.evaluation.setting import Setting
    from georeg_diffusion.h_space import HSpace

    try:
        HSpace(bundle.network, config.h_module)
    except ValueError as error:
        raise UsageError(f"--h-module: {str(error).removeprefix('at: ')}") from error
    return Setting(
        bundle=bundle,
        seed=config.seed,
        num_samples=config.num_images,
        num_inference_steps=config.num_inference_steps,
        batch_size=config.batch_size,
        device=work.device,
        timesteps=timesteps_of(config.timesteps),
        at=config.h_module,
        prompt=config.prompt,
        negative_prompt=config.negative_prompt,
        guidance_scale=config.guidance_scale,
        class_label=config.class_label,
    )


def _inspection(config: InspectConfig, setting: Setting, path: str) -> Inspection:
    from georeg_diffusion.evaluation.inspection import Inspection

    setting.denoiser([config.seed])  # a condition that the model cannot take is refused before any work
    return Inspection(
        setting,
        _points(config, setting, path),
        num_probes=config.num_probes,
        top=config.top,
        spectrum_images=config.spectrum_images,
        tolerance=config.tolerance,
    )


def _points(config: InspectConfig, setting: Setting, path: str) -> Points:
    """As --reference says; without it the training images, or where those cannot be had, samples of the model."""
    from dataclasses import replace

    from georeg_diffusion.errors import RunError
    from georeg_diffusion.evaluation.once import Once
    from georeg_diffusion.evaluation.points import generated_points, noise_points, real_points
    from georeg_diffusion.evaluation.real_images import real_images
    from georeg_diffusion.progress import console

    if config.reference == "noise":
        return noise_points(setting, config.num_images)
    if config.reference == "generated":
        return generated_points(setting, config.num_images)
    try:
        images = real_images(config.reference, path, setting.image_shape)
        return real_points(replace(setting, images=Once(lambda: images)), config.num_images)
    except RunError as error:
        if config.reference is not None:
            raise
        reason = str(error).split("; name real images")[0]
        console.print(f"{reason}: measured at x_t of images that the model generates", style="dim", highlight=False)
        return generated_points(setting, config.num_images)
