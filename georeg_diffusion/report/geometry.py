"""The geometry of frozen models against t: a table and a picture of what ``inspect`` measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from georeg_diffusion.report.pictures import _figure, _save
from georeg_diffusion.report.table import number

_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_PERFECT = {"color": "0.35", "lw": 0.9, "ls": "--"}
_Details = dict[str, Any]


def skip_of(details: _Details) -> float | None:
    """The suggested p, or None."""
    skip = details.get("suggested_skip")
    return None if skip is None else skip["value"]


def geometry_table(name: str, details: _Details) -> Table:
    """One row for each timestep, those that the suggested p leaves alone dimmed."""
    d, p, profile = details["dimension"], skip_of(details), details["profile"]
    counts = {entry["images"] for entry in profile}
    images = f", {next(iter(counts)):,} images" if len(counts) == 1 else ""
    title = f"Geometry of {name} (± standard error{images})"
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=SIMPLE_HEAD)
    table.pad_edge, table.padding = False, (0, 1, 0, 0)
    # Heading, what a scaled isometry of the sphere has, and the cell of a timestep.
    columns: list[tuple[str, str, Callable[[_Details], str]]] = [
        ("t", "perfect", lambda entry: str(entry["timestep"])),
        ("noise", "", lambda entry: f"{entry['noise']:.3f}"),
        ("isometry", "1", lambda entry: _cell(entry["isometry"])),
        ("conformality", "1", lambda entry: _cell(entry["conformality"])),
        ("rank", f"{d:,}", lambda entry: _mean(entry["effective_rank"], ".3g")),
        ("σ₁/c … σ_k/c", "1", _spectrum),
        ("‖x_t‖/r_t", "1", lambda entry: _mean(entry.get("radius_ratio"), ".3f")),
        ("images", "", lambda entry: f"{entry['images']:,}"),
    ]
    if not any(entry["singular_values"] for entry in profile):
        columns = [column for column in columns if not column[0].startswith("σ")]
    if images:
        columns.pop()
    for heading, _, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row(*(perfect for _, perfect, _ in columns), style="italic", end_section=True)
    for entry in profile:
        is_left_alone = p is not None and entry["fraction"] <= p
        table.add_row(*(cell(entry) for _, _, cell in columns), style="dim" if is_left_alone else "")
    return table


def advice(details: _Details, value: float | None, ci: list[float] | None) -> str:
    """What to make of it, in two sentences: the suggested p, and the loss above it."""
    skip, p = details.get("suggested_skip"), skip_of(details)
    if skip is None:
        lines = ["No p is suggested: x_t is noise without data here; name real images by --reference."]
    elif p is None:
        lines = [
            f"No p is suggested: the data (E‖x₀‖²/n = {skip['energy']['value']:.3g}) adds more than {skip['tolerance']:.0%} "
            "to ‖x_t‖² at every t."
        ]
    else:
        between = "" if skip["low"] in (None, p) and skip["high"] in (None, p) else f" ({skip['low']:g} to {skip['high']:g})"
        energy = skip["energy"]["value"]
        lines = [
            f"Suggested: --isometry-skip {p:g}{between}. For t > {p:g} T the data (E‖x₀‖²/n = {energy:.3g}) "
            f"adds at most {skip['tolerance']:.0%} to ‖x_t‖², so x_t is near the sphere of radius r_t."
        ]
    if value is not None:
        error = "" if ci is None else f" ± {(ci[1] - ci[0]) / 3.92:.1g}"
        above = "There the" if p is not None else "For t > T/2 the"
        little = "; there is little left to gain" if value < _LITTLE else ""
        lines.append(f"{above} isometry loss is {value:.4g}{error} in the mean (1 is perfect){little}.")
    unconverged = sum(entry["unconverged"] or 0 for entry in details["profile"])
    if unconverged:
        lines.append(f"{unconverged} of the largest singular values did not converge; they are lower bounds.")
    return "\n".join(lines)


_LITTLE = 1.1


def _cell(entry: _Details | None) -> str:
    return "—" if entry is None else number(entry)


def _mean(entry: _Details | None, form: str) -> str:
    return "—" if entry is None or entry["value"] is None else f"{entry['value']:{form}}"


def _spectrum(entry: _Details) -> str:
    values = [one["value"] for one in entry["singular_values"] or []]
    if not values:
        return "—"
    ends = f"{values[0]:.3g}" if len(values) == 1 else f"{values[0]:.3g} … {values[-1]:.3g}"
    return f"≥ {ends}" if entry["unconverged"] else ends


def geometry_picture(models: dict[str, _Details], target: Path, *, title: str) -> None:
    """Four panels against t/T: loss and conformality, largest singular values, effective rank, ‖x_t‖/r_t.

    Args:
        models: what was measured, by name.
        target: the picture.
        title: over it.
    """
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    figure = _figure(figsize=(10.5, 7.2))
    (loss, top), (rank, radius) = figure.subplots(2, 2, sharex=True)
    details = list(models.values())[-1]
    p = skip_of(details)
    for i, (name, one) in enumerate(models.items()):
        color = _LINES[i % len(_LINES)]
        _line(loss, one, "isometry", color, f"{name}: isometry loss")
        _line(loss, one, "conformality", color, f"{name}: conformality", ls=":", alpha=0.8)
        _bundle(top, one, color, name)
        _line(rank, one, "effective_rank", color, name, scale=1 / max(one["dimension"], 1))
    loss.set(title="Isometry and conformality (95 % interval)", ylabel="normalised, 1 is perfect", yscale="log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    loss.yaxis.set_minor_formatter(NullFormatter())
    top.set(title="Largest singular values of J over its scale c", ylabel=r"$\sigma_1/c$ (dots) to $\sigma_k/c$")
    rank.set(title="Effective rank", ylabel=f"share of the {details['dimension']:,} directions", ylim=(0, 1.05))
    for ax in (loss, top, rank):
        ax.axhline(1, **_PERFECT)
    _radius(radius, details)
    for ax in (loss, top, rank, radius):
        if p:
            ax.axvspan(0, p, color="0.5", alpha=0.12, lw=0)
        ax.set_xlim(0, 1)
        ax.grid(alpha=0.25)
        handles, labels = ax.get_legend_handles_labels()
        if handles:
            known = dict(zip(labels, handles, strict=True))
            ax.legend(known.values(), known, fontsize=8, framealpha=0.8, edgecolor="none")
    grey = f". Grey: left alone with the suggested p = {p:g}" if p else ""
    figure.supxlabel(f"t/T, from data (0) to noise (1){grey}", fontsize=10)
    figure.suptitle(title, fontsize=12)
    _save(figure, target)


def _points(details: _Details, key: str) -> list[tuple[float, float, float]]:
    """(t/T, value, half interval) of the timesteps where there is one."""
    out = []
    for entry in details["profile"]:
        one = entry.get(key)
        if one is not None and one["value"] is not None:
            out.append((entry["fraction"], one["value"], 1.96 * (one.get("stderr") or 0.0)))
    return out


def _line(ax: Any, details: _Details, key: str, color: str, label: str, *, scale: float = 1.0, **style: Any) -> None:
    points = _points(details, key)
    if not points:
        return
    x, y, half = zip(*points, strict=True)
    values = [scale * one for one in y]
    if style:
        ax.plot(x, values, color=color, lw=1.3, label=label, **style)
        return
    ax.errorbar(x, values, [scale * one for one in half], fmt="o-", ms=4, lw=1.5, capsize=2, color=color, label=label)


def _bundle(ax: Any, details: _Details, color: str, name: str) -> None:
    """σ₁ to σ_k over c: the first with dots, the rest as thin lines in the shade between."""
    entries = [entry for entry in details["profile"] if entry["singular_values"]]
    if not entries:
        return
    x = [entry["fraction"] for entry in entries]
    rows = list(zip(*([one["value"] for one in entry["singular_values"]] for entry in entries), strict=True))
    ax.fill_between(x, rows[-1], rows[0], color=color, alpha=0.15, lw=0)
    for values in rows[1:]:
        ax.plot(x, values, color=color, lw=0.7, alpha=0.7)
    ax.plot(x, rows[0], "o-", ms=4, lw=1.5, color=color, label=name)
    ax.set_ylim(bottom=0)


def _radius(ax: Any, details: _Details) -> None:
    """‖x_t‖/r_t as measured, as expected, and the band of the tolerance."""
    points = [(e["fraction"], e["radius_ratio"]) for e in details["profile"] if _mean(e.get("radius_ratio"), "g") != "—"]
    if points:
        values, spreads = zip(*((one["value"], one["std"] or 0.0) for _, one in points), strict=True)
        x = [fraction for fraction, _ in points]
        ax.errorbar(
            x, values, spreads, fmt="o", ms=4, capsize=2, color="#332288", label="measured, ± its standard deviation"
        )
    curve = details["curve"]
    ax.plot(curve["fraction"], curve["radius_ratio"], color="#332288", lw=1, alpha=0.7, label="expected of such images")
    skip = details.get("suggested_skip")
    if skip is not None:
        ax.axhspan(1, (1 + skip["tolerance"]) ** 0.5, color="#009E73", alpha=0.25, lw=0, label="tolerance of the rule for p")
    ax.axhline(1, **_PERFECT)
    ax.set_ylim(0.8, 1.6)  # small t is off the scale: how far the radius is off there does not matter
    ax.set(title=r"Is $x_t$ on the sphere of the noise?", ylabel=r"$\|x_t\|\,/\,r_t$")
