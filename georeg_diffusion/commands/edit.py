"""``georeg-diffusion edit``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from georeg_diffusion.commands.options import ModelOptions
from georeg_diffusion.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from georeg_diffusion.bundle import Bundle
    from georeg_diffusion.commands.workspace import Workspace
    from georeg_diffusion.editing.directions import Directions
    from georeg_diffusion.editing.subjects import Subjects

_WHAT, _DIRECTIONS, _EDIT, _H = "What is edited", "Directions", "Edit", "Edits of h"


@dataclass(frozen=True)
class EditConfig(ModelOptions):
    """Move samples along directions of the latent space, found without labels or learned from them.

    Written: for each sample a grid of edited images (and the images), and the directions (directions.safetensors, for
    --directions). A direction in x turns a sample by γ times --step-angle along a great circle of the sphere; one in h is
    added to the bottleneck over an interval of timesteps.
    """

    sources: str | None = option(
        None,
        "Samples to edit, comma-separated: seeds, image files (inverted first), or saved latents. Default: --num-images "
        "seeds from --seed.",
        panel=_WHAT,
    )
    num_images: int = option(2, "How many seeds, without --sources.", panel=_WHAT, minimum=1)
    refine: int = option(5, "Fixed-point refinements of each step when an image is inverted.", panel=_WHAT, minimum=0)

    method: str = option(
        "local-basis",
        "local-basis: each sample's own; global: their mean over many; labels: of a classifier; shooting: Local Basis by "
        "geodesic shooting, beside the great circle; injection: the content of other samples.",
        panel=_DIRECTIONS,
        choices=("local-basis", "global", "labels", "shooting", "injection"),
    )
    directions: Path | None = option(None, "Saved directions (.safetensors), in place of --method.", panel=_DIRECTIONS)
    space: str | None = option(None, "Where directions live. Default: x.", panel=_DIRECTIONS, choices=("x", "h"))
    num_directions: int = option(3, "How many.", panel=_DIRECTIONS, minimum=1)
    num_samples: int | None = option(
        None, "Samples that global and labels learn from. Default: 16 and 500.", panel=_DIRECTIONS, minimum=2
    )
    labels: str | None = option(
        None, "Of the classifier, comma-separated. Default: its first --num-directions.", panel=_DIRECTIONS
    )
    classifier: str | None = option(
        None,
        "A folder of train-classifier, or digits: trained in place. Default for models of digits: that.",
        panel=_DIRECTIONS,
    )
    label_method: str = option(
        "svm",
        "Normal of a linear SVM, or difference of class means.",
        panel=_DIRECTIONS,
        choices=("svm", "means"),
    )
    timestep: float | None = option(
        None,
        "Where directions are found, and samples moved in x. Default: the first step, that of pure noise.",
        panel=_DIRECTIONS,
        minimum=0,
    )
    h_module: str | None = option(None, "The submodule whose output is h. Default: the family's own.", panel=_DIRECTIONS)

    gammas: str = option("-2,-1,0,1,2", "Strengths γ, comma-separated.", panel=_EDIT)
    step_angle: float = option(
        0.2, "Radians that γ = 1 turns a sample by; in h, the share of h's length.", panel=_EDIT, minimum=0
    )
    combine: str | None = option(None, "Two directions such as 1,2: a further grid of all pairs of strengths.", panel=_EDIT)
    shooting_steps: int = option(1, "Steps of shooting for γ = 1.", panel=_EDIT, minimum=1)
    shooting_rank: int = option(16, "Singular vectors that stand for a tangent space in shooting.", panel=_EDIT, minimum=1)

    contents: str | None = option(
        None, "Of injection: samples as in --sources. Default: the three seeds after those.", panel=_H
    )
    strength: float = option(1.5, "Of injection: h + strength · h′.", panel=_H)
    edit_from: float | None = option(None, "Highest timestep with an edited h. Default: the first.", panel=_H, minimum=0)
    edit_until: float | None = option(None, "Lowest timestep with an edited h. Default: T/2.", panel=_H, minimum=0)
    asymmetric: bool = option(True, "The edited h enters the predicted x₀ alone (Asyrp), not the noise.", panel=_H)


CONFIG = EditConfig


def run(config: EditConfig) -> None:
    """Find or load directions, edit, and write grids, images and numbers."""
    from georeg_diffusion.commands.workspace import workspace

    gammas = _gammas(config)
    with workspace(config, "edit") as work:
        bundle = work.open(config.model)
        subjects = _subjects(config, work, bundle, _sources(config), option="--sources")
        if config.method == "injection" and config.directions is None:
            _inject(config, work, bundle, subjects)
        else:
            _edit(config, work, bundle, subjects, gammas)


def _edit(config: EditConfig, work: Workspace, bundle: Bundle, subjects: Subjects, gammas: list[float]) -> None:
    """A grid for each sample: a row for each direction, a column for each γ; and one for two directions (Fig. V)."""
    import torch

    from georeg_diffusion.editing.apply import shoot_x
    from georeg_diffusion.editing.directions import save_directions
    from georeg_diffusion.files import write_json
    from georeg_diffusion.report import edits

    there = _moved(config, subjects)
    directions, notes = _directions(config, work, bundle, there)
    names, space, across = list(directions.info.names), directions.info.space, len(gammas)
    pair = _pair(config, len(directions))
    title = _title(config, subjects, there, directions)
    turned = f"γ: turns by γ · {config.step_angle:g} rad on the sphere"
    axis = turned if space == "x" else f"γ: adds γ · {config.step_angle:g} of ‖h‖"
    strengths = torch.tensor(gammas)
    plain = subjects.images("Sampling the unedited")
    weights = torch.einsum("g,kl->kgl", strengths, torch.eye(len(directions))).flatten(0, 1)
    images = _apply(config, subjects, there, directions, weights).unflatten(0, (-1, across))
    if config.method == "shooting" and config.directions is None:
        with _as_usage_error():
            options = {"steps_per_unit": config.shooting_steps, "rank": config.shooting_rank, "at": config.h_module}
            shot = shoot_x(there, directions.vectors, gammas, config.step_angle, seed=config.seed, **options)
        images = torch.stack([images, shot], dim=1).flatten(0, 1)
        names = [f"{name} {way}" for name in names for way in ("great circle", "shooting")]
        notes = [note for note in notes for _ in range(2)]
    if config.directions is None:
        save_directions(work.path("directions.safetensors"), directions)
    if pair is not None:
        both = torch.zeros(across, across, len(directions))
        both[:, :, pair[0]] += strengths[:, None]
        both[:, :, pair[1]] += strengths
        found = _apply(config, subjects, there, directions, both.flatten(0, 1)).unflatten(0, (across, across))
        two = (directions.info.names[pair[0]], directions.info.names[pair[1]])
        edits.write_pairs(work.path, found, samples=subjects.names, gammas=gammas, names=two, title=title)
    edits.write(
        work.path, images, samples=subjects.names, rows=names, notes=notes, columns=gammas, title=title, column_axis=axis
    )
    distances = torch.linalg.vector_norm((images - plain).flatten(3), dim=3)
    record = {
        "method": directions.info.method,
        "space": space,
        "timestep": there.timestep,
        "step_angle": config.step_angle,
        "gammas": gammas,
        "directions": names,
        "samples": [{"name": n, "distances": distances[:, :, i].tolist()} for i, n in enumerate(subjects.names)],
    }
    write_json(work.path("edits.json"), record)
    edits.print_table(names, notes, distances.mean(2), gammas, title=title)


def _inject(config: EditConfig, work: Workspace, bundle: Bundle, subjects: Subjects) -> None:
    """The samples down, contents along, both unedited in the margin (Fig. VI)."""
    import torch

    from georeg_diffusion.commands.workspace import names_of
    from georeg_diffusion.editing.apply import inject
    from georeg_diffusion.files import write_json
    from georeg_diffusion.progress import console
    from georeg_diffusion.report import edits

    last = max([int(text) for text in _sources(config) if text.isdigit()], default=config.seed - 1)
    texts = [str(last + 1 + i) for i in range(3)] if config.contents is None else _parts(config.contents, "--contents")
    contents = _subjects(config, work, bundle, texts, option="--contents")
    if contents.start != subjects.start:
        raise _usage("--contents: are at another noise level than the samples; invert both alike")
    low, high = interval = _interval(config, subjects)
    with _as_usage_error():
        (edited,) = inject(
            subjects, contents, [config.strength], interval=interval, asymmetric=config.asymmetric, at=config.h_module
        )
    plain = subjects.images("Sampling the unedited")
    edits.write_injection(
        work.path,
        plain,
        contents.images("Sampling the contents"),
        edited,
        samples=subjects.names,
        others=contents.names,
        title=f"{names_of([config.model])[0]}: h + {config.strength:g}·h′ for t from {high:g} to {low:g}",
    )
    distances = torch.linalg.vector_norm((edited - plain).flatten(2), dim=2)
    record = {
        "method": "injection",
        "strength": config.strength,
        "asymmetric": config.asymmetric,
        "edit_from": high,
        "edit_until": low,
        "contents": list(contents.names),
        "samples": [{"name": n, "distances": distances[:, i].tolist()} for i, n in enumerate(subjects.names)],
    }
    write_json(work.path("edits.json"), record)
    console.print(f"Distance from the unedited: {float(distances.mean()):.3g} on average (L2 of pixels)", highlight=False)


def _apply(config: EditConfig, subjects: Subjects, there: Subjects, directions: Directions, weights: Tensor) -> Tensor:
    """Images ``(S, B, C, H, W)`` at weights ``(S, k)`` of the directions, in their space."""
    from georeg_diffusion.editing.apply import edit_h, edit_x

    vectors = directions.vectors
    with _as_usage_error():
        if directions.info.space == "x":
            return edit_x(there, vectors, weights, config.step_angle)
        interval = _interval(config, subjects)
        options: dict[str, Any] = {"interval": interval, "asymmetric": config.asymmetric, "at": config.h_module}
        return edit_h(subjects, vectors, weights, config.step_angle, **options)


def _directions(config: EditConfig, work: Workspace, bundle: Bundle, there: Subjects) -> tuple[Directions, list[list[str]]]:
    """Found or loaded, with what is noted of each, for all samples or for each."""
    from georeg_diffusion.editing import find
    from georeg_diffusion.progress import console

    model, space = work.models[config.model]["sha256"], config.space or "x"
    if config.method == "shooting" and space == "h":
        raise _usage("--space: got h, but shooting walks in x; leave it out")
    with _as_usage_error():
        if config.directions is not None:
            directions = find.saved_directions(there, config.directions, config.space, at=config.h_module)
            if directions.info.model not in ("", model):
                console.print(f"{config.directions}: was made with another model", style="yellow", highlight=False)
            return directions, [[] for _ in range(len(directions))]
        if config.method == "global":
            others = _others(config, work, bundle, there, 16)
            directions, found = find.global_directions(
                others, config.num_directions, space, at=config.h_module, seed=config.seed, model=model
            )
            degrees = found.angles.rad2deg().mean()
            text = f"Mean angle of {len(others)} local subspaces to their mean: {float(degrees):.0f}° (90° is no agreement)"
            console.print(text, style="dim", highlight=False)
            notes = [[f"σ = {float(value):.3g}"] for value in found.values[0]]
        elif config.method == "labels":
            directions, notes = _learned(config, work, bundle, there, space, model)
        else:
            basis = find.local_bases(there, config.num_directions, at=config.h_module, seed=config.seed)
            if not bool(basis.converged.all()):
                console.print("Local Basis: some singular vectors have not converged", style="yellow")
            directions = find.local_directions(there, basis, space, model=model)
            notes = [[f"σ = {float(value):.3g}" for value in row] for row in basis.values.T]
    return directions, notes


def _learned(
    config: EditConfig, work: Workspace, bundle: Bundle, there: Subjects, space: str, model: str
) -> tuple[Directions, list[list[str]]]:
    """Directions towards the labels of a classifier."""
    from georeg_diffusion.editing.find import label_directions, labeller
    from georeg_diffusion.errors import RunError
    from georeg_diffusion.evaluation.tools import tools
    from georeg_diffusion.sampling.images import image_shape

    named = None if config.classifier in (None, "digits") else config.classifier
    reference = "digits" if config.classifier == "digits" else None
    try:
        found = tools(reference, config.model, image_shape(bundle), classifier=named, device=work.device)
        classifier = found["classifier"]()
    except RunError as error:
        if config.classifier is not None:
            raise
        raise RunError(
            "--method labels needs a classifier: train one by `georeg-diffusion train-classifier`, name it by --classifier"
        ) from error
    names = list(classifier.names[: config.num_directions])
    if config.labels is not None:
        names = _parts(config.labels, "--labels")
    others, labels_of = _others(config, work, bundle, there, 500), labeller(classifier, names, work.device)
    options: dict[str, Any] = {"method": config.label_method, "at": config.h_module, "model": model}
    directions, accuracies = label_directions(others, labels_of, names, space, **options)
    return directions, [[] if a is None else [f"held out {a:.0%}"] for a in accuracies]


def _others(config: EditConfig, work: Workspace, bundle: Bundle, there: Subjects, default: int) -> Subjects:
    """Fresh samples at the step of the edit, none of them among those that are edited."""
    used = {int(text) for text in _sources(config) if text.isdigit()}
    first = max(used, default=config.seed - 1) + 1
    seeds = [str(first + i) for i in range(config.num_samples or default)]
    return _subjects(config, work, bundle, seeds, option="--num-samples").until(there.start)


def _subjects(config: EditConfig, work: Workspace, bundle: Bundle, texts: list[str], *, option: str) -> Subjects:
    from georeg_diffusion.editing.sources import subjects_of
    from georeg_diffusion.progress import console

    subjects, models = subjects_of(
        bundle,
        texts,
        num_steps=config.num_inference_steps,
        option=option,
        seed=config.seed,
        refine=config.refine,
        batch_size=config.batch_size,
        prompt=config.prompt,
        negative_prompt=config.negative_prompt,
        guidance_scale=config.guidance_scale,
        class_label=config.class_label,
    )
    for name, model in zip(subjects.names, models, strict=True):
        if model not in (None, work.models[config.model]["sha256"]):
            console.print(f"{name}: was made with another model", style="yellow", highlight=False)
    return subjects


def _moved(config: EditConfig, subjects: Subjects) -> Subjects:
    """The samples at the step nearest to --timestep."""
    if config.timestep is None:
        return subjects
    try:
        return subjects.until(subjects.nearest_step(config.timestep))
    except ValueError as error:
        raise _usage(f"--timestep: {error}") from error


def _interval(config: EditConfig, subjects: Subjects) -> tuple[float, float]:
    """Lowest and highest timestep with an edited h."""
    try:
        return subjects.interval(config.edit_until, config.edit_from)
    except ValueError as error:
        raise _usage(f"--edit-from, --edit-until: {error}") from error


def _title(config: EditConfig, subjects: Subjects, there: Subjects, directions: Directions) -> str:
    from georeg_diffusion.commands.workspace import names_of

    where = f"at t = {there.timestep:g}"
    if directions.info.space == "h":
        low, high = _interval(config, subjects)
        where = f"in h, t from {high:g} to {low:g}"
    return f"{names_of([config.model])[0]}: {directions.info.method or 'saved directions'} {where}"


def _sources(config: EditConfig) -> list[str]:
    if config.sources is not None:
        return _parts(config.sources, "--sources")
    return [str(config.seed + i) for i in range(config.num_images)]


def _parts(text: str, option: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise _usage(f"{option}: got {text!r}, expected a list such as 3,7")
    return parts


def _gammas(config: EditConfig) -> list[float]:
    from math import isfinite

    try:
        numbers = [float(part) for part in _parts(config.gammas, "--gammas")]
    except ValueError as error:
        raise _usage(f"--gammas: got {config.gammas!r}, expected numbers such as -2,-1,0,1,2") from error
    if not all(map(isfinite, numbers)) or not isfinite(config.strength) or not isfinite(config.step_angle):
        raise _usage("--gammas, --strength, --step-angle: expected finite numbers")
    if len(set(numbers)) < len(numbers):
        raise _usage(f"--gammas: got {config.gammas!r}, expected each strength once")
    return numbers


def _pair(config: EditConfig, count: int) -> tuple[int, int] | None:
    """Two directions, counted from 0."""
    if config.combine is None:
        return None
    try:
        first, second = (int(part) - 1 for part in config.combine.split(","))
    except ValueError:
        first = second = -1
    if first == second or not all(0 <= i < count for i in (first, second)):
        raise _usage(f"--combine: got {config.combine!r}, expected two of the directions 1 to {count}, such as 1,2")
    return first, second


def _usage(message: str) -> Exception:
    from georeg_diffusion.errors import UsageError

    return UsageError(message)


@contextmanager
def _as_usage_error() -> Iterator[None]:
    """What the functions refuse is refused by the options' names."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:
        if type(error) is RuntimeError and not str(error).startswith("at:"):
            raise
        raise _usage(f"edit: {' '.join(str(error).split()).replace('at: ', '--h-module: ', 1)}") from error
