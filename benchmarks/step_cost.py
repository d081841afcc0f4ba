"""What one training step costs: diffusers' own, Isometric Diffusion's, and the published algorithm's.

    python benchmarks/step_cost.py                              the small U-Net: work, peak bytes, CPU time
    python benchmarks/step_cost.py --network ddpm256 --meta     work and peak bytes alone, counted without computing
    python benchmarks/step_cost.py --output results.json

Work is counted by torch's FlopCounterMode (matrix products and convolutions). Peak bytes are those of all tensor storages
alive at once, parameters left out, as a dispatch mode sees them made and freed; what a kernel uses within itself is not
seen. CPU time is that of the process, the median of several steps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import georeg
from georeg_diffusion.cost import peak_bytes_of, seconds_of, work_of
from georeg_diffusion.experiments import networks
from georeg_diffusion.experiments.steps import steps_of


def cost_table(
    name: str, *, batch: int, repeats: int, is_meta: bool, num_probes: int, only: list[str] | None = None
) -> dict[str, dict[str, float]]:
    """Work, peak bytes and CPU seconds of each step."""
    torch.manual_seed(0)
    device = "meta" if is_meta else "cpu"
    with torch.device(device):
        network = getattr(networks, name)()
    estimator = georeg.Hutchinson(num_probes=num_probes)
    table = {}
    for case, step in steps_of(network, batch, network.config.sample_size, device, estimator).items():
        if only and case not in only:
            continue
        network.zero_grad(set_to_none=True)
        row: dict[str, float] = {"peak_bytes": peak_bytes_of(step), "work": work_of(step)}
        if not is_meta:
            row["cpu_seconds"] = seconds_of(step, repeats=repeats)[0]
        table[case] = row
    return table


def show(table: dict[str, dict[str, float]]) -> None:
    """Print the table, with ratios to its first row."""
    plain = next(iter(table.values()))
    print(f"{'step':<12}{'GFLOP':>12}{'':>8}{'peak MiB':>12}{'':>8}{'CPU s':>10}{'':>8}")
    for case, row in table.items():
        cells = [
            (row["work"] / 1e9, row["work"] / plain["work"]),
            (row["peak_bytes"] / 2**20, row["peak_bytes"] / plain["peak_bytes"]),
        ]
        if "cpu_seconds" in row:
            cells.append((row["cpu_seconds"], row["cpu_seconds"] / plain["cpu_seconds"]))
        print(f"{case:<12}" + "".join(f"{value:12.2f}{ratio:7.2f}×" for value, ratio in cells))


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="small_unet", choices=["small_unet", "ddpm256", "ldm_celebahq"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-probes", type=int, default=1)
    parser.add_argument("--meta", action="store_true", help="count without computing")
    parser.add_argument("--only", nargs="+", choices=["plain", "ours", "published"])
    parser.add_argument("--output", type=Path, help="write the table as JSON")
    options = parser.parse_args()
    table = cost_table(
        options.network,
        batch=options.batch,
        repeats=options.repeats,
        is_meta=options.meta,
        num_probes=options.num_probes,
        only=options.only,
    )
    show(table)
    if options.output:
        options.output.write_text(json.dumps({"network": options.network, "batch": options.batch, "steps": table}, indent=2))


if __name__ == "__main__":
    main()
