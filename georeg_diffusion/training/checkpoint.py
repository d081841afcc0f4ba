"""Checkpoints of one phase of training: written beside and renamed, verified by hash, the last good one is found again."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from georeg_diffusion.errors import RunError
from georeg_diffusion.progress import console
from georeg_diffusion.training.sharding import like, whole

_NAME = re.compile(r"step-(\d+)")
_HASHES, _WEIGHTS = "sha256.json", "model.safetensors"
_READ_ERRORS = (
    *(OSError, RuntimeError, ValueError, EOFError, KeyError, IndexError, TypeError),
    *(SafetensorError, pickle.UnpicklingError),
)


def saved_steps(folder: Path) -> list[int]:
    """The steps of which a checkpoint is there, ascending."""
    names = [_NAME.fullmatch(entry.name) for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name[1]) for name in names if name)


def save(
    accelerator: Any, folder: Path, step: int, module: nn.Module, *, keep: int, extras: Mapping[str, Any] | None = None
) -> None:
    """Save weights, optimiser, schedule, random state and ``extras`` after ``step`` steps; keep the newest ``keep``.

    All is written beside, hashed, flushed to the disk and only then renamed: an interruption at any point, kill −9 among
    them, leaves the checkpoints that were there.

    Args:
        accelerator: whose prepared optimiser and schedule are saved.
        folder: of the phase's checkpoints.
        step: optimiser steps taken.
        module: whose weights and buffers are saved, whole and by its own names, however many processes share it.
        keep: how many to keep.
        extras: what else has a ``state_dict``, by name, such as the averaged weights.

    Raises:
        RunError: it cannot be written, such as on a full disk; what was written of it is removed.
    """
    target, scratch = folder / f"step-{step}", folder / f".step-{step}.partial"
    if accelerator.is_main_process:
        clear(folder)
    accelerator.wait_for_everyone()
    states = {name: whole(part.state_dict()) for name, part in (extras or {}).items()}
    weights = _apart(whole(module.state_dict()))
    mine = accelerator.register_save_state_pre_hook(
        lambda _models, given, _folder: given.__setitem__(slice(None), [weights])
    )
    try:
        accelerator.save_state(str(scratch), safe_serialization=True)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for name, state in states.items():
                torch.save(state, scratch / f"{name}.pt")
            _seal(scratch)
            if target.exists():  # a damaged one of this step; a good one would have been gone on from
                os.replace(target, folder / f".step-{step}.old")
            os.replace(scratch, target)
            _flush(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        before = saved_steps(folder)
        again = f"goes on from step {before[-1]}" if before else "starts this phase again"
        raise RunError(
            f"cannot write the checkpoint of step {step} to {folder}: {_one_line(error)}; make room there (or choose fewer "
            f"--checkpoints-total-limit), then run the same command again, which {again}"
        ) from error
    finally:
        mine.remove()
    if accelerator.is_main_process:
        for old in saved_steps(folder)[:-keep]:  # renamed first: half a checkpoint must not look like one
            os.replace(folder / f"step-{old}", folder / f".step-{old}.old")
        clear(folder)
    accelerator.wait_for_everyone()


def _apart(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy of each tensor that shares memory with one before it: of tied weights a file would keep one name alone."""
    seen: set[int] = set()
    made = {}
    for name, tensor in state.items():
        place = tensor.untyped_storage().data_ptr()
        made[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return made


def resume(accelerator: Any, folder: Path, module: nn.Module, *, extras: Mapping[str, Any] | None = None) -> int:
    """Load the newest checkpoint that is whole and return its step, 0 where there is none.

    A damaged one is named and left out, in favour of the one before. Nothing in a checkpoint is executed: weights are
    safetensors, everything else is read with ``weights_only=True``.

    Raises:
        RunError: none is whole, or the newest whole one is of another network or optimiser.
    """
    steps = saved_steps(folder)
    for step in reversed(steps):
        newest = folder / f"step-{step}"
        damage = damage_of(newest)
        if damage is not None:
            if accelerator.is_main_process:
                console.print(
                    f"Warning: the checkpoint {newest} is damaged ({damage}); going on from the one before", style="yellow"
                )
            continue
        weights = accelerator.register_load_state_pre_hook(lambda models, _folder: models.clear())
        try:
            module.load_state_dict(like(load_file(newest / _WEIGHTS), module.state_dict()))
            accelerator.load_state(str(newest))
            accelerator.step = 0  # it counts micro-batches, of which a step may have had another number
            for name, part in (extras or {}).items():
                state = torch.load(newest / f"{name}.pt", map_location="cpu", weights_only=True)
                part.load_state_dict(like(state, part.state_dict()))
        except _READ_ERRORS as error:
            raise RunError(
                f"cannot resume from {newest}: {_one_line(error)}; delete that folder to go on from the one before, or pass "
                "--overwrite-output-dir to start again"
            ) from error
        finally:
            weights.remove()
        if accelerator.is_main_process:
            console.print(f"Going on from step {step}", style="dim")
        return step
    if steps:
        raise RunError(
            f"all checkpoints in {folder} are damaged (of step {', '.join(map(str, steps))}); delete that folder to train "
            "this phase again, and look at the disk"
        )
    return 0


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, by their SHA-256; None where nothing is.

    Example:
        >>> import tempfile, pathlib
        >>> from georeg_diffusion.training.checkpoint import damage_of
        >>> damage_of(pathlib.Path(tempfile.gettempdir(), "no-such-checkpoint"))
        'sha256.json is missing'
    """
    try:
        known = dict(json.loads((checkpoint / _HASHES).read_text()))
    except FileNotFoundError:
        return f"{_HASHES} is missing"
    except (OSError, ValueError, TypeError):
        return f"{_HASHES} cannot be read"
    for name, digest in known.items():
        # Names come from a file: nothing outside the checkpoint is opened.
        file = checkpoint / name
        if not file.resolve().is_relative_to(checkpoint.resolve()):
            return f"{name} lies outside"
        try:
            if _hash(file) != digest:
                return f"{name} has changed since it was written"
        except OSError as error:
            return f"{name}: {error.strerror or error}"
    return None if known else f"{_HASHES} is empty"


def clear(folder: Path) -> None:
    """Remove what interrupted writes and removals left."""
    for left in [*folder.glob(".step-*.partial"), *folder.glob(".step-*.old")]:
        shutil.rmtree(left, ignore_errors=True)


def _seal(folder: Path) -> None:
    """Record every file's hash, and flush all to the disk before the rename: a power cut, too, leaves all or nothing."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    hashes = {file.relative_to(folder).as_posix(): _hash(file) for file in files}
    (folder / _HASHES).write_text(json.dumps(hashes, indent=2) + "\n")
    for path in [*files, folder / _HASHES, folder]:
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
