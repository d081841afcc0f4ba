"""Steps that are not finite: skipped, counted, and after too many in a row the end of the run, with what was seen."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from torch import Tensor

from georeg_diffusion.errors import RunError
from georeg_diffusion.objective import ObjectiveOutput
from georeg_diffusion.progress import console

_MAX_BAD_STEPS = 10
_MAX_BAD_STEPS_SCALED = 50  # a gradient scaler starts too high on purpose, and halves itself at each of them
_SHOWN = 3


class Guard:
    """Decides which optimiser steps are taken; its counts belong to a checkpoint.

    Attributes:
        skipped: steps of this phase that were not taken.
        in_a_row: of them, those since the last good step.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.skipped = self.in_a_row = 0
        self._seen: deque[str] = deque(maxlen=_SHOWN)

    def state_dict(self) -> dict[str, int]:
        """The counts."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on counting."""
        self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])

    def is_sound(self, out: ObjectiveOutput, norm: Tensor | None, step: int) -> bool:
        """Whether to take this step. All processes agree, since the clipped norm is of the averaged gradient.

        Args:
            out: of the last micro-batch.
            norm: of the gradient; None in the middle of an accumulation.
            step: its number, from 1.

        Raises:
            RunError: too many steps in a row were not finite: the last ones, with losses and norms.
        """
        if norm is None:
            return True
        size = float(norm)
        if math.isfinite(size):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        self._seen.append(
            f"step {step}: denoising {out.denoising.item():.4g}, isometry {out.isometry.item():.4g} of {out.gated} samples, "
            f"gradient norm {size:g}"
        )
        has_scaler = self.accelerator.scaler is not None
        if self.in_a_row >= (_MAX_BAD_STEPS_SCALED if has_scaler else _MAX_BAD_STEPS):
            raise RunError(
                f"{self.in_a_row} steps in a row had a non-finite gradient ({'; '.join(self._seen)}); lower --learning-rate "
                "or --lambda-iso, take --mixed-precision no or bf16, or look for broken images (--strict)"
            )
        if has_scaler:
            return True  # the gradient scaler skips it and lowers its scale
        if self.accelerator.is_main_process and self.in_a_row == 1:
            console.print(f"Warning: skipped a step with a non-finite gradient ({self._seen[-1]})", style="yellow")
        return False
