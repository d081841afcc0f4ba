"""Trainings of the toy autoencoders, each once: kept by a hash of all that they follow from."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

from georeg_diffusion.experiments.sphere_autoencoder import Trained, networks, train_autoencoder
from georeg_diffusion.experiments.sphere_region import Region
from georeg_diffusion.files import replacing
from georeg_diffusion.progress import progress

K = TypeVar("K")


def train_all(trainings: Mapping[K, Mapping[str, Any]], *, steps: int, folder: Path) -> dict[K, Trained]:
    """Train several, with one bar, but those that an earlier or interrupted run has finished.

    Args:
        trainings: what :func:`train_autoencoder` takes beside ``steps`` and ``tick``, by any key.
        steps: of each.
        folder: where they are kept, shared between experiments.
    """
    found: dict[K, Trained] = {}
    with progress("training autoencoders", steps * len(trainings)) as bar:
        for key, given in trainings.items():
            file = folder / f"{_hash({**given, 'steps': steps})}.pt"
            kept = _read(file)
            if kept is None:
                kept = train_autoencoder(**given, steps=steps, tick=bar.advance)
                _write(kept, file)
            else:
                bar.advance(steps=steps)
            found[key] = kept
    return found


def _hash(given: Mapping[str, Any]) -> str:
    record = {"region": Region(), "estimator": "exact", "probe_seed": 0, **given}
    if record["metric"] == "none":  # then there is nothing to estimate
        record |= {"estimator": "exact", "probe_seed": 0}
    elif record["estimator"] == "exact":
        record["probe_seed"] = 0
    text = json.dumps([version("georeg"), record], sort_keys=True, default=asdict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write(trained: Trained, file: Path) -> None:
    parts = {"encoder": trained.encoder.state_dict(), "decoder": trained.decoder.state_dict(), "curve": trained.curve}
    with replacing(file) as scratch:
        torch.save(parts, scratch)


def _read(file: Path) -> Trained | None:
    """None where there is none, or a damaged one."""
    try:
        parts = torch.load(file, weights_only=True)
        encoder, decoder = networks()
        encoder.load_state_dict(parts["encoder"])
        decoder.load_state_dict(parts["decoder"])
        curve = tuple((int(step), float(error), float(loss)) for step, error, loss in parts["curve"])
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return Trained(encoder.requires_grad_(False), decoder.requires_grad_(False), curve)
