"""Training of an attribute classifier (App. D): one independent logit for each attribute, cross-entropy on each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from georeg_diffusion.data.attributes import AttributeImages
from georeg_diffusion.data.images import TrainingOrder
from georeg_diffusion.errors import RunError
from georeg_diffusion.evaluation.classifier import KIND, Classifier, assemble, build
from georeg_diffusion.files import replacing
from georeg_diffusion.progress import console, progress, track


def train_attribute_classifier(
    images: AttributeImages,
    *,
    architecture: str = "resnext50_32x4d",
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    held_out: float = 0.1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = 0,
    checkpoint: Path | None = None,
    checkpointing_steps: int = 500,
) -> Classifier:
    """Train a classifier with one logit per attribute by binary cross-entropy, AdamW and a one-cycle step size.

    A share of the images is held out; the accuracy is theirs. Order, flips and dropout follow from the seed and the
    step alone, so that a run that was interrupted ends with the same weights.

    Args:
        images: with their attributes.
        architecture: see :func:`georeg_diffusion.evaluation.classifier.build`.
        steps: optimiser steps.
        batch_size: images per step.
        learning_rate: at its peak.
        held_out: share of images that is not trained on.
        seed: of weights, split, order and flips.
        device: where to compute.
        workers: processes that load images.
        checkpoint: file to go on from, and to write every ``checkpointing_steps`` steps.
        checkpointing_steps: between two of them.

    Raises:
        RunError: too few images for a batch and a held-out one; a checkpoint that does not fit.
    """
    order = np.random.default_rng(seed).permutation(len(images))
    num_held = max(round(held_out * len(images)), 1)
    held, kept = order[:num_held], order[num_held:]
    if len(kept) < 2:
        raise RunError(
            f"--train-data-dir: {len(images)} images are too few to train on and to hold some out; expected 3 or more"
        )
    batch_size = min(batch_size, len(kept))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        features, head = build(
            architecture, channels=images.channels, resolution=images.resolution, outputs=len(images.names)
        )
        network = nn.ModuleDict({"features": features, "head": head}).to(device).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(steps, 2))
        parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
        first = _resume(checkpoint, parts)
        if first:
            console.print(f"Going on from step {first}", style="dim")
        draws = TrainingOrder(len(kept), seed, first=first * batch_size, stop=steps * batch_size)
        loader = DataLoader(_Draws(images, kept, seed), batch_size, sampler=draws, num_workers=workers)
        with progress("Attribute classifier", steps, completed=first) as bar:
            for step, (pixels, labels) in enumerate(loader, start=first):
                torch.manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1)[0]))
                logits = head(features(pixels.to(device)))
                loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(device).float())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                if checkpoint is not None and (step + 1) % checkpointing_steps == 0 and step + 1 < steps:
                    _save(checkpoint, parts, step + 1)
                bar.advance(f"loss {float(loss.detach()):.4f}" if step % 10 == 0 else None)
    network.eval()
    right = _accuracies(images, held, features, head, batch_size, device)
    truth = images.labels[torch.from_numpy(held)].double().mean(0) if images.labels is not None else right
    config: dict[str, Any] = {
        "_class_name": KIND,
        "architecture": architecture,
        "channels": images.channels,
        "resolution": images.resolution,
        "names": list(images.names),
        "exclusive": False,
        "accuracy": float(right.mean()),
        "accuracies": dict(zip(images.names, right.tolist(), strict=True)),
        "majority": dict(zip(images.names, torch.maximum(truth, 1 - truth).tolist(), strict=True)),
        "data": (
            f"a {architecture} of {len(images.names)} attributes of {images.name} at {images.resolution}² "
            f"({float(right.mean()):.1%} of the attributes of {len(held):,} held-out images right)"
        ),
        "training": {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed},
    }
    return assemble(config, features, head)


class _Draws(Dataset[tuple[Tensor, Tensor]]):
    """Images by (draw, index), flipped as the seed and the draw's number say."""

    def __init__(self, images: AttributeImages, kept: np.ndarray, seed: int) -> None:
        self.images, self.kept, self.seed = images, kept, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        draw, row = key
        index = int(self.kept[row])
        assert self.images.labels is not None
        return self.images.image(index, np.random.default_rng((self.seed, draw, 1))), self.images.labels[index]


@torch.no_grad()
def _accuracies(
    images: AttributeImages, held: np.ndarray, features: Any, head: Any, batch_size: int, device: torch.device | str
) -> Tensor:
    """Share of held-out images on which each attribute is right ``(K,)``."""
    assert images.labels is not None
    right = torch.zeros(len(images.names), dtype=torch.float64)
    chunks = torch.from_numpy(held).split(batch_size)
    for rows in track(chunks, "Held-out images", len(chunks)):
        decided = head(features(images.batch(rows).to(device))).cpu() > 0
        right += (decided == images.labels[rows].bool()).sum(0)
    return right / len(held)


def _save(file: Path, parts: dict[str, Any], step: int) -> None:
    with replacing(file) as scratch:
        torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step}, scratch)


def _resume(file: Path | None, parts: dict[str, Any]) -> int:
    """The step to go on from, 0 without a checkpoint."""
    if file is None or not file.is_file():
        return 0
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return int(state["step"])
    except Exception as error:  # a damaged file makes the unpickler raise almost anything
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"cannot resume from {file}: {reason}; delete it, or pass --overwrite to start again") from error
