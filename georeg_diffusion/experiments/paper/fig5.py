"""Figure 5: relative trajectory length over the reverse steps, for several λ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from georeg import Estimate
    from georeg_diffusion.experiments.comparison import Replicated
    from georeg_diffusion.experiments.finding import Claim, Finding
    from georeg_diffusion.experiments.lab import Lab

TITLE = "RTL(t) along slerps with various λ"
SOURCE = "Figure 5, Sec. 4.2"
DATA = "digits"

FACTORS = (0.1, 1.0, 10.0)
ALL, ACTS, RESTS = "mRTL", "RTL where the loss acts", "RTL elsewhere"


def run(lab: Lab) -> Finding:
    """Measure RTL at every reverse step of the base and of λ/10, λ and 10 λ of the recipe."""
    from georeg_diffusion.experiments.comparison import Replicated, setting_of
    from georeg_diffusion.experiments.finding import Cell, Finding, Table
    from georeg_diffusion.experiments.replicates import over_seeds
    from georeg_diffusion.training.config import TrainConfig

    weights = [0.0, *(factor * lab.recipe.lambda_iso for factor in FACTORS)]
    details: dict[str, list[dict[str, list[float]]]] = {}
    protocol, perfect = "", []
    for value in weights:
        for seed in lab.seeds:
            entry = lab.score(lab.model(seed, lambda_iso=value), seed, "mrtl")["mrtl"]
            details.setdefault(f"λ = {value:g}", []).append(entry["details"])
            protocol = entry["protocol"]
            perfect.append(float(entry["details"]["perfect"]))
    timesteps = next(iter(details.values()))[0]["timesteps"]
    total = lab.setting(lab.model(lab.seeds[0], lambda_iso=0.0), lab.seeds[0]).total
    skip = float(lab.recipe.training.get("isometry_skip", TrainConfig.isometry_skip))
    gated = [t > skip * total for t in timesteps]
    curves = {
        name: [over_seeds([one["rtl"][i] for one in seeds]) for i in range(len(timesteps))]
        for name, seeds in details.items()
    }
    rows: list[tuple[Cell | str, ...]] = [
        (str(i + 1), f"{t:g}", "yes" if is_on else "no", *(Cell.of(curve[i]) for curve in curves.values()))
        for i, (t, is_on) in enumerate(zip(timesteps, gated, strict=True))
    ]
    means = {
        name: Replicated({kind: _means(seeds, gated, kind) for kind in (ALL, ACTS, RESTS)}, {}, {})
        for name, seeds in details.items()
    }
    rows += [(kind, "", "", *(Cell.of(one.mean(kind)) for one in means.values())) for kind in (ALL, ACTS, RESTS)]
    target = sum(perfect) / len(perfect)
    table = Table(
        f"{SOURCE}: {TITLE}",
        ("reverse step", "t", "loss acts", *details),
        tuple(rows),
        f"The loss acts at t > {skip:g} T. A perfect isometry of the sphere has arc over chord, {target:.4f}, and not 1. "
        f"{setting_of(lab)}",
    )
    picture = _picture(curves, gated, target, lab.path("fig5.png"), title=f"Figure 5 on {lab.recipe.label}", skip=skip)
    return Finding((table,), (picture,), claims_of(means, target), (f"mrtl: {protocol}",))


def claims_of(means: Mapping[str, Replicated], perfect: float) -> tuple[Claim, ...]:
    """What the paper says of its figure; the first of the models is the base, λ grows."""
    from itertools import pairwise

    from georeg_diffusion.experiments.comparison import difference
    from georeg_diffusion.experiments.finding import Cell, Claim
    from georeg_diffusion.experiments.replicates import in_words, is_below_zero, paired

    names = list(means)
    base, strongest = means[names[0]], means[names[-1]]
    steps = [difference(means[a], means[b], ALL) for a, b in pairwise(names)]
    found = [is_below_zero(step) for step in steps]
    monotone = False if False in found else None if None in found else True
    said = "; ".join(f"{a} → {b}: {in_words(s)}" for (a, b), s in zip(pairwise(names), steps, strict=True))
    overall = difference(base, strongest, ALL)

    def drops(kind: str) -> list[float | None]:
        pairs = zip(base.values[kind], strongest.values[kind], strict=True)
        return [None if a is None or b is None else b - a for a, b in pairs]

    def removed(kind: str) -> float | None:
        """Share of what the base has above a perfect isometry that is gone, in means over seeds."""
        before, after = base.mean(kind), strongest.mean(kind)
        if before is None or after is None or before.value <= perfect:
            return None
        return (before.value - after.value) / (before.value - perfect)

    here = paired(base.values[ACTS], strongest.values[ACTS])
    where = paired(drops(RESTS), drops(ACTS))
    shares = ["—" if (gone := removed(kind)) is None else f"{gone:.0%}" for kind in (ACTS, RESTS)]
    level = strongest.mean(ACTS)
    return (
        Claim("RTL falls with every larger λ", monotone, f"mRTL, {said}"),
        Claim(f"RTL is lower at {names[-1]} than at the base", is_below_zero(overall), f"mRTL {in_words(overall)}"),
        Claim(
            f"It drops where the loss acts ({names[-1]})",
            is_below_zero(here),
            f"RTL there {in_words(here)}, which is {shares[0]} of what the base has above a perfect isometry",
        ),
        Claim(
            f"It drops more there than elsewhere ({names[-1]})",
            is_below_zero(where),
            f"elsewhere {in_words(difference(base, strongest, RESTS))}, which is {shares[1]} of what the base has above a "
            f"perfect isometry; there − elsewhere {in_words(where)}",
        ),
        Claim(
            f"A strong loss reduces the ratio to 1 ({names[-1]})",
            _is_below(level, (1 + perfect) / 2),
            f"RTL where the loss acts {Cell.of(level)}; a perfect isometry has {perfect:.4f}, and asked is which is nearer",
        ),
    )


def _is_below(level: Estimate | None, value: float) -> bool | None:
    """Whether a level is below a value, or above it, beyond its interval; None where that is unclear."""
    from georeg import Estimate
    from georeg_diffusion.experiments.replicates import is_below_zero

    return None if level is None else is_below_zero(Estimate(level.value - value, level.stderr, level.n))


def _means(seeds: Sequence[Mapping[str, list[float]]], gated: Sequence[bool], kind: str) -> tuple[float | None, ...]:
    wanted = {ALL: (True, False), ACTS: (True,), RESTS: (False,)}[kind]
    chosen = [i for i, is_on in enumerate(gated) if is_on in wanted]
    return tuple(sum(one["rtl"][i] for i in chosen) / len(chosen) if chosen else None for one in seeds)


def _picture(
    curves: Mapping[str, Sequence[Estimate | None]],
    gated: Sequence[bool],
    perfect: float,
    target: Path,
    *,
    title: str,
    skip: float,
) -> Path:
    from matplotlib.ticker import MaxNLocator

    from georeg_diffusion.report.curves import LINES
    from georeg_diffusion.report.pictures import _figure, _save

    figure = _figure(figsize=(8.2, 5.0))
    ax = figure.subplots()
    count = len(gated)
    last = sum(gated)  # the loss acts at the first, noisy steps
    ax.axvspan(0.5, last + 0.5, color="0.93", zorder=0)
    ax.axvline(last + 0.5, color="0.55", lw=1.2, ls=":")
    for (colour, marker), (name, curve) in zip(LINES, curves.items(), strict=False):
        known = [(i + 1, one) for i, one in enumerate(curve) if one is not None]
        x, y = [i for i, _ in known], [one.value for _, one in known]
        error = [one.stderr or 0.0 for _, one in known]
        label = f"{name} (base)" if name == "λ = 0" else name
        ax.plot(x, y, color=colour, marker=marker, ms=5.5, lw=1.8, label=label)
        low, high = ([v + sign * e for v, e in zip(y, error, strict=True)] for sign in (-1, 1))
        ax.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
    ax.axhline(perfect, color="0.3", lw=1.2, ls=(0, (4, 3)), label=f"perfect isometry: arc / chord = {perfect:.3f}")
    ax.set_xlim(0.5, count + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _, top = ax.get_ylim()
    ax.text(last / 2 + 0.5, top, f"the loss acts: t > {skip:g} T", ha="center", va="bottom", fontsize=11, color="0.35")
    ax.set_xlabel("reverse step of DDIM (1: noise)", fontsize=12)
    ax.set_ylabel("RTL(t) = length / chord in h", fontsize=12)
    ax.tick_params(labelsize=11)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize=11, loc="best")
    ax.set_title(f"{title}: mean over seeds, band ± one standard error", fontsize=13, pad=24)
    _save(figure, target)
    return target
