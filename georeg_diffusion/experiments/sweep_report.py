"""What a sweep found: tables, a picture and a verdict, in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from georeg import Estimate
from georeg_diffusion.evaluation.catalogue import chosen
from georeg_diffusion.experiments.bench import write_table
from georeg_diffusion.experiments.comparison import training_of
from georeg_diffusion.experiments.finding import Cell, Finding, Table
from georeg_diffusion.experiments.replicates import is_below_zero, over_seeds, paired
from georeg_diffusion.experiments.sweep import BASE, COST, GEOMETRY, SCORES, Setting, Sweep
from georeg_diffusion.experiments.trade import Trade, claim_of, interval_of, trade
from georeg_diffusion.files import write_json
from georeg_diffusion.report.tradeoff import Spot, tradeoff

_STANDINGS = (
    "Front: certainly not dominated. Dominated: another setting is better in one score, beyond its 95% interval, and in "
    "the other better too, or equal. Undecided: the errors do not tell. Free: a gain beyond its 95% interval, and a 95% "
    "interval (Student's t) of the relative rise of {cost} that ends below {tolerance:.3g}%; that a rise is not significant "
    "is not enough."
)


def write(sweep: Sweep, folder: Path, *, tolerance: float) -> Finding:
    """Write sweep.json, tables as Markdown and CSV, and the picture.

    Args:
        sweep: what was measured.
        folder: where to.
        tolerance: the largest relative rise of FID that counts as none.
    """
    trades = {name: trade(sweep.values, BASE.name, cost=COST, gain=name, tolerance=tolerance) for name in GEOMETRY}
    tables = {"scores": _scores(sweep), "differences": _differences(sweep), "front": _fronts(sweep, trades, tolerance)}
    for name, table in tables.items():
        write_table(table, folder, name)
    claims = tuple(claim_of(one, sweep.labels[COST], sweep.labels[name]) for name, one in trades.items())
    picture = folder / "pareto.png"
    pictures = (picture,) if _draw(sweep, trades, picture, tolerance) else ()
    notes = tuple(f"{name} failed: {failure}" for name, failure in sweep.failures.items()) + sweep.protocols
    finding = Finding(tuple(tables.values()), pictures, claims, notes)
    write_json(folder / "sweep.json", _record(sweep, trades, tolerance) | finding.as_json(folder))
    return finding


def _scores(sweep: Sweep) -> Table:
    rows: list[tuple[Cell | str, ...]] = []
    for setting in sweep.settings:
        means = [Cell.of(over_seeds(sweep.values[setting.name][name])) for name in SCORES]
        rows.append((*_head(sweep, setting), *means))
    columns = (*_columns(sweep), *(f"{sweep.labels[name]} ↓" for name in SCORES))
    return Table("Scores", columns, tuple(rows), f"Mean over seeds. {training_of(sweep.lab)}")


def _differences(sweep: Sweep) -> Table:
    rows: list[tuple[Cell | str, ...]] = []
    for setting in sweep.settings[1:]:
        changes = {name: _change(sweep, setting, name) for name in SCORES}
        cells = [Cell.of(change, better=_is_better(name, change), signed=True) for name, change in changes.items()]
        rows.append((*_head(sweep, setting), *cells))
    columns = (*_columns(sweep), *(f"Δ {sweep.labels[name]}" for name in SCORES))
    caption = "Differences to λ = 0 of the same seed, mean ± one standard error over seeds."
    return Table("Against λ = 0", columns, tuple(rows), caption)


def _fronts(sweep: Sweep, trades: Mapping[str, Trade], tolerance: float) -> Table:
    cost = sweep.labels[COST]
    rows: list[tuple[Cell | str, ...]] = []
    for setting in sweep.settings:
        row: list[Cell | str] = list(_head(sweep, setting))
        bargains = [one.bargains.get(setting.name) for one in trades.values()]
        row.append("" if bargains[0] is None else interval_of(bargains[0]))
        for one, bargain in zip(trades.values(), bargains, strict=True):
            row += [one.standings[setting.name].state, "" if bargain is None else bargain.verdict]
        rows.append(tuple(row))
    pairs = [(f"with {sweep.labels[name]}", f"{sweep.labels[name]} for free?") for name in trades]
    columns = (*_columns(sweep), f"{cost}, relative (95%)", *(text for pair in pairs for text in pair))
    caption = _STANDINGS.format(cost=cost, tolerance=100 * tolerance)
    return Table(f"Pareto front of {cost}", columns, tuple(rows), caption)


def _columns(sweep: Sweep) -> tuple[str, ...]:
    return ("λ", "schedule", "p") if _has_skips(sweep) else ("λ", "schedule")


def _head(sweep: Sweep, setting: Setting) -> tuple[str, ...]:
    schedule = setting.schedule if setting.lambda_iso else ""
    skip = ("" if setting.skip is None else f"{setting.skip:g}",) if _has_skips(sweep) else ()
    return (f"{setting.lambda_iso:g}", schedule, *skip)


def _has_skips(sweep: Sweep) -> bool:
    return any(setting.skip is not None for setting in sweep.settings)


def _change(sweep: Sweep, setting: Setting, score: str) -> Estimate | None:
    return paired(sweep.values[BASE.name][score], sweep.values[setting.name][score])


def _is_better(score: str, change: Estimate | None) -> bool | None:
    return is_below_zero(change) if chosen(score)[score].lower_is_better is True else None


def _draw(sweep: Sweep, trades: Mapping[str, Trade], target: Path, tolerance: float) -> bool:
    """Whether there was something to draw."""
    panels: dict[str, Sequence[Spot]] = {}
    for score, one in trades.items():
        spots: list[Spot] = []
        for setting in sweep.settings:
            cost, gain = (over_seeds(sweep.values[setting.name][name]) for name in (COST, score))
            if cost is None or gain is None:
                continue
            standing = one.standings[setting.name]
            skip = "" if setting.skip is None else f", p = {setting.skip:g}"
            spots.append(
                Spot(
                    *(cost.value, gain.value, cost.stderr, gain.stderr),
                    label=f"{setting.lambda_iso:g}" if setting.lambda_iso else "λ = 0",
                    series=setting.schedule + skip if setting.lambda_iso else None,
                    state=standing.state,
                    on_front_of_means=standing.is_front_of_means,
                )
            )
        panels[f"{sweep.labels[score]} (lower is better)"] = spots
    if not any(panels.values()):
        return False
    label, count = sweep.labels[COST], len(sweep.lab.seeds)
    tradeoff(
        panels,
        target,
        title=f"What geometry costs in {label}: {sweep.lab.recipe.label}",
        xlabel=f"{label} (lower is better)",
        tolerance=tolerance,
        caption=f"numbers: λ; bars: ± one standard error over {count} seeds" if count > 1 else "numbers: λ; one seed",
    )
    return True


def _record(sweep: Sweep, trades: Mapping[str, Trade], tolerance: float) -> dict[str, Any]:
    settings = []
    for setting in sweep.settings:
        scores = {
            name: {
                "values": sweep.values[setting.name][name],
                "mean": _plain(over_seeds(sweep.values[setting.name][name])),
                "difference": _plain(_change(sweep, setting, name)),
            }
            for name in SCORES
        }
        against = {
            name: {
                "standing": asdict(one.standings[setting.name]),
                "bargain": asdict(one.bargains[setting.name]) if setting.name in one.bargains else None,
            }
            for name, one in trades.items()
        }
        outcome = {"scores": scores, "against_fid": against, "failure": sweep.failures.get(setting.name)}
        settings.append({"name": setting.name, **asdict(setting), **outcome})
    return {
        "command": "georeg-diffusion sweep",
        "versions": {"georeg": version("georeg")},
        "dataset": sweep.lab.recipe.dataset,
        "quick": sweep.lab.quick,
        "seeds": sweep.lab.seeds,
        "fid_tolerance": tolerance,
        "found": {name: one.found for name, one in trades.items()},
        "settings": settings,
    }


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)
