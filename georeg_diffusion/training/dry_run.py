"""``train --dry-run``: what a run would take, counted and measured, with nothing written."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from georeg_diffusion.backbones import family_of, unwrapped
from georeg_diffusion.bundle import Bundle, load
from georeg_diffusion.codec import encode, load_codec
from georeg_diffusion.cost import Step, peak_bytes_of, seconds_of, work_of
from georeg_diffusion.data.images import Images
from georeg_diffusion.objective import IsometricDiffusionLoss
from georeg_diffusion.schedule import network_timesteps
from georeg_diffusion.training.config import TrainConfig
from georeg_diffusion.training.lambda_schedule import lambda_factor, share_of_steps
from georeg_diffusion.training.phase import Phase, make_objective
from georeg_diffusion.training.start import starting_model

_CPU_BATCH = 4
_REPEATS = 3
_ENOUGH_SECONDS = 0.3


@dataclass(frozen=True)
class StepCost:
    """What one optimiser step of a run takes on one process.

    Attributes:
        parameters, trained: how many numbers the network has, and how many of them are trained.
        share: of the samples that pay for the isometry loss, in the mean over steps.
        state_bytes: parameters, Adam's moments and the average.
        plain_bytes, isometry_bytes: the most that lives beside them during a step without and with the isometry loss, as
            measured at ``timed_batch`` samples and scaled; with it, at a number of paying samples that 98 % of the steps do
            not exceed.
        plain_work, isometry_work: floating-point operations of matrix products and convolutions, in the mean.
        plain_seconds, isometry_seconds: measured at ``timed_batch`` samples, scaled to the whole step, in the mean.
        timed_batch: see there.
        device: it was timed on.
    """

    parameters: int
    trained: int
    share: float
    state_bytes: int
    plain_bytes: int
    isometry_bytes: int
    plain_work: float
    isometry_work: float
    plain_seconds: float
    isometry_seconds: float
    timed_batch: int
    device: str

    @property
    def times(self) -> float:
        """By how much a step takes longer with the isometry loss."""
        return self.isometry_seconds / self.plain_seconds


def cost_of(config: TrainConfig, images: Images, *, device: torch.device | str = "cpu") -> StepCost:
    """The cost of a step: its work counted on the meta device, memory and time measured in a few real steps of few samples.

    A batch is split by the gate, and the two parts cost what they cost alone: a step takes (1 − share)·plain + share·gated.
    Memory is what tensors hold, as :class:`georeg_diffusion.cost.PeakBytes` counts it: graphs, which grow with the batch,
    or where those are smaller the gradients. A GPU's allocator and libraries take more.

    Args:
        config: the run.
        images: its images, in pixels, of which only number, size and channels count.
        device: where steps are timed.

    Raises:
        UsageError: options that the model cannot take.
        RunError: a model that cannot be used.
    """
    device = torch.device(device)
    inputs = _inputs(config, images)
    bundle = starting_model(config, inputs, config.output_dir, "isometric")
    conditioning, dropout = _conditioning(bundle, config)
    bundle.network.to(device).train()
    objective = make_objective(bundle, config, config.lambda_iso)
    total = objective.num_train_timesteps
    draws = network_timesteps(bundle.scheduler, torch.arange(total))
    is_open = objective.gate.open(draws, total) & (config.lambda_iso > 0)
    at_once = float(is_open.double().mean()) * (1 - dropout)
    share = at_once * share_of_steps(config.lambda_iso_schedule) / config.isometry_every
    shape, batch = (inputs.channels, inputs.resolution, inputs.resolution), config.train_batch_size
    parameters = list(bundle.network.parameters())
    trained = [p for p in parameters if p.requires_grad]

    def made(rows: int, gated: int, place: torch.device) -> Step:
        """A step on blank images, by the objective of that place."""
        x0 = torch.zeros(rows, *shape, device=place)
        t = torch.cat([draws[-1:].expand(gated), draws[:1].expand(rows - gated)])
        some = {name: value.to(place).expand(rows, *value.shape[1:]) for name, value in conditioning.items()}
        cast = nullcontext if place.type == "meta" else _autocast(config, place)
        return lambda: _loss(objective, x0, t, float(gated > 0), some, cast)

    timed, plain, gated = _timed(lambda rows, open_: made(rows, open_, device), batch, share > 0, device)
    without, paying = (peak_bytes_of(made(timed, rows, device)) for rows in (0, timed if share else 0))
    most = min(batch, math.ceil(batch * at_once + 2 * (batch * at_once * (1 - at_once)) ** 0.5))
    gradients = _bytes(trained)
    plain_bytes = max(without * batch / timed, gradients)
    # Both parts of a batch keep their graphs until the backward pass; recomputed, the isometry loss has one chunk's.
    extra = paying - without if config.recompute else (paying - without) * most / timed
    update = _update_seconds(trained, config, device)
    micro = config.gradient_accumulation_steps

    bundle.network.to("meta")
    for parameter in trained:
        parameter.grad = None
    objective = make_objective(bundle, config, config.lambda_iso)
    meta = torch.device("meta")
    works = [work_of(made(1, rows, meta)) for rows in (0, int(share > 0))]
    scaled = micro * batch / timed
    return StepCost(
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in trained),
        share=share,
        state_bytes=_bytes(parameters) + (3 if config.use_ema else 2) * _bytes(trained),
        plain_bytes=round(plain_bytes),
        isometry_bytes=round(max(without * batch / timed + extra, gradients)),
        plain_work=micro * batch * works[0],
        isometry_work=micro * batch * ((1 - share) * works[0] + share * works[1]),
        plain_seconds=scaled * plain + update,
        isometry_seconds=scaled * ((1 - share) * plain + share * gated) + update,
        timed_batch=timed,
        device=str(device),
    )


def _inputs(config: TrainConfig, images: Images) -> Any:
    """Channels and resolution of what the network sees, by encoding one blank image where there is an autoencoder."""
    codec = load_codec(config.vae) if config.vae else None
    if codec is None and config.pretrained_model_name_or_path is not None:
        codec = load(config.pretrained_model_name_or_path).codec
    if codec is None:
        return images
    with torch.no_grad():
        latent = encode(codec, torch.zeros(1, images.channels, images.resolution, images.resolution))
    return SimpleNamespace(channels=latent.shape[1], resolution=latent.shape[2])


def _conditioning(bundle: Bundle, config: TrainConfig) -> tuple[dict[str, Tensor], float]:
    """One row of what conditions the network, and the share of the samples that train without it and do not pay."""
    network = unwrapped(bundle.network)
    family = family_of(network)
    if family.takes_text(network):
        return bundle.conditioning([""]), config.conditioning_dropout_prob
    if family.num_classes(network) is None:
        return {}, 0.0
    has_null = family.null_class(network) is not None
    return bundle.conditioning(class_labels=[0]), config.conditioning_dropout_prob if has_null else 0.0


def _autocast(config: TrainConfig, device: torch.device) -> Callable[[], Any]:
    if config.mixed_precision == "no":
        return nullcontext
    dtype = torch.float16 if config.mixed_precision == "fp16" else torch.bfloat16
    return lambda: torch.autocast(device.type, dtype=dtype)


def _loss(
    objective: IsometricDiffusionLoss, x0: Tensor, t: Tensor, scale: float, conditioning: dict[str, Tensor], cast: Any
) -> Tensor:
    with cast():
        return objective(x0, t, isometry_scale=scale, **conditioning).loss


def _timed(made: Callable[[int, int], Step], batch: int, pays: bool, device: torch.device) -> tuple[int, float, float]:
    """Samples, and seconds of a step in which none of them pays for the isometry loss and of one in which all do.

    The whole batch on a GPU, or as much of it as fits. On a CPU few samples, or more where those take no time to speak of
    and would say more about overhead than about work.
    """
    count = batch if device.type == "cuda" else min(batch, _CPU_BATCH)
    while True:
        try:
            plain, gated = _seconds(device, made(count, 0), made(count, count if pays else 0))
        except torch.OutOfMemoryError:
            if count == 1:
                raise
            batch = count = count // 2
            continue
        if count >= batch or gated > _ENOUGH_SECONDS:
            return count, plain, gated
        count = min(2 * count, batch)


def _seconds(device: torch.device, *steps: Step) -> list[float]:
    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return seconds_of(*steps, repeats=_REPEATS, clock=clock)


def _update_seconds(trained: Sequence[Tensor], config: TrainConfig, device: torch.device) -> float:
    """Of the optimiser, which does not grow with the batch: at a step size of 0, which changes nothing."""
    optimiser = torch.optim.Adam(trained, lr=0.0)
    pulse = torch.zeros((), device=device, requires_grad=True)

    def update() -> Tensor:
        optimiser.step()
        return pulse * 1

    return _seconds(device, update)[0]


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def report(cost: StepCost, config: TrainConfig, images: Images, phases: Sequence[Phase]) -> list[tuple[str, str]]:
    """What to print, by subject.

    Args:
        cost: of a step.
        config: the run.
        images: its images.
        phases: of the run, with their lengths.
    """
    batch = config.train_batch_size * config.gradient_accumulation_steps
    lengths = " + ".join(f"{phase.steps:,}" for phase in phases)
    seconds = sum(phase.steps * (cost.isometry_seconds if phase.lambda_iso else cost.plain_seconds) for phase in phases)
    trained = "all trained" if cost.trained == cost.parameters else f"{_short(cost.trained)} of them trained"
    lines = [
        ("network", f"{_short(cost.parameters)} parameters, {trained}"),
        ("data", f"{len(images):,} images of {images.name} at {images.resolution}²"),
        ("length", f"{lengths} steps of {batch:,} images"),
        (
            "memory",
            f"{_size(cost.state_bytes + cost.isometry_bytes)}: {_size(cost.state_bytes)} for parameters, Adam and average, "
            f"{_size(cost.isometry_bytes)} for a step (without isometry {_size(cost.plain_bytes)})",
        ),
        (
            "work of a step",
            f"{cost.plain_work / 1e9:,.4g} GFLOP, with isometry {cost.isometry_work / 1e9:,.4g} "
            f"(×{cost.isometry_work / cost.plain_work:.2f}; {cost.share:.0%} of the samples pay)",
        ),
        (
            "time of a step",
            f"{_time(cost.plain_seconds)}, with isometry {_time(cost.isometry_seconds)}, on {cost.device} (timed at "
            f"{cost.timed_batch} samples)",
        ),
        ("in all", f"{_time(seconds)} on one process, without loading, scores and pictures"),
    ]
    if config.lambda_iso_schedule != "constant" and cost.share:
        lines.insert(3, ("λ", _course(config, phases[-1].steps)))
    verdict = f"isometry costs ×{cost.times:.2g} here" if cost.share else "the isometry loss is off: λ = 0, or p leaves no t"
    return [*lines, ("", verdict)]


def _course(config: TrainConfig, steps: int) -> str:
    """λ at the first, the middle and the last step of the phase with isometry."""
    at = (0, steps // 2, steps - 1)
    first, middle, last = (config.lambda_iso * lambda_factor(config.lambda_iso_schedule, step, steps) for step in at)
    return f"{config.lambda_iso_schedule}: {first:.3g} at the first step, {middle:.3g} in the middle, {last:.3g} at the last"


def _short(number: float) -> str:
    for unit, size in (("billion", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _size(count: float) -> str:
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
