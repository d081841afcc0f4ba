"""Working scores off: in order, with progress, saved as they go, until done or out of time."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from georeg_diffusion.errors import RunError
from georeg_diffusion.evaluation.score import OutOfTimeError, Result, Score
from georeg_diffusion.evaluation.setting import Setting
from georeg_diffusion.files import replacing
from georeg_diffusion.progress import progress

_SAVE_SECONDS = 20.0
_DONE = "pieces_done"


@dataclass(frozen=True)
class Outcome:
    """What became of one score of one model.

    Attributes:
        result: the score of the pieces that were worked off.
        failure: why it could not be measured, with the remedy; None where it could.
        done, pieces: of the work.
        delay: what took all the time before the work could begin; None where it began.
    """

    result: Result
    failure: str | None
    done: int
    pieces: int
    delay: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether all of the work is done."""
        return self.failure is None and self.delay is None and self.done == self.pieces

    def as_json(self) -> dict[str, Any]:
        """As ``metrics.json`` holds it; a number that is not finite becomes null, and the protocol names it."""
        record: dict[str, Any] = asdict(self.result)
        if record["value"] is not None and not math.isfinite(record["value"]):
            record["protocol"] += f"; the value is {record['value']}"
            record |= {"value": None, "ci": None}
        if record["ci"] is not None and not all(map(math.isfinite, record["ci"])):
            record["protocol"] += "; the interval is not finite"
            record["ci"] = None
        if self.delay is not None:
            record["protocol"] += f": {self.delay}"
        elif self.failure is None and not self.is_finished:
            record["protocol"] += f"; stopped after {self.done} of {self.pieces} pieces of work"
        return _finite(record | {"finished": self.is_finished})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluate(
    settings: Mapping[str, Setting],
    scores: Mapping[str, type[Score]],
    *,
    state: Path | None = None,
    deadline: float = math.inf,
    on_outcome: Callable[[str, str, Outcome], None] = lambda model, score, outcome: None,
) -> dict[str, dict[str, Outcome]]:
    """Measure scores of models, one score after the other for all models.

    Args:
        settings: the models by name.
        scores: to measure, in order, such as :func:`georeg_diffusion.evaluation.catalogue.scores`.
        state: folder in which each score keeps what it has, so that a later call goes on from there; None keeps nothing.
        deadline: by ``time.monotonic()``; what is not done by then stays undone.
        on_outcome: told (model, score, outcome) after each.

    Raises:
        UsageError: an option that a score cannot use.

    Example:
        >>> from georeg_diffusion.evaluation.runner import evaluate
        >>> evaluate({}, {})
        {}
    """
    # All are made before the first is worked off: a wrong option is found at once and not after hours.
    jobs = {(model, name): _made(score, settings[model]) for name, score in scores.items() for model in settings}
    found: dict[str, dict[str, Outcome]] = {model: {} for model in settings}
    for (model, name), job in jobs.items():
        title = f"{model}: {name}" if len(settings) > 1 else name
        if isinstance(job, OutOfTimeError):
            outcome = Outcome(Result(None, None, 0, settings[model].seed, "not measured yet"), None, 0, 0, str(job))
        elif isinstance(job, str):
            outcome = _failed(settings[model].seed, job)
        else:
            target = None if state is None else state / f"{model}-{name}-{_fingerprint(settings[model])}.safetensors"
            outcome = work_off(job, settings[model].seed, title, target, deadline=deadline)
        found[model][name] = outcome
        on_outcome(model, name, outcome)
    return found


def _made(score: type[Score], setting: Setting) -> Score | OutOfTimeError | str:
    """The score, or why it cannot be had."""
    try:
        return score.of(setting)
    except OutOfTimeError as error:
        return error
    except (RunError, ValueError) as error:
        return _reason(error)


def _fingerprint(setting: Setting) -> str:
    """A hash of the model and of the options that change what a score accumulates; not of the batch size."""
    options = (setting.protocol, setting.seed, setting.num_samples, setting.num_inference_steps, setting.timesteps)
    text = f"{setting.key} {options} {setting.compat} {sorted(setting.options.items())}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _failed(seed: int, reason: str, done: int = 0, pieces: int = 0) -> Outcome:
    return Outcome(Result(None, None, 0, seed, f"not measured: {reason}"), reason, done, pieces)


def work_off(score: Score, seed: int, title: str, target: Path | None = None, *, deadline: float = math.inf) -> Outcome:
    """Work off the pieces of one score that are left; what is done is saved, whatever happens.

    Args:
        score: to work off.
        seed: of a result that fails.
        title: on the progress bar.
        target: file to go on from and to save to.
        deadline: by ``time.monotonic()``.
    """
    pieces, done = score.pieces(), _load(score, target)
    saved, saved_at = done, time.monotonic()

    def save() -> None:
        nonlocal saved, saved_at
        if target is not None and done > saved:
            with replacing(target) as scratch:
                tensors = {key: value.contiguous() for key, value in score.state().items()}
                save_file({**tensors, _DONE: torch.tensor([done])}, scratch)
        saved, saved_at = done, time.monotonic()

    try:
        with progress(title, pieces, completed=done, enabled=done < pieces) as bar:
            while done < pieces and time.monotonic() < deadline:
                score.update(done)
                done += 1
                bar.advance()
                if time.monotonic() - saved_at > _SAVE_SECONDS:
                    save()
        return Outcome(score.compute(), None, done, pieces)
    except torch.OutOfMemoryError as error:
        return _failed(seed, f"{_reason(error)}; lower --batch-size", done, pieces)
    except (RunError, ValueError) as error:
        return _failed(seed, _reason(error), done, pieces)
    finally:
        save()


def _load(score: Score, target: Path | None) -> int:
    """Take up what an earlier sitting saved; the number of pieces that it did."""
    if target is None or not target.is_file():
        return 0
    try:
        state = load_file(target)
        done = int(state.pop(_DONE))
    except (OSError, SafetensorError, KeyError, ValueError):
        return 0  # damaged: begin again
    score.load_state(state)
    return done
