"""One phase of training, to be read from top to bottom."""

from __future__ import annotations

import inspect
import math
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import georeg
from georeg.registry import lookup
from georeg_diffusion._compat import diffusers
from georeg_diffusion.bundle import Bundle
from georeg_diffusion.data.conditions import Conditions
from georeg_diffusion.data.images import Draws, Images, TrainingOrder, batches, draw_generators
from georeg_diffusion.errors import Interrupted, RunError, UsageError
from georeg_diffusion.functionals import make_regularizer
from georeg_diffusion.h_space import HSpace
from georeg_diffusion.objective import IsometricDiffusionLoss, ObjectiveOutput
from georeg_diffusion.progress import progress
from georeg_diffusion.schedule import IsometryGate
from georeg_diffusion.training import checkpoint, sharding
from georeg_diffusion.training.config import TrainConfig
from georeg_diffusion.training.data import num_workers
from georeg_diffusion.training.guard import Guard
from georeg_diffusion.training.interrupt import in_worker, stopping
from georeg_diffusion.training.lambda_schedule import lambda_factor
from georeg_diffusion.training.log import Log
from georeg_diffusion.training.selection import Selection, Validation


@dataclass(frozen=True)
class Phase:
    """What distinguishes one phase of a run from another.

    Attributes:
        name: of its folder and in its log.
        title: on its progress bar.
        steps: optimiser steps.
        learning_rate: Adam's step size.
        lambda_iso: weight of the isometry term.
    """

    name: str
    title: str
    steps: int
    learning_rate: float
    lambda_iso: float


def make_objective(bundle: Bundle, config: TrainConfig, lambda_iso: float) -> IsometricDiffusionLoss:
    """The objective that a configuration describes.

    Raises:
        UsageError: the h-space module is not a submodule of the network.
    """
    try:
        HSpace(bundle.network, config.h_module)
    except ValueError as error:
        raise UsageError(f"--h-module: {error}") from error
    return IsometricDiffusionLoss(
        bundle.network,
        bundle.scheduler,
        gate=IsometryGate(weight=lambda_iso, skip=config.isometry_skip),
        normalize=config.normalize,
        timestep_bins=config.timestep_bins,
        scope="global" if config.scope == "global" else "batch",
        momentum=config.momentum or None,
        metric=config.metric,
        regularizer=config.regularizer,
        estimator=make_estimator(config),
        at=config.h_module,
        loss_weighting=config.loss_weighting,
        recompute=config.recompute,
        chunk_size=config.chunk_size,
    )


def check_regularizer(config: TrainConfig) -> None:
    """Make sure that there is such a loss, and that it takes the estimator.

    Raises:
        UsageError: an unknown name, or an estimator that the loss cannot use.
    """
    estimator = make_estimator(config)
    try:
        make_regularizer(config.regularizer, normalize=config.normalize, estimator=estimator)
    except ValueError as error:
        raise UsageError(f"--{error}") from error


def make_estimator(config: TrainConfig) -> georeg.Estimator:
    """The registered estimator (georeg's own, or a plug-in's) that a configuration names.

    Raises:
        UsageError: an unknown name, or a number of probes for an estimator that has none.
    """
    try:
        make: Callable[..., georeg.Estimator] = lookup("estimator", config.estimator)  # type: ignore[assignment]
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    if config.num_probes is None:
        return make()
    if "num_probes" not in inspect.signature(make).parameters:
        raise UsageError(f"--num-probes: got {config.num_probes}, but the estimator {config.estimator!r} takes no probes")
    try:
        return make(num_probes=config.num_probes)
    except ValueError as error:
        raise UsageError(f"--{str(error).replace('_', '-', 1)}") from error


def train_phase(
    accelerator: Any,
    bundle: Bundle,
    images: Images,
    config: TrainConfig,
    phase: Phase,
    out: Path,
    conditions: Conditions | None = None,
    validation: Validation | None = None,
) -> None:
    """Train the bundle's network and save the (averaged) result in ``out/<phase.name>``.

    Resumes from the newest whole checkpoint of the phase; SIGTERM and SIGINT write one and stop. Draw number n of the
    run always gets the same image, flip, timestep, noise and probes, whatever the number of processes.

    Raises:
        RunError: a checkpoint beyond the end, since epochs have fewer steps with more processes; nothing that can be read.
        Interrupted: by a signal, after a checkpoint.
    """
    objective = make_objective(bundle, config, phase.lambda_iso)
    prepared = sharding.distributed(accelerator, objective)
    parameters = trained_of(bundle.network)
    optimizer_class = torch.optim.AdamW if config.adam_weight_decay else torch.optim.Adam
    optimizer = optimizer_class(
        parameters,
        lr=phase.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
    )
    processes, accumulate = accelerator.num_processes, config.gradient_accumulation_steps
    schedule = diffusers.optimization.get_scheduler(
        config.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=phase.steps,
    )
    average = None
    if config.use_ema:
        average = diffusers.training_utils.EMAModel(
            parameters,
            decay=config.ema_max_decay,
            use_ema_warmup=True,
            inv_gamma=config.ema_inv_gamma,
            power=config.ema_power,
        )
        average.to(accelerator.device)
    optimizer, schedule = accelerator.prepare(sharding.saved_whole(optimizer), schedule)
    checkpoints = out / "checkpoints" / phase.name
    guard = Guard(accelerator)
    # Beside accelerate's own: what is registered with it is read back by the unpickler, which runs what is in a file.
    draws = Draw()
    extras = {"guard": guard, "draws": draws, **({} if average is None else {"average": average})}
    start = checkpoint.resume(accelerator, checkpoints, objective, extras=extras)
    if start > phase.steps:
        raise RunError(
            f"{checkpoints}: got a checkpoint of step {start}, expected at most {phase.steps}, the steps of this run with "
            f"{processes} process(es); start as many processes as before, or pass --overwrite-output-dir to start again"
        )

    draws_per_step = config.train_batch_size * accumulate * processes
    left = (phase.steps - start) * draws_per_step
    order = TrainingOrder(len(images), config.seed, first=draws.number, stop=draws.number + left)
    workers = num_workers(config, images, accelerator.device)
    loader = accelerator.prepare_data_loader(
        torch.utils.data.DataLoader(
            Draws(images, config.seed, conditions),
            sampler=order,
            batch_size=config.train_batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=in_worker,
            pin_memory=accelerator.device.type == "cuda",
            drop_last=True,
        )
    )
    log = Log(accelerator, out / "logs" / f"{phase.name}.jsonl", phase.name, start)
    selection = None if validation is None else Selection(accelerator, bundle, validation, phase.name, out, start)
    prepared.train()
    step = start

    def losses_of(batch: dict[str, Any], scale: float) -> ObjectiveOutput:
        result: ObjectiveOutput = prepared(
            batch["image"],
            generator=draw_generators(config.seed, batch["draw"].tolist()),
            isometry_scale=scale,
            isometry_rows=batch.get("is_conditional"),
            **batch.get("conditioning", {}),
        )
        return result

    bar_of = progress(phase.title, phase.steps, completed=start, enabled=accelerator.is_main_process)
    source = batches(loader)
    with stopping() as stop, bar_of as bar, closing(source):
        for micro_batches in _by_step(source, accumulate):
            factor = lambda_factor(config.lambda_iso_schedule, step, phase.steps)
            scale = factor * config.isometry_every if step % config.isometry_every == 0 else 0.0
            calls = [partial(losses_of, batch, scale) for batch in micro_batches]
            is_pooled = config.pool_micro_batches and accumulate > 1 and scale != 0 and phase.lambda_iso != 0
            results = georeg.accumulate(objective.regularizer, calls) if is_pooled else (call() for call in calls)
            for _ in calls:
                with accelerator.accumulate(prepared):
                    if isinstance(prepared, sharding.Shards):
                        prepared.synchronise(accelerator.sync_gradients)
                    out_ = next(results)
                    is_logged = accelerator.sync_gradients and (step + 1) % config.logging_steps == 0
                    ratio = (
                        gradient_ratio(out_, trained_of(bundle.network))
                        if is_logged and out_.gated and phase.lambda_iso
                        else None
                    )
                    accelerator.backward(out_.loss)
                    norm = None
                    if accelerator.sync_gradients:
                        limit = config.max_grad_norm or math.inf
                        norm = sharding.whole(accelerator.clip_grad_norm_(prepared.parameters(), limit))
                    if guard.is_sound(out_, norm, step + 1):
                        optimizer.step()
                        if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
                            schedule.step()
                    optimizer.zero_grad()
            step += 1
            draws.number += draws_per_step
            if average is not None:
                average.step(parameters)
            if is_logged or step == phase.steps:
                rate, weight = schedule.get_last_lr()[0], (phase.lambda_iso, factor)
                entry = log.write(step, out_, norm, rate, ratio, guard.skipped, weight)
                isometry = f"  isometry {entry['functional']:.2f}" if out_.moments is not None else ""
                bar.note(f"denoising {entry['denoising']:.4f}{isometry}")
            if selection is not None and selection.is_due(step, phase.steps):
                selection(step, parameters, average)
            number = stop.agreed(accelerator)
            if step % config.checkpointing_steps == 0 or step == phase.steps or number:
                checkpoint.save(
                    accelerator, checkpoints, step, objective, keep=config.checkpoints_total_limit, extras=extras
                )
            if number:
                raise Interrupted(
                    number,
                    f"stopped by {signal.Signals(number).name} after step {step} of {phase.steps} ({phase.name}), whose "
                    "checkpoint is written; run the same command again to go on from there",
                )
            bar.advance()
    if selection is None and average is not None:
        average.copy_to(parameters)
    sharding.gather(bundle.network)
    if selection is not None:
        selection.restore()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        bundle.save(out / phase.name)
    accelerator.wait_for_everyone()
    accelerator.free_memory()


class Draw:
    """The number of the draw that comes next; of a checkpoint, since other numbers of processes take other steps."""

    def __init__(self) -> None:
        self.number = 0

    def state_dict(self) -> dict[str, int]:
        """The number."""
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.number = int(state["number"])


def trained_of(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that are trained, with LoRA the adapters alone; within a step of FSDP2 the gathered ones."""
    return [p for p in network.parameters() if p.requires_grad]


def _by_step(batches: Iterable[dict[str, Any]], accumulate: int) -> Iterator[list[dict[str, Any]]]:
    """The micro-batches of each optimiser step."""
    iterator = iter(batches)
    while micro_batches := list(islice(iterator, accumulate)):
        yield micro_batches


def gradient_ratio(out: ObjectiveOutput, parameters: Sequence[Tensor]) -> float:
    """‖∇ isometry term‖ / ‖∇ denoising loss‖ on this process's batch: whether the term trains anything at all."""

    def norm(loss: Tensor) -> Tensor:
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        return torch.stack([g.detach().float().norm() for g in grads if g is not None]).norm()

    return float(norm(out.isometry) / norm(out.denoising).clamp_min(torch.finfo(torch.float32).tiny))
