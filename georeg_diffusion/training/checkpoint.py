"""Checkpoints of one phase of training: written beside and renamed, the newest whole one is found again."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from georeg_diffusion.errors import RunError

_NAME = re.compile(r"step-(\d+)")


def saved_steps(folder: Path) -> list[int]:
    """The steps of which a checkpoint is there, ascending."""
    names = [_NAME.fullmatch(entry.name) for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name[1]) for name in names if name)


def save(accelerator: Any, folder: Path, step: int, *, keep: int) -> None:
    """Save weights, optimiser, schedule, average and random state after ``step`` steps; keep the newest ``keep``."""
    target, scratch = folder / f"step-{step}", folder / f".step-{step}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(scratch, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(scratch), safe_serialization=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(target, ignore_errors=True)
        os.replace(scratch, target)
        for old in saved_steps(folder)[:-keep]:
            shutil.rmtree(folder / f"step-{old}")
    accelerator.wait_for_everyone()


def resume(accelerator: Any, folder: Path) -> int:
    """Load the newest checkpoint and return its step, 0 where there is none."""
    steps = saved_steps(folder)
    if not steps:
        return 0
    newest = folder / f"step-{steps[-1]}"
    try:
        accelerator.load_state(str(newest))
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise RunError(
            f"cannot resume from {newest}: {' '.join(str(error).split())[:200]}; delete that folder to go on from the "
            "one before, or pass --overwrite-output-dir to start again"
        ) from error
    return steps[-1]
