"""Two processes against one: seconds of a step, what of them communication takes, and memory by formula and as measured.

    OMP_NUM_THREADS=1 python -m benchmarks.two_ranks

Gloo on CPU, one thread a process, the network of the digits. One process takes 16 samples, of which half pay; two under DDP
and FSDP2 take 8 each; and two that do not know of each other take 8 each at the same time, which is what two cost without
communication. Gradients are compared before anything is timed. ``--memory`` measures resident memory instead, with a network
whose parameters are what counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from georeg_diffusion import IsometricDiffusionLoss, IsometryGate
from georeg_diffusion._compat import diffusers
from georeg_diffusion.training.sharding import Shards, whole

BATCH, SIZE = 8, 16
KINDS = ("one", "alone", "ddp", "fsdp2")


def network(channels: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    kinds = ["DownBlock2D"] * (len(channels) - 1), ["UpBlock2D"] * (len(channels) - 1)
    return diffusers.UNet2DModel(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=channels,
        norm_num_groups=8,
        attention_head_dim=16,
        down_block_types=(*kinds[0], "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", *kinds[1]),
    )


def objective_of(net: nn.Module, kind: str, weight: float) -> tuple[IsometricDiffusionLoss, Any]:
    """The objective, and what is called in its place."""
    gate = IsometryGate(weight=weight, skip=0.5)
    scope = "global" if kind in ("ddp", "fsdp2") else "batch"
    objective = IsometricDiffusionLoss(net, diffusers.DDPMScheduler(), gate=gate, scope=scope, momentum=None)
    if kind == "ddp":
        return objective, nn.parallel.DistributedDataParallel(objective)
    if kind == "fsdp2":
        here = SimpleNamespace(
            device=torch.device("cpu"), num_processes=2, autocast=lambda: torch.autocast("cpu", enabled=False)
        )
        return objective, Shards(here, objective)
    return objective, objective


def rows(kind: str, rank: int, batch: int = BATCH) -> tuple[Tensor, Tensor, list[torch.Generator]]:
    """Samples of one process; every other one pays, so that no process waits for one that has more to do."""
    x = torch.randn(2 * batch, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    t = torch.arange(2 * batch) % 2 * 500 + 250 + torch.arange(2 * batch)
    seeds = [torch.Generator().manual_seed(i) for i in range(2 * batch)]
    part = slice(None) if kind == "one" else slice(rank * batch, (rank + 1) * batch)
    return x[part], t[part], seeds[part]


def step_of(called: Any, optimiser: torch.optim.Optimizer, kind: str, rank: int, batch: int = BATCH) -> Callable[[], None]:
    def step() -> None:
        x, t, seeds = rows(kind, rank, batch)
        called(x, t, generator=seeds).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def time_steps(rank: int, _: str, folder: str, repeats: int) -> None:
    """Median seconds of steps of each kind, after a comparison of the gradients of the first one."""
    start(rank, "all", folder)
    found = {}
    for name, weight in (("plain", 0.0), ("isometric", 1e-2)):
        seconds, reference = {}, {}
        for kind in KINDS:
            dist.barrier()
            if kind == "one" and rank:
                continue
            objective, called = objective_of(network((32, 64, 64)), kind, weight)
            x, t, seeds = rows(kind, rank)
            called(x, t, generator=seeds).loss.backward()
            gradients = {name: whole(p.grad).clone() for name, p in objective.network.named_parameters()}
            if kind == "one":
                reference = gradients
            elif kind != "alone" and not rank:
                check(kind, gradients, reference)
            step = step_of(called, torch.optim.Adam(objective.network.parameters(), lr=1e-4), kind, rank)
            step()
            times = []
            for _ in range(repeats):
                if kind == "alone":
                    dist.barrier()
                begun = time.perf_counter()
                step()
                times.append(time.perf_counter() - begun)
            seconds[kind] = statistics.median(times)
        found[name] = seconds
    torch.save(found, f"{folder}/all-{rank}.pt")


def check(kind: str, gradients: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    scale = max(g.abs().max().item() for g in reference.values())
    apart = max((gradients[name] - g).abs().max().item() for name, g in reference.items())
    assert apart < 1e-4 * scale, f"{kind}: gradients differ by {apart:g} of {scale:g}"


def measure(rank: int, kind: str, folder: str, *_: Any) -> None:
    """Bytes of resident memory for each parameter, between steps and at most, beyond what was there before."""
    start(rank, kind, folder)
    process = psutil.Process()
    small = network((16, 16))
    _, called = objective_of(small, kind, 0.0)  # what libraries take once
    step_of(called, torch.optim.Adam(called.parameters()), kind, rank, batch=1)()
    before = process.memory_info().rss
    net = network((256, 512, 512))
    count = sum(p.numel() for p in net.parameters())
    objective, called = objective_of(net, kind, 1e-2)
    average = [p.detach().clone() for p in objective.network.parameters()]  # as EMAModel keeps it
    step = step_of(called, torch.optim.Adam(objective.network.parameters()), kind, rank, batch=1)
    peak = 0
    for _ in range(2):
        with watching(process) as seen:
            step()
        peak = max(seen)
    rest = process.memory_info().rss
    torch.save((count, (rest - before) / count, (peak - before) / count), f"{folder}/{kind}-{rank}.pt")
    del average


class watching:  # noqa: N801 (used as a statement)
    """Resident memory every two milliseconds."""

    def __init__(self, process: psutil.Process) -> None:
        self.process, self.seen, self.done = process, [process.memory_info().rss], threading.Event()
        self.thread = threading.Thread(target=self.look)

    def look(self) -> None:
        while not self.done.wait(0.002):
            self.seen.append(self.process.memory_info().rss)

    def __enter__(self) -> list[int]:
        self.thread.start()
        return self.seen

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def start(rank: int, kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{kind}.meet", rank=rank, world_size=2)


def launched(job: Callable[..., None], kind: str, *arguments: Any) -> list[Any]:
    """What each of two processes left."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(job, (kind, folder, *arguments), nprocs=2)
        return [torch.load(Path(folder) / f"{kind}-{rank}.pt") for rank in range(2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if arguments.memory:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back at once (glibc)
        for kind in ("fsdp2", "ddp"):
            count, rest, peak = launched(measure, kind)[0]
            print(f"{kind}: {count / 1e6:.1f} M parameters, {rest:.1f} bytes each between steps, {peak:.1f} at most")
        return
    first, second = launched(time_steps, "all", arguments.repeats)
    for name in first:
        seconds = {
            kind: statistics.mean(found[name][kind] for found in (first, second) if kind in found[name]) for kind in KINDS
        }
        print(f"{name}: " + ", ".join(f"{kind} {1000 * value:.0f} ms" for kind, value in seconds.items()))
        for kind in ("ddp", "fsdp2"):
            share = 1 - seconds["alone"] / seconds[kind]
            print(f"  {kind}: ×{seconds['one'] / seconds[kind]:.2f} as fast as one process, {share:.1%} in communication")


if __name__ == "__main__":
    main()
