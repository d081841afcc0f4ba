"""Which checkpoint is kept: the averaged weights of the lowest score so far, such as the FID (Sec. 4.1)."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from georeg_diffusion.bundle import Bundle
from georeg_diffusion.data.images import Images
from georeg_diffusion.evaluation.denoising import denoising_loss
from georeg_diffusion.evaluation.feature_network import FeatureNetwork
from georeg_diffusion.evaluation.fid import Fid
from georeg_diffusion.evaluation.generated import generated_features
from georeg_diffusion.evaluation.once import Once
from georeg_diffusion.evaluation.reference import Reference, reference_of
from georeg_diffusion.evaluation.setting import Setting
from georeg_diffusion.files import replacing
from georeg_diffusion.progress import console, track
from georeg_diffusion.training.config import TrainConfig
from georeg_diffusion.training.sharding import gathered

_BATCH = 16
_SHOWN = 2048


@dataclass(frozen=True)
class Validation:
    """What checkpoints are scored with; one for all phases of a run.

    Attributes:
        images: real images, in pixels.
        features: of the Fréchet distance; None where another score selects.
        reference: statistics of the real images under them.
        prompt: for a model on text.
        config: every how many steps, by which score, of how many images.
    """

    images: Images
    features: FeatureNetwork | None
    reference: Reference | None
    prompt: str | None
    config: TrainConfig

    @classmethod
    def of(
        cls, images: Images, features: FeatureNetwork | None, prompt: str | None, config: TrainConfig, accelerator: Any
    ) -> Validation:
        """With statistics of the real images, taken once and kept in the cache."""
        reference = None
        if features is not None:
            cache = config.cache_dir or config.output_dir / "cache"
            with accelerator.main_process_first():
                reference = reference_of(images, features, cache=cache, batch_size=_BATCH, device=accelerator.device)
        return cls(images, features, reference, prompt, config)


class Selection:
    """Scores a phase's averaged weights every so often and keeps the best of them.

    The draws of a score follow from the seed alone, so that every checkpoint, of every phase, meets the same noise. All
    processes share the sampling; the first decides.

    Args:
        accelerator: of the run.
        bundle: whose network is trained.
        validation: what it is scored with.
        phase: name of the phase.
        out: the run's output folder.
        start: the step that the phase goes on from; later entries of an interrupted run's log are cut off.
    """

    def __init__(
        self, accelerator: Any, bundle: Bundle, validation: Validation, phase: str, out: Path, start: int = 0
    ) -> None:
        self.accelerator, self.bundle, self.validation, self.phase = accelerator, bundle, validation, phase
        self.best_file = out / "checkpoints" / phase / "best.safetensors"
        self.scratch = out / "checkpoints" / phase / ".validation"
        self.log_file = out / "logs" / f"{phase}-validation.jsonl"
        if accelerator.is_main_process:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            lines = self.log_file.read_text().splitlines() if self.log_file.is_file() else []
            kept = [line for line in lines if _step(line) <= start]
            with replacing(self.log_file) as target:
                target.write_text("".join(line + "\n" for line in kept))

    def is_due(self, step: int, last: int) -> bool:
        """Whether to score after ``step`` steps of ``last``."""
        return step % (self.validation.config.validation_steps or last) == 0 or step == last

    def __call__(self, step: int, parameters: Sequence[Tensor], average: Any) -> None:
        """Score the averaged weights, and keep them if none was better."""
        network = self.bundle.network
        averaged = {} if average is None else dict(zip(parameters, average.shadow_params, strict=True))
        network.eval()
        try:
            with gathered(network, averaged):
                value = self._score()
                if self.accelerator.is_main_process:
                    self._record(step, value)
        finally:
            network.train()
        self.accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Load the best weights into the network."""
        self.accelerator.wait_for_everyone()
        best = load_file(self.best_file)
        with torch.no_grad():
            for name, parameter in self.bundle.network.named_parameters():
                if name in best:
                    parameter.copy_(best[name])

    @torch.no_grad()
    def _score(self) -> float:
        validation, config = self.validation, self.validation.config
        device = self.accelerator.device
        if self.bundle.codec is not None:
            self.bundle.codec.to(device)
        if config.select_by == "denoising":
            chosen = torch.randperm(len(validation.images), generator=torch.Generator().manual_seed(config.seed))
            real = validation.images.batch(chosen[: min(config.num_validation_images, _SHOWN)]).to(device)
            return denoising_loss(
                self.bundle, real, seed=config.seed, batch_size=_BATCH, prompt=validation.prompt, title="Validation"
            ).value
        features, reference = validation.features, validation.reference
        assert features is not None
        assert reference is not None
        setting = Setting(
            bundle=self.bundle,
            features=Once(lambda: features),
            seed=config.seed,
            num_samples=config.num_validation_images,
            batch_size=_BATCH,
            device=device,
            prompt=validation.prompt,
            cache=self.scratch,
        )
        generated = generated_features(setting)
        share = range(self.accelerator.process_index, generated.pieces(), self.accelerator.num_processes)
        title = "Validation" if self.accelerator.is_main_process else ""
        for piece in track(share, title, len(share) if title else 0):
            generated(piece)  # kept on disk, where the first process finds it
        self.accelerator.wait_for_everyone()
        value = math.nan
        if self.accelerator.is_main_process:
            score = Fid(generated, reference)
            try:
                for piece in range(score.pieces()):
                    score.update(piece)
                value = score.compute().value or math.nan
            except ValueError:  # features that are not finite: a model that has diverged is no candidate
                value = math.nan
            shutil.rmtree(self.scratch, ignore_errors=True)
        return value

    def _record(self, step: int, value: float) -> None:
        name = self.validation.config.select_by
        best = self._best()
        is_best = not self.best_file.is_file() or value <= best
        if is_best:
            tensors = {
                name: p.detach().cpu().contiguous() for name, p in self.bundle.network.named_parameters() if p.requires_grad
            }
            with replacing(self.best_file) as target:
                save_file(tensors, target, metadata={"step": str(step), "value": repr(value)})
        with self.log_file.open("a") as log:
            log.write(json.dumps({"step": step, name: value if math.isfinite(value) else None, "best": is_best}) + "\n")
        if math.isfinite(value):
            self.accelerator.log({f"{self.phase}/validation_{name}": value}, step=step)
        verdict = "the best so far" if is_best else f"best {best:.4g}"
        console.print(f"{self.phase}, step {step}: {name} {value:.4g} ({verdict})", style="dim", highlight=False)

    def _best(self) -> float:
        """The lowest score so far; infinite where that was none."""
        if not self.best_file.is_file():
            return math.inf
        with safe_open(self.best_file, framework="pt") as opened:
            value = float(opened.metadata()["value"])
        return value if math.isfinite(value) else math.inf


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
