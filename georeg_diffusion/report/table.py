"""Scores side by side on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

Row = tuple[str, str, bool | None]
"""Key of a score, what the table calls it, whether lower is better (None: neither)."""


def stderr_of(entry: Mapping[str, Any]) -> float | None:
    """Half the confidence interval where there is one, else the standard error."""
    interval = entry.get("ci")
    if interval is not None and None not in interval:
        return float(interval[1] - interval[0]) / 2
    error = entry.get("stderr")
    return None if error is None else float(error)


def number(entry: Mapping[str, Any]) -> str:
    """A value with as many digits as its standard error supports, never as a power of ten below 10⁹.

    Example:
        >>> from georeg_diffusion.report.table import number
        >>> number({"value": 1.30703, "ci": [1.27, 1.35]}), number({"value": -1237.0, "ci": [-8237.0, 5763.0]})
        ('1.307 ± 0.04', '-1,200 ± 7,000')
    """
    value, error = entry["value"], stderr_of(entry)
    if value is None:
        return "—"
    if not error:
        return _plain(value, 4)
    if error >= 10:  # a digit more than the error supports, as the other cases have
        value = round(value, 1 - math.floor(math.log10(error)))
    return f"{_plain(value, 4)} ± {_plain(error, 1)}"


def _plain(value: float, digits: int) -> str:
    text = f"{value:.{digits}g}"
    if "e+" not in text or abs(value) >= 1e9:
        return f"{float(text):,.0f}" if abs(value) >= 1000 and "." not in text and "e" not in text else text
    return f"{value if digits > 1 else float(text):,.0f}"


def perfect_of(entry: Mapping[str, Any]) -> float | None:
    """What a perfect isometry has in place of this score, where that is not obvious."""
    value = entry.get("perfect", entry.get("details", {}).get("perfect"))
    return None if value is None else float(value)


def comparison(models: Mapping[str, Mapping[str, Any]], title: str, rows: Sequence[Row]) -> Table:
    """A table of the models' scores, with the change from the first to the last and an arrow for better."""
    names = list(models)
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", pad_edge=False)
    table.add_column("score")
    for name in names:
        table.add_column(Text(name), justify="right")
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
        for text, values in below(entries):
            table.add_row(f"  {text}", *values, *([""] if len(names) > 1 else []), style="dim")
    return table


def below(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Rows under that of a score: its value for a perfect isometry, and its convergence in the number of segments."""
    rows = []
    perfect = [perfect_of(entry) for entry in entries]
    if any(perfect):
        rows.append(("a perfect isometry of the sphere has", ["" if one is None else f"{one:#.4g}" for one in perfect]))
    segments = [entry.get("details", {}).get("segments") or {} for entry in entries]
    for count in sorted({int(key) for one in segments for key in one}, reverse=True)[1:]:
        values = [one.get(str(count)) for one in segments]
        rows.append((f"in {count} segments", ["" if one is None else f"{one:#.4g}" for one in values]))
    return rows


def measures(models: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """What the images were measured by, with the scores that it was used in."""
    found: dict[str, list[str]] = {}
    for scores in models.values():
        for name, entry in scores.items():
            measure = (entry.get("details") or {}).get("measure")
            if measure is not None and name not in found.setdefault(measure, []):
                found[measure].append(name)
    return found


def cautions(models: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What a reader must know before using a score, and why scores are missing, by score; the first model's words."""
    found: dict[str, str] = {}
    for scores in models.values():
        for name, entry in scores.items():
            if entry["value"] is None:
                found.setdefault(name, entry["protocol"])
            elif caution := (entry.get("details") or {}).get("caution"):
                found.setdefault(name, caution)
    return found


def change(before: Mapping[str, Any], after: Mapping[str, Any], lower_is_better: bool | None) -> tuple[str, str]:
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
