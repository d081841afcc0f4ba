"""Train for many steps and watch what must stay flat: resident memory, open file handles, threads, size of the folder.

    python benchmarks/soak.py --steps 500

Images come from files, checkpoints and log entries are written all the time. The first fifth of the run is warm-up; after it
memory may grow by ``--allowed-mib``, and the number of handles and threads not at all.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from georeg_diffusion.objective import IsometricDiffusionLoss
from georeg_diffusion.training.config import TrainConfig
from georeg_diffusion.training.run import run


def make_images(folder: Path, count: int = 40) -> None:
    """Files to read, every one of them many times."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (12, 14, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def soak(folder: Path, *, steps: int, checkpointing_steps: int = 20) -> dict[str, list[float]]:
    """A run that is measured at every step: memory in MiB, handles, threads, live tensors."""
    make_images(folder / "images")
    process = psutil.Process()
    seen: dict[str, list[float]] = {"memory_mib": [], "handles": [], "threads": [], "tensors": []}
    forward = IsometricDiffusionLoss.forward

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(seen["memory_mib"]) % 50 == 0:
            gc.collect()
            seen["tensors"].append(sum(issubclass(type(entry), torch.Tensor) for entry in gc.get_objects()))
        seen["memory_mib"].append(process.memory_info().rss / 2**20)
        seen["handles"].append(len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else process.num_fds())
        seen["threads"].append(threading.active_count())
        return forward(self, *args, **kwargs)

    IsometricDiffusionLoss.forward = watched  # type: ignore[method-assign]
    try:
        run(
            TrainConfig(
                train_data_dir=folder / "images",
                output_dir=folder / "out",
                resolution=8,
                train_batch_size=4,
                max_train_steps=steps,
                checkpointing_steps=checkpointing_steps,
                logging_steps=1,
                evaluate=False,
                cpu=True,
            )
        )
    finally:
        IsometricDiffusionLoss.forward = forward  # type: ignore[method-assign]
    return seen


def growth(seen: dict[str, list[float]]) -> dict[str, float]:
    """By how much each grew after the first fifth: median of the last fifth less that of the second."""
    found = {}
    for name, values in seen.items():
        fifth = max(len(values) // 5, 1)
        found[name] = float(np.median(values[-fifth:]) - np.median(values[fifth : 2 * fifth]))
    return found


def main() -> None:
    """Run it, print the growth as JSON and fail where something grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--allowed-mib", type=float, default=8.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen = soak(Path(folder), steps=options.steps)
        left = sorted(path.name for path in Path(folder, "out", "checkpoints", "isometric").iterdir())
    found = growth(seen)
    print(
        json.dumps(
            {"steps": options.steps, "growth": found, "peak_mib": max(seen["memory_mib"]), "checkpoints": left}, indent=2
        )
    )
    grown = found["memory_mib"] > options.allowed_mib or any(found[name] > 0 for name in ("handles", "threads", "tensors"))
    raise SystemExit(1 if grown else 0)


if __name__ == "__main__":
    main()
