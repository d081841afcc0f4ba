"""``report.html``: what ``evaluate`` found, on one page that needs no network."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from georeg_diffusion.report.curves import LINES, Plot
from georeg_diffusion.report.plots import plots
from georeg_diffusion.report.strips import Strips, data_uri
from georeg_diffusion.report.table import Row, below, change, measures, number

_SECTIONS = (
    ("profile", "Geometry of the encoder", "The map x_t ↦ h at each timestep, at true x_t of real images."),
    ("paths", "Along paths", "Great circles between noises: how straight their images in h are, and how even the pictures."),
    ("spectra", "Singular values", "Of the encoder's Jacobian on the tangent space of the sphere."),
    ("inversion", "Inversion", "From images to noise and back, against the number of steps."),
)

_UNDONE: Mapping[str, Any] = {"value": None, "ci": None, "n": 0, "seed": "", "protocol": "not measured yet"}


def page(
    metrics: Mapping[str, Any],
    rows: Sequence[Row],
    *,
    abouts: Mapping[str, str] | None = None,
    images: Mapping[str, Strips] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The page as HTML: tables, plots and pictures embedded, all text escaped.

    Args:
        metrics: what ``metrics.json`` holds.
        rows: the scores in the order of the table.
        abouts: what each score is, in a line.
        images: samples and slerps of each model.
        notes: what is missing on the page, and why.

    Example:
        >>> from georeg_diffusion.report.page import page
        >>> entry = {"value": 1.5, "ci": [1.4, 1.6], "n": 8, "seed": 0, "protocol": "8 <slerps>", "finished": True}
        >>> text = page({"models": {"mine": {"mrtl": entry}}}, [("mrtl", "mRTL", True)])
        >>> "1.5 ± 0.1" in text, "8 &lt;slerps&gt;" in text, "://" in text
        (True, True, False)
    """
    from jinja2 import Environment, StrictUndefined

    models: Mapping[str, Mapping[str, Any]] = metrics["models"]
    names = list(models)
    asked = [row for row in rows if any(row[0] in scores for scores in models.values())]
    table = [_row(key, label, lower, models, (abouts or {}).get(key, "")) for key, label, lower in asked]
    drawn = plots(models)
    sections = [
        {"title": title, "about": about, "plots": [_embedded(one) for one in drawn[key]]}
        for key, title, about in _SECTIONS
        if drawn[key]
    ]
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        files("georeg_diffusion.report").joinpath("page.html").read_text("utf-8")
    )
    return template.render(
        title=" beside ".join(reversed(names)) or "no model",
        names=names,
        colors=[LINES[i % len(LINES)][0] for i in range(len(names))],
        facts=_facts(metrics),
        table=table,
        tally=_tally(table) if len(names) > 1 else [],
        sections=sections,
        pictures=_pictures(images or {}, names),
        notes=list(notes),
    )


def _row(key: str, label: str, lower: bool | None, models: Mapping[str, Mapping[str, Any]], about: str) -> dict[str, Any]:
    """A line of the table."""
    entries = [models[name].get(key, _UNDONE) for name in models]
    text, verdict = change(entries[0], entries[-1], lower) if len(entries) > 1 else ("", "")
    protocols = [entry["protocol"] for entry in entries]
    cautions = [(entry.get("details") or {}).get("caution") for entry in entries]
    return {
        "key": key,
        "label": label.strip(),
        "is_sub": label.startswith(" "),
        "about": _plain(about),
        "direction": " · ".join(
            [*_direction(lower), *(f"by {name}" for name in measures(models) if key in measures(models)[name])]
        ),
        "values": [number(entry) for entry in entries],
        "missing": [entry["value"] is None for entry in entries],
        "change": text,
        "verdict": verdict,
        "below": [{"text": name, "values": values} for name, values in below(entries)],
        "protocols": [protocols[0]] if len(set(protocols)) == 1 else protocols,
        "caution": next((one for one in cautions if one), ""),
        "measures": [f"n = {entry['n']:,}, seed {entry['seed']}" for entry in entries],
        "intervals": [_interval(entry["ci"]) for entry in entries],
    }


def _direction(lower: bool | None) -> list[str]:
    return [] if lower is None else ["lower is better" if lower else "higher is better"]


def _interval(ci: Sequence[float | None] | None) -> str:
    if ci is None or None in ci:
        return "no interval"
    return f"95 % interval {ci[0]:.5g} to {ci[1]:.5g}"


def _tally(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many scores are better, worse and unclear."""
    verdicts = [row["verdict"] for row in table]
    words = (("better", "better"), ("worse", "worse"), ("unclear", "within the noise"))
    return [{"verdict": key, "count": verdicts.count(key), "word": word} for key, word in words if key in verdicts]


def _facts(metrics: Mapping[str, Any]) -> list[str]:
    """What the page says of the whole run."""
    found = [f"{metrics['protocol']} protocol"] if "protocol" in metrics else []
    found += [f"seed {metrics['seed']}"] if "seed" in metrics else []
    found += [str(metrics["dtype"])] if "dtype" in metrics else []
    found += [f"{name} {number}" for name, number in dict(metrics.get("versions") or {}).items()]
    return found


def _plain(text: str) -> str:
    """The first paragraph of a docstring, without its marks."""
    first = re.split(r"\n\s*\n", text.strip())[0]
    return re.sub(r":\w+:`([^`]*)`", r"\1", " ".join(first.split())).replace("``", "")


def _embedded(one: Plot) -> dict[str, str]:
    # As an image and not as markup: names inside a drawing cannot meet those of another, and nothing in it can run.
    source = f"data:image/svg+xml;base64,{base64.b64encode(one.svg.encode()).decode()}"
    return {"title": one.title, "caption": one.caption, "source": source}


def _pictures(images: Mapping[str, Strips], names: Sequence[str]) -> dict[str, Any]:
    """Samples of each model, and each slerp in all models, one above the other."""
    shown = [name for name in names if name in images]
    if not shown:
        return {"samples": [], "paths": [], "is_small": True}
    size = images[shown[0]].samples.shape[-1]
    return {
        "samples": [{"name": name, "sources": [data_uri(one) for one in images[name].samples]} for name in shown],
        "paths": [
            [{"name": name, "sources": [data_uri(one) for one in images[name].paths[i]]} for name in shown]
            for i in range(len(images[shown[0]].paths))
        ],
        "is_small": size <= 64,
    }
