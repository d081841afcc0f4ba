"""From a run of pytest-benchmark to one table, one JSON file and one picture.

    python benchmarks/report.py outputs/benchmarks.json        (make bench runs both)

Ratios are to the first case of each group, timed in the same run; they are what can be compared between machines.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
Groups = dict[str, list[dict[str, Any]]]


def groups_of(raw: dict[str, Any]) -> Groups:
    """Case, seconds (median), work and peak bytes by group, with ratios to the group's first case."""
    groups: Groups = {}
    for item in raw["benchmarks"]:
        info, stats = item["extra_info"], item["stats"]
        row = {"case": info.get("case") or _called(item), "seconds": stats["median"], "rounds": stats["rounds"]}
        row |= {key: value for key, value in info.items() if isinstance(value, (int, float))}
        groups.setdefault(item["group"], []).append(row)
    for rows in groups.values():
        for row in rows:
            for key in ("seconds", "work", "peak_bytes"):
                if rows[0].get(key) and row.get(key) is not None:
                    row[f"{key}_ratio"] = row[key] / rows[0][key]
    return groups


def _called(item: dict[str, Any]) -> str:
    return str(item["extra_info"].get("estimator") or item["name"])


def crossovers(groups: Groups) -> list[str]:
    """Between which dimensions Hutchinson with 8 probes begins to take less time than the exact Jacobian."""
    points = []
    for rows in groups.values():
        times = {row["case"]: row["seconds"] for row in rows}
        sizes = [row["dimension"] for row in rows if "dimension" in row]
        exact, eight = times.get("exact"), times.get("Hutchinson, 8 probes")
        if exact and eight and sizes:
            points.append((sizes[0], exact / eight))
    lines = [f"exact ÷ 8-probe Hutchinson at d = {d}: {ratio:.2f}×" for d, ratio in sorted(points)]
    ordered = sorted(points)
    for (d, a), (e, b) in itertools.pairwise(ordered):
        if (a - 1) * (b - 1) <= 0 and a != b:
            lines.append(f"crossover between d = {d} and d = {e}")
    return lines


def turns(groups: Groups) -> list[str]:
    """How many times as long as ours a case takes that was timed in turns with ours."""
    return [
        f"{row['case']} ÷ ours, in turns: {row['over_ours']:.2f}×, quartiles {row['over_ours_lower']:.2f} and "
        f"{row['over_ours_upper']:.2f}"
        for rows in groups.values()
        for row in rows
        if "over_ours" in row
    ]


def show(groups: Groups, console: Console) -> None:
    """One table; a group's name stands in a row of its own, across the columns that follow."""
    table = Table(
        title="Median time, counted work, peak memory; ratios to each group's first case", box=None, pad_edge=False
    )
    table.add_column("case", no_wrap=True)
    for heading in ("time", "", "GFLOP", "", "peak MiB", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, rows in groups.items():
        table.add_row()
        table.add_row(f"[bold]{name}[/bold]")
        for row in rows:
            cells = [_seconds(row["seconds"]), _ratio(row, "seconds")]
            cells += [f"{row['work'] / 1e9:.3g}" if "work" in row else "", _ratio(row, "work")]
            cells += [f"{row['peak_bytes'] / 2**20:.1f}" if "peak_bytes" in row else "", _ratio(row, "peak_bytes")]
            table.add_row("  " + row["case"], *cells)
    console.print(table)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def _ratio(row: dict[str, Any], key: str) -> str:
    return f"{row[f'{key}_ratio']:.2f}×" if f"{key}_ratio" in row else ""


def plot(groups: Groups, target: Path) -> None:
    """The ratios, one panel a group, as distances from 1."""
    from matplotlib.figure import Figure

    shown = {name: rows for name, rows in groups.items() if "peak_bytes_ratio" in rows[0]}
    if not shown:
        return
    heights = [len(rows) + 1.4 for rows in shown.values()]
    figure = Figure(figsize=(9, 0.46 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights).flatten()
    kinds = (("seconds", "time", "#1f4e9c"), ("work", "work", "#9db8d9"), ("peak_bytes", "peak memory", "#E69F00"))
    for ax, (name, rows) in zip(axes, shown.items(), strict=True):
        for offset, (key, label, color) in zip((-0.22, 0, 0.22), kinds, strict=True):
            found = [(i + offset, row[f"{key}_ratio"]) for i, row in enumerate(rows) if f"{key}_ratio" in row]
            if found:
                at, values = zip(*found, strict=True)
                ax.hlines(at, 1, values, color=color, lw=3)
                ax.plot(values, at, "o", color=color, ms=5, label=label)
                for height, value in found:
                    text = f"{value:.2g}×" if value < 10 else f"{value:.0f}×"
                    ax.annotate(text, (value, height), (-6 if value < 1 else 6, 0), textcoords="offset points",
                                ha="right" if value < 1 else "left", va="center", fontsize=7)  # fmt: skip
        ax.set_yticks(range(len(rows)), [row["case"] for row in rows], fontsize=8)
        ax.invert_yaxis()
        ax.set_xscale("log")
        ax.set_xlim(1.5e-3, 2e3)
        ax.axvline(1, color="0.4", lw=0.8)
        ax.set_title(name, fontsize=10, loc="left")
        ax.tick_params(axis="x", labelsize=8)
        ax.grid(axis="x", alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[-1].get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside upper right", ncols=3)
    axes[-1].set_xlabel("ratio to the first row (logarithmic; less is better)")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="what pytest --benchmark-json wrote")
    parser.add_argument("--name", default="cpu", help="of the files in benchmarks/results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    raw = json.loads(options.raw.read_text())
    groups, machine = groups_of(raw), raw["machine_info"]
    console = Console(width=max(Console().width, 116))
    show(groups, console)
    found = crossovers(groups)
    for line in (*found, *turns(groups)):
        console.print(line)
    options.results.mkdir(parents=True, exist_ok=True)
    protocol = {
        "torch": machine["torch"], "python": machine["python_version"],
        "threads": raw["benchmarks"][0]["extra_info"].get("threads"),
        "device": machine["machine"] if options.name == "cpu" else machine["accelerator"],
        "time": "median of the rounds, after those in which work and peak are counted",
    }  # fmt: skip
    target = options.results / f"{options.name}.json"
    target.write_text(json.dumps({"protocol": protocol, "crossover": found, "groups": groups}, indent=1) + "\n")
    plot(groups, options.results / f"{options.name}.png")
    console.print(f"wrote {target} and {target.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
