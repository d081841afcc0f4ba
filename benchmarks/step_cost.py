"""What one training step costs: diffusers' own, Isometric Diffusion's, and the published algorithm's.

    python benchmarks/step_cost.py                              the small U-Net: work, peak bytes, time
    python benchmarks/step_cost.py --network ddpm256 --meta     work and peak bytes alone, counted without computing
    python benchmarks/step_cost.py --device cuda --autocast bfloat16 --compile
    python benchmarks/step_cost.py --output results.json

Work is counted by torch's FlopCounterMode (matrix products and convolutions). Peak bytes are those of all tensor storages
alive at once, parameters left out, as a dispatch mode sees them made and freed; what a kernel uses within itself is not
seen. Time is that on the wall, the median of several steps, which take turns. How many times as long the published
algorithm takes as ours is the median over the turns, with its quartiles: what else the machine does meets both alike.

On a GPU peak bytes are the allocator's, and time is that between two synchronisations; "ours, no Triton" has the rules in
plain PyTorch (GEOREG_TRITON=0), "plain, compiled" a network under torch.compile.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import georeg
from georeg.kernels.triton.support import SWITCH
from georeg_diffusion.cost import Step, peak_bytes_of, times_of, work_of
from georeg_diffusion.experiments import networks
from georeg_diffusion.experiments.steps import steps_of


def cost_table(
    name: str,
    *,
    batch: int,
    repeats: int,
    device: str,
    num_probes: int,
    only: list[str] | None = None,
    autocast: torch.dtype | None = None,
    is_compiled: bool = False,
) -> dict[str, dict[str, Any]]:
    """Work, peak bytes and seconds of each step, which take turns."""
    torch.manual_seed(0)
    with torch.device(device):
        network = getattr(networks, name)()
    size, estimator = network.config.sample_size, georeg.Hutchinson(num_probes=num_probes)
    steps = steps_of(network, batch, size, device, estimator)
    if device == "cuda":
        steps["ours, no Triton"] = without_triton(steps["ours"])
    if is_compiled:
        compiled = torch.compile(copy.deepcopy(network))
        steps["plain, compiled"] = steps_of(compiled, batch, size, device, estimator)["plain"]
    steps = {case: under(step, device, autocast) for case, step in steps.items() if not only or case in only}
    table: dict[str, dict[str, Any]] = {}
    for case, step in steps.items():
        network.zero_grad(set_to_none=True)
        if device == "cuda":
            step().backward()  # Triton and cuDNN choose and compile; gradients are made
        table[case] = {"peak_bytes": cuda_peak(step) if device == "cuda" else peak_bytes_of(step)}
        if "compiled" not in case:  # of whose products the counter does not see all
            table[case]["work"] = work_of(step)
    if device != "meta":
        clock = time.perf_counter if device == "cpu" else synchronised
        runs = [trained(step, network) for step in steps.values()]
        for row, times in zip(table.values(), times_of(*runs, repeats=repeats, clock=clock), strict=True):
            row |= {"seconds": statistics.median(times), "times": times}
    return table


def trained(step: Step, network: torch.nn.Module) -> Callable[[], None]:
    """A step with its backward pass, of which the gradients are new."""

    def run() -> None:
        network.zero_grad()
        step().backward()

    return run


def quotient(dividend: list[float], divisor: list[float]) -> tuple[float, float, float]:
    """Median and quartiles of a quotient of times taken in turns."""
    lower, median, upper = statistics.quantiles([a / b for a, b in zip(dividend, divisor, strict=True)], method="inclusive")
    return median, lower, upper


def without_triton(step: Step) -> Step:
    def run() -> Tensor:
        with switched(SWITCH, "0"):
            return step()

    return run


def switched(name: str, value: str) -> AbstractContextManager[object]:
    """An environment variable, for a while."""
    return mock.patch.dict(os.environ, {name: value})


def under(step: Step, device: str, dtype: torch.dtype | None) -> Step:
    """A step under autocast, its backward pass outside, as torch has it."""

    def run() -> Tensor:
        with nullcontext() if dtype is None else torch.autocast(device, dtype):
            return step()

    return run


def synchronised() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def cuda_peak(step: Step) -> int:
    """What a step takes of a GPU's memory beyond what is there already, gradients of the parameters included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step().backward()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def show(table: dict[str, dict[str, Any]]) -> None:
    """Print the table, with ratios to its first row."""
    plain = next(iter(table.values()))
    print(f"{'step':<16}{'GFLOP':>12}{'':>8}{'peak MiB':>12}{'':>8}{'s':>10}")
    for case, row in table.items():
        cells = ""
        for key, unit in (("work", 1e9), ("peak_bytes", 2**20), ("seconds", 1)):
            if key in row:
                cells += f"{row[key] / unit:12.{3 if key == 'seconds' else 2}f}{row[key] / plain[key]:7.2f}×"
            elif key == "work":
                cells += " " * 20
        print(f"{case:<16}{cells}")
    times = [table.get(case, {}).get("times", ()) for case in ("published", "ours")]
    if min(map(len, times)) > 1:
        median, lower, upper = quotient(*times)
        print(f"published ÷ ours: {median:.2f}, quartiles {lower:.2f} and {upper:.2f} of {len(times[0])} turns")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="small_unet", choices=["small_unet", "ddpm256", "ldm_celebahq"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-probes", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "meta"])
    parser.add_argument("--meta", action="store_const", const="meta", dest="device", help="count without computing")
    parser.add_argument("--autocast", choices=["bfloat16", "float16"], help="mixed precision")
    parser.add_argument("--compile", action="store_true", help="also time a plain step under torch.compile")
    parser.add_argument("--only", nargs="+", choices=["plain", "ours", "published", "ours, no Triton", "plain, compiled"])
    parser.add_argument("--output", type=Path, help="write the table as JSON")
    options = parser.parse_args()
    table = cost_table(
        options.network,
        batch=options.batch,
        repeats=options.repeats,
        device=options.device,
        num_probes=options.num_probes,
        only=options.only,
        autocast=getattr(torch, options.autocast) if options.autocast else None,
        is_compiled=options.compile,
    )
    where = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    print(f"{options.network}, batch {options.batch}, {where}, torch {torch.__version__}, {options.autocast or 'float32'}")
    show(table)
    if options.output:
        kept = {key: getattr(options, key) for key in ("network", "batch", "autocast", "num_probes", "repeats")}
        options.output.write_text(
            json.dumps({**kept, "device": where, "torch": torch.__version__, "steps": table}, indent=2)
        )


if __name__ == "__main__":
    main()
