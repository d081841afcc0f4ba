"""Whether loading keeps up with training: CPU time of preparing a batch beside that of a training step, at 64 × 64.

    python benchmarks/data_loading.py                 pictures of 178 × 218 as JPEG, as CelebA has them
    python benchmarks/data_loading.py --batch 8 --size 512

The step is that of the small U-Net of the cost table, base and isometric. Times are CPU seconds of one thread for a batch,
the median of several. With W processes that load, a batch takes 1/W of its time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from skimage.data import astronaut

from georeg_diffusion import IsometricDiffusionLoss, IsometryGate
from georeg_diffusion._compat import diffusers
from georeg_diffusion.data.folder import ImageFolder
from georeg_diffusion.data.images import Images
from georeg_diffusion.data.latents import Latents
from georeg_diffusion.data.rows import write_rows
from georeg_diffusion.experiments import networks

RESOLUTION = 64


def pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEGs cut from a photograph at random places."""
    photograph, rng = Image.fromarray(astronaut()), np.random.default_rng(0)
    for i in range(count):
        left, top, side = *rng.integers(0, 200, 2).tolist(), int(rng.integers(150, 300))
        photograph.crop((left, top, left + side, top + side)).resize(size).save(folder / f"{i:04d}.jpg", quality=90)


def latents(folder: Path, count: int) -> Images:
    """Latents of 4 × 32 × 32 and of the mirror image, as Stable Diffusion has them at 256 × 256."""

    class Named(Images):
        name, channels, resolution, random_flip = "random", 3, 256, True

        def __len__(self) -> int:
            return count

        def image(self, index: int, rng: Any = None) -> torch.Tensor:
            return torch.zeros(3, 256, 256)

    return Latents(Named(), write_rows(folder, count, lambda rows: {"latents": torch.randn(len(rows), 2, 4, 32, 32)}))


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds."""
    work()
    times = []
    for _ in range(repeats):
        before = time.process_time()
        work()
        times.append(time.process_time() - before)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, nargs="+", default=[178, 218], help="of the pictures, width and height")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-steps", action="store_true", help="leave out the training steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    width, height = options.size if len(options.size) == 2 else options.size * 2
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "jpeg").mkdir()
        pictures(Path(place) / "jpeg", 4 * options.batch, (width, height))
        rng = np.random.default_rng(0)
        for name, images in (
            (f"a batch of {options.batch} JPEGs of {width} × {height}", ImageFolder(Path(place) / "jpeg", RESOLUTION)),
            (f"a batch of {options.batch} cached latents of 4 × 32 × 32", latents(Path(place) / "few", 500)),
            ("the same from ten times as many", latents(Path(place) / "many", 5000)),
        ):
            before = psutil.Process().memory_info().rss

            def prepare(images: Images = images) -> None:
                for index in rng.integers(0, len(images), options.batch):
                    images.image(int(index), rng)

            took = seconds(prepare, 10 * options.repeats)
            grown = (psutil.Process().memory_info().rss - before) / 2**20
            print(f"{took:9.4f} s  {name} (memory + {grown:.0f} MiB)")
    if options.no_steps:
        return
    network = networks.small_unet()
    x0 = torch.randn(options.batch, network.config.in_channels, RESOLUTION, RESOLUTION)
    for name, weight in (("a plain training step", 0.0), ("an isometric training step, p = 1/2", 1e-2)):
        objective = IsometricDiffusionLoss(network, diffusers.DDPMScheduler(), gate=IsometryGate(weight))
        steps = torch.arange(options.batch) * 1000 // options.batch

        def step(objective: IsometricDiffusionLoss = objective, steps: torch.Tensor = steps) -> None:
            network.zero_grad()
            objective(x0, steps).loss.backward()

        print(f"{seconds(step, 1):9.4f} s  {name}")


if __name__ == "__main__":
    main()
