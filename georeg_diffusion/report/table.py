"""Scores side by side on the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from georeg_diffusion.evaluation.scorecard import ROWS


def number(entry: dict[str, Any]) -> str:
    """A value with as many digits as its standard error supports."""
    value, error = entry["value"], entry["stderr"]
    return f"{value:.4g}" if not error else f"{value:.4g} ± {error:.1g}"


def comparison(models: dict[str, dict[str, Any]], title: str) -> Table:
    """A table of the models' scores, with the change from the first to the last and an arrow for better."""
    names = list(models)
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", pad_edge=False)
    table.add_column("score")
    for name in names:
        table.add_column(name, justify="right")
    if len(names) > 1:
        table.add_column("change", justify="right")
    for key, label, lower_is_better in ROWS:
        entries = [models[name].get(key) for name in names]
        if any(entry is None for entry in entries):
            continue
        cells = [number(entry) for entry in entries if entry is not None]
        if len(names) > 1:
            cells.append(_change(entries[0]["value"], entries[-1]["value"], lower_is_better))  # type: ignore[index]
        table.add_row(label, *cells)
        if key == "mrtl":
            perfect = [f"{models[name]['mrtl']['perfect']:.4g}" for name in names]
            table.add_row("  a perfect isometry of the sphere has", *perfect, *([""] if len(names) > 1 else []), style="dim")
    return table


def _change(before: float, after: float, lower_is_better: bool | None) -> str:
    relative = f"{(after - before) / abs(before):+.1%}" if before else f"{after - before:+.3g}"
    if lower_is_better is None or before == after:
        return relative
    better = (after < before) == lower_is_better
    return f"[green]{relative} better[/]" if better else f"[red]{relative} worse[/]"
