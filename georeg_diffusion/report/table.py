"""Scores side by side on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

Row = tuple[str, str, bool | None]
"""Key of a score, what the table calls it, whether lower is better (None: neither)."""


def stderr_of(entry: dict[str, Any]) -> float | None:
    """Half the confidence interval where there is one, else the standard error."""
    interval = entry.get("ci")
    if interval is not None:
        return float(interval[1] - interval[0]) / 2
    error = entry.get("stderr")
    return None if error is None else float(error)


def number(entry: dict[str, Any]) -> str:
    """A value with as many digits as its standard error supports."""
    value, error = entry["value"], stderr_of(entry)
    if value is None:
        return "—"
    return f"{value:.4g}" if not error else f"{value:.4g} ± {error:.1g}"


def perfect_of(entry: dict[str, Any]) -> float | None:
    """What a perfect isometry has in place of this score, where that is not obvious."""
    value = entry.get("perfect", entry.get("details", {}).get("perfect"))
    return None if value is None else float(value)


def comparison(models: dict[str, dict[str, Any]], title: str, rows: Sequence[Row]) -> Table:
    """A table of the models' scores, with the change from the first to the last and an arrow for better."""
    names = list(models)
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", pad_edge=False)
    table.add_column("score")
    for name in names:
        table.add_column(name, justify="right")
    if len(names) > 1:
        table.add_column("change", justify="right")
    for key, label, lower_is_better in rows:
        if any(key not in models[name] for name in names):
            continue
        entries = [models[name][key] for name in names]
        cells: list[str | Text] = [number(entry) for entry in entries]
        if len(names) > 1:
            text, verdict = change(entries[0], entries[-1], lower_is_better)
            cells.append(Text(f"{text} {verdict}".strip(), style=_STYLES[verdict]))
        table.add_row(label, *cells)
        perfect = [perfect_of(entry) for entry in entries]
        if any(perfect):
            texts = ["" if value is None else f"{value:.4g}" for value in perfect]
            table.add_row("  a perfect isometry of the sphere has", *texts, *([""] if len(names) > 1 else []), style="dim")
    return table


def change(before: dict[str, Any], after: dict[str, Any], lower_is_better: bool | None) -> tuple[str, str]:
    """From before to after in percent with an arrow, and ``"better"``, ``"worse"``, ``"unclear"`` or nothing.

    Unclear is a difference within the two intervals' width, the root of the sum of their squares.
    """
    a, b = before["value"], after["value"]
    if a is None or b is None:
        return "", ""
    relative = f"{(b - a) / a:+.1%}" if a > 0 else f"{b - a:+.3g}"
    if a == b or lower_is_better is None:
        return relative, ""
    arrow = "↓" if b < a else "↑"
    width = ((stderr_of(before) or 0.0) ** 2 + (stderr_of(after) or 0.0) ** 2) ** 0.5
    if abs(b - a) <= width:
        return f"{arrow} {relative}", "unclear"
    return f"{arrow} {relative}", "better" if (b < a) == lower_is_better else "worse"


_STYLES = {"better": "green", "worse": "red", "unclear": "dim", "": ""}
