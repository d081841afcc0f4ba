"""log.jsonl of a phase: cut back on resume, in files of bounded size."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from georeg_diffusion.files import replacing
from georeg_diffusion.objective import ObjectiveOutput
from georeg_diffusion.progress import console

_WEAK = 1e-3
_MAX_BYTES = 2**24


class Log:
    """The log of a phase and the trackers. On resume the log is cut back to the checkpoint's step.

    Above 16 MiB a file is set aside as ``<phase>.0001.jsonl`` and so on, in order, and a new one begun;
    :func:`read_log` reads them all.
    """

    def __init__(self, accelerator: Any, file: Path, phase: str, start: int) -> None:
        self.accelerator, self.file, self.phase = accelerator, file, phase
        self.ratios: deque[float] = deque(maxlen=5)
        self.has_warned = False
        if accelerator.is_main_process:
            file.parent.mkdir(parents=True, exist_ok=True)
            for part in _parts(file):
                kept = [entry for entry in _entries(part) if entry["step"] <= start]
                with replacing(part) as scratch:
                    scratch.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
            file.touch()

    def write(
        self,
        step: int,
        out: ObjectiveOutput,
        norm: Tensor | None,
        lr: float,
        ratio: float | None,
        skipped: int,
        weight: tuple[float, float],
    ) -> dict[str, Any]:
        """Log one step's last micro-batch, over all processes, which all call.

        Args:
            step: its number, from 1.
            out: what the objective gave.
            norm: of the gradient.
            lr: the step size.
            ratio: of the two terms' gradients.
            skipped: how many steps were not taken.
            weight: λ, and what its schedule multiplies it by at this step.
        """
        losses = torch.stack([out.loss, out.denoising, out.isometry, out.functional]).detach()
        *means, gated = self.accelerator.reduce(torch.cat([losses, losses.new_full((1,), out.gated)]), "mean").tolist()
        names = ("loss", "denoising", "isometry", "functional")
        entry: dict[str, Any] = {
            "step": step,
            **dict(zip(names, means, strict=True)),
            "gated": round(gated * self.accelerator.num_processes),
            "learning_rate": lr,
            "lambda_iso": weight[0] * weight[1],
            "gradient_norm": None if norm is None else float(norm),
            "gradient_ratio": ratio,
            "skipped": skipped,
        }
        if ratio is not None:
            self._watch(ratio / weight[1])  # a schedule may lower λ as far as it likes
        if self.accelerator.is_main_process:
            if self.file.is_file() and self.file.stat().st_size >= _MAX_BYTES:
                os.replace(self.file, _part(self.file, len(_parts(self.file))))
            with self.file.open("a") as log:
                log.write(json.dumps(entry) + "\n")
            numbers = {f"{self.phase}/{k}": v for k, v in entry.items() if k != "step" and v is not None}
            self.accelerator.log(numbers, step=step)
        return entry

    def _watch(self, ratio: float) -> None:
        self.ratios.append(ratio)
        stays = len(self.ratios) == self.ratios.maxlen and max(self.ratios) < _WEAK
        if stays and not self.has_warned and self.accelerator.is_main_process:
            self.has_warned = True
            console.print(
                f"[yellow]Warning:[/] the isometry term's gradient is {max(self.ratios):.1e} of the denoising loss's: it "
                "costs time and trains nothing. Raise --lambda-iso, or use --normalize (at the paper's 1e-4 on the "
                "bare ratio this is expected)."
            )


def read_log(file: Path) -> list[dict[str, Any]]:
    """The entries of a log, those set aside first; a last line that an interruption cut short is left out.

    Example:
        >>> import tempfile, pathlib
        >>> from georeg_diffusion.training.log import read_log
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "isometric.jsonl")
        ...     _ = file.with_name("isometric.0001.jsonl").write_text('{"step": 1}\\n')
        ...     _ = file.write_text('{"step": 2}\\n{"st')
        ...     read_log(file)
        [{'step': 1}, {'step': 2}]
    """
    return [entry for part in _parts(file) for entry in _entries(part)]


def _parts(file: Path) -> list[Path]:
    """The files of a log, oldest first."""
    return [*sorted(file.parent.glob(f"{file.stem}.[0-9][0-9][0-9][0-9]{file.suffix}")), *([file] if file.is_file() else [])]


def _part(file: Path, number: int) -> Path:
    return file.with_name(f"{file.stem}.{number:04d}{file.suffix}")


def _entries(part: Path) -> Iterator[dict[str, Any]]:
    for line in part.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            return
        if not isinstance(entry, dict):
            return
        yield entry
