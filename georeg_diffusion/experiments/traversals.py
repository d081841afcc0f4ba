"""Paths between two latents, and how smooth the images along them are (Figures 1, 6, VII and VIII)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from georeg_diffusion.editing.subjects import Subjects
from georeg_diffusion.evaluation.setting import Setting
from georeg_diffusion.experiments.comparison import Replicated, falls, setting_of
from georeg_diffusion.experiments.finding import Claim, Table
from georeg_diffusion.experiments.lab import Lab
from georeg_diffusion.experiments.measured import absent, available, gathered, labels_of, mean_of, table_of
from georeg_diffusion.sampling.ddim import ddim_steps
from georeg_diffusion.sampling.images import require_finite
from georeg_diffusion.sampling.interpolation import adjacent_distances, interpolate

FRAMES = 11
"""Images of each path, both ends included, as about as many as the paper shows."""

LARGEST, LARGEST_SEEN = "largest step, pixels", "largest step, perceptual"
LENGTH, LENGTH_SEEN = "length of the path, pixels", "length of the path, perceptual"
RATIO, RATIO_SEEN = "length / chord, pixels", "length / chord, perceptual"
ABRUPT = "largest step / mean step, perceptual"
STRAY, CONFIDENCE = "frames of a class that neither end has", "classifier's confidence in frames"

MEASURES: dict[str, bool | None] = {
    **dict.fromkeys((LARGEST, LARGEST_SEEN, LENGTH, LENGTH_SEEN, RATIO, RATIO_SEEN, ABRUPT, STRAY), True),
    CONFIDENCE: False,
}
"""What is measured, and whether lower is better."""


@dataclass(frozen=True)
class Walk:
    """A way to walk.

    Attributes:
        changes: that make the model, over the recipe's.
        path: ``"slerp"`` or ``"lerp"``.
    """

    changes: Mapping[str, Any]
    path: str = "slerp"


@dataclass(frozen=True)
class Walked:
    """What was walked.

    Attributes:
        scores: by walk, numbers of :data:`MEASURES` for each seed.
        frames: by walk, images ``(S, P, C, H, W)`` of the first seed's P pairs.
        steps: by walk, perceptual distances ``(S − 1, P)`` of adjacent frames of the first seed; L2 of pixels without
            anything that measures perceptually.
        unit: of those distances.
        num_steps: of DDIM.
        notes: about the ends, and about what is not measured.
    """

    scores: Mapping[str, Replicated]
    frames: Mapping[str, Tensor]
    steps: Mapping[str, Tensor]
    unit: str
    num_steps: int
    notes: tuple[str, ...] = ()


Ends = Callable[[Mapping[str, Setting], int], tuple[Mapping[str, Tensor], str]]
"""(settings by walk, P) ↦ latents ``(2, P, C, H, W)`` by walk, and a note about them."""


def walk_all(lab: Lab, walks: Mapping[str, Walk], ends_of: Ends) -> Walked:
    """Walk between the same ends in every way, with every seed, and measure the frames."""
    scores: dict[str, list[dict[str, float | None]]] = {name: [] for name in walks}
    shown: dict[str, Tensor] = {}
    notes: list[str] = []
    setting: Setting | None = None
    for seed in lab.seeds:
        settings = {
            name: lab.setting(lab.model(seed, **walk.changes), seed, "interpolation") for name, walk in walks.items()
        }
        setting = next(iter(settings.values()))
        with torch.no_grad():
            ends, note = ends_of(settings, setting.num_samples or (8 if lab.quick else 32))
            for name, walk in walks.items():
                frames = walked(settings[name], ends[name], path=walk.path)
                scores[name].append(smoothness(settings[name], frames))
                if seed == lab.seeds[0]:
                    shown[name] = frames
        notes += [f"seed {seed}: {note}"] if note else []
    assert setting is not None  # a lab has seeds
    steps = {name: _perceptual(setting, frames) for name, frames in shown.items()}
    unit = "perceptual"
    if any(one is None for one in steps.values()):
        steps, unit = {name: adjacent_distances(frames) for name, frames in shown.items()}, "L2 of pixels in [−1, 1]"
    found = {name: gathered(one) for name, one in scores.items()}
    kept = {name: one for name, one in steps.items() if one is not None}
    notes += absent(perceptual_distance=setting.distance, classifier=setting.classifier)
    return Walked(found, shown, kept, unit, setting.steps(20, 100), tuple(notes))


def noises(settings: Mapping[str, Setting], count: int) -> tuple[dict[str, Tensor], str]:
    """Ends that are independent noise, the same for all models."""
    setting = next(iter(settings.values()))
    x = setting.noise(range(setting.seed, setting.seed + 2 * count)).unflatten(0, (count, 2)).transpose(0, 1)
    return dict.fromkeys(settings, x), ""


def walked(setting: Setting, ends: Tensor, *, path: str = "slerp", frames: int = FRAMES) -> Tensor:
    """Images ``(S, P, C, H, W)`` of S points between latents ``(2, P, ...)``, on the CPU; a class stays along a path."""
    points = interpolate(ends[0], ends[1], frames, path=path)
    count = ends.shape[1]
    seeds = [setting.seed + i for i in range(count)] * frames
    steps = ddim_steps(setting.bundle.scheduler, setting.steps(20, 100))
    many = Subjects(setting.denoiser(seeds), steps, points.flatten(0, 1), batch_size=setting.batch_size)
    names = [f"frame {i} of pair {k}" for i in range(frames) for k in range(count)]
    return require_finite(many.images(f"Walking along {path}s"), names).unflatten(0, (frames, count))


@torch.no_grad()
def smoothness(setting: Setting, frames: Tensor) -> dict[str, float | None]:
    """:data:`MEASURES` of images ``(S, P, C, H, W)``, means over pairs.

    Perceptual is √d of the setting's perceptual distance, which is a squared one; a class counts as neither end's where
    the classifier sees in an inner frame what it sees in neither end.
    """
    found: dict[str, float | None] = dict.fromkeys(MEASURES)
    pixels = adjacent_distances(frames)
    found |= {LARGEST: mean_of(pixels.amax(0)), LENGTH: mean_of(pixels.sum(0))}
    found[RATIO] = _ratio(pixels, torch.linalg.vector_norm((frames[-1] - frames[0]).flatten(1), dim=1))
    squared = _perceptual(setting, frames)
    if squared is not None:
        seen = squared.clamp_min(0).sqrt()
        chord = _distances(setting, frames[:1], frames[-1:])[0].clamp_min(0).sqrt()
        found |= {LARGEST_SEEN: mean_of(seen.amax(0)), LENGTH_SEEN: mean_of(seen.sum(0)), RATIO_SEEN: _ratio(seen, chord)}
        mean = seen.mean(0)
        found[ABRUPT] = mean_of(torch.where(mean > 0, seen.amax(0) / torch.where(mean > 0, mean, 1), 1))
    labelled = labels_of(setting, frames)
    if labelled is not None:
        found |= {STRAY: mean_of(stray(labelled[0])), CONFIDENCE: mean_of(labelled[1][1:-1])}
    return found


def stray(labels: Tensor) -> Tensor:
    """Share of inner frames ``(P,)`` that have what neither end has, or lack what both have; labels ``(S, P, K)``.

    For one class a frame counts where its class is neither end's; of attributes their share counts.

    Example:
        >>> import torch
        >>> from georeg_diffusion.experiments.traversals import stray
        >>> classes = torch.tensor([[3, 3], [3, 5], [8, 5], [8, 3]])        # two paths: 3 3 8 8 and 3 5 5 3
        >>> stray(torch.nn.functional.one_hot(classes).bool()).tolist()
        [0.0, 1.0]
    """
    a, b, inner = labels[0], labels[-1], labels[1:-1]
    odd = (inner != a) & (a == b)
    one = (labels.sum(-1) == 1).all()
    return (odd.any(-1) if bool(one) else odd.double().mean(-1)).double().mean(0)


def claims_of(scores: Mapping[str, Replicated], base: str, ours: str) -> tuple[Claim, ...]:
    """What the paper says of such paths."""
    before, after = scores[base], scores[ours]
    said: Sequence[tuple[str, str]] = (
        ("Transitions are smoother: the largest step between adjacent frames falls", LARGEST_SEEN),
        ("Changes are less abrupt: the largest step falls against the mean step", ABRUPT),
        ("Fewer unwanted changes on the way: fewer frames of a class that neither end has", STRAY),
    )
    return tuple(falls(text, before, after, name) for text, name in said)


def table(lab: Lab, title: str, found: Walked, pairs: Sequence[tuple[str, str, str]]) -> Table:
    """Of all seeds."""
    count = next(iter(found.frames.values())).shape[1]
    caption = (
        f"Means over {count} paths of {FRAMES} frames for each seed, {found.num_steps} DDIM steps. Perceptual: the root of "
        f"the distance that the scores use; the mean step is the length over {FRAMES - 1}. {setting_of(lab)}"
    )
    return table_of(title, found.scores, MEASURES, pairs=pairs, caption=caption)


def _perceptual(setting: Setting, frames: Tensor) -> Tensor | None:
    return None if available(setting.distance) is None else _distances(setting, frames[:-1], frames[1:])


@torch.no_grad()
def _distances(setting: Setting, a: Tensor, b: Tensor) -> Tensor:
    distance, shape = setting.distance(), a.shape[:2]
    pairs = zip(a.flatten(0, 1).split(setting.batch_size), b.flatten(0, 1).split(setting.batch_size), strict=True)
    found = [distance(x.to(setting.device), y.to(setting.device)).double().cpu() for x, y in pairs]
    return torch.cat(found).reshape(shape)


def _ratio(steps: Tensor, chord: Tensor) -> float | None:
    """Mean of length over chord; None where a path ends where it began."""
    return mean_of(steps.sum(0) / chord) if bool((chord > 0).all()) else None
