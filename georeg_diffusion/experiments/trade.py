"""What a geometry score costs in FID over a sweep: who is on the front, and whether something is free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from georeg_diffusion.experiments.finding import Claim
from georeg_diffusion.experiments.no_worse import Bargain, bargain, closest, found
from georeg_diffusion.experiments.pareto import Standing, Values, standings
from georeg_diffusion.experiments.replicates import in_words, is_below_zero


@dataclass(frozen=True)
class Trade:
    """One score against another.

    Attributes:
        cost, gain: names of the scores.
        standings: of all settings, the base among them.
        bargains: of all settings but the base.
        tolerance: the largest relative rise of the cost that counts as none.
    """

    cost: str
    gain: str
    standings: Mapping[str, Standing]
    bargains: Mapping[str, Bargain]
    tolerance: float

    @property
    def found(self) -> bool | None:
        """Whether a setting improves the one at no cost in the other; None where that is open."""
        return found(self.bargains)


def trade(values: Mapping[str, Mapping[str, Values]], base: str, *, cost: str, gain: str, tolerance: float = 0.05) -> Trade:
    """Compare settings by two scores.

    Args:
        values: of each setting, of each score, a value for each seed.
        base: the setting that the others are compared with.
        cost, gain: the score that shall not rise, and the one that shall fall.
        tolerance: the largest relative rise of the cost that counts as none.

    Example:
        >>> from georeg_diffusion.experiments.trade import trade
        >>> values = {"base": {"fid": (5.0, 5.2, 4.9), "ppl": (9.0, 9.1, 9.2)},
        ...     "ours": {"fid": (5.05, 5.2, 4.95), "ppl": (7.0, 7.3, 7.1)}}
        >>> trade(values, "base", cost="fid", gain="ppl").found
        True
    """
    points = {name: (scores[cost], scores[gain]) for name, scores in values.items()}
    bargains = {
        name: bargain(
            base_cost=values[base][cost],
            cost=scores[cost],
            base_gain=values[base][gain],
            gain=scores[gain],
            tolerance=tolerance,
        )
        for name, scores in values.items()
        if name != base
    }
    return Trade(cost, gain, standings(points), bargains, tolerance)


def claim_of(one: Trade, cost: str, gain: str) -> Claim:
    """Whether a setting was found, with the numbers that say so.

    Args:
        one: the comparison.
        cost, gain: what to call the scores.
    """
    bargains = one.bargains
    free = sorted((name for name in bargains if bargains[name].verdict == "free"), key=lambda name: _gain(bargains[name]))
    lowered = sum(is_below_zero(each.gain) is True for each in bargains.values())
    tried = f"{len(bargains)} setting{'s' if len(bargains) != 1 else ''} tried"
    if free:
        best = bargains[free[0]]
        more = f"; also {', '.join(free[1:])}" if free[1:] else ""
        evidence = (
            f"{free[0]}: {gain} {in_words(best.gain)}, {_cost(best, cost)}{more}. {tried.capitalize()}: what is picked from "
            "many looks better than it is, so repeat it with other seeds (--seed)"
        )
    elif any(each.low is not None for each in bargains.values()):
        costly = sum(each.verdict == "costly" for each in bargains.values())
        evidence = (
            f"of {tried}, {lowered} lower{'s' if lowered == 1 else ''} {gain} beyond its 95% interval, and {costly} "
            f"certainly cost{'s' if costly == 1 else ''} more than that"
        )
        nearest = closest(bargains)
        if nearest is not None:
            best = bargains[nearest]
            evidence += f". Nearest to it: {nearest}, {gain} {in_words(best.gain)}, {_cost(best, cost)}"
        if one.found is None:
            evidence += ". More seeds narrow the intervals"
    else:
        evidence = f"{tried}; one seed has no standard errors, so pass --seeds 3 or more"
    text = f"A setting lowers {gain} at no cost in {cost} (a rise of at most {100 * one.tolerance:.3g}%)"
    return Claim(text, one.found, evidence)


def interval_of(one: Bargain) -> str:
    """The 95% interval of the relative rise.

    Example:
        >>> from georeg_diffusion.experiments.no_worse import Bargain
        >>> from georeg_diffusion.experiments.trade import interval_of
        >>> interval_of(Bargain(None, None, -0.021, 0.104, "cost unclear"))
        '−2.1% … +10.4%'
    """
    return "—" if one.low is None or one.high is None else f"{_percent(one.low)} … {_percent(one.high)}"


def _cost(one: Bargain, cost: str) -> str:
    rise = "not measured" if one.rise is None else _percent(one.rise.value)
    return f"{cost} {rise} (95% interval {interval_of(one)})"


def _percent(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{abs(value):.1%}"


def _gain(one: Bargain) -> float:
    return 0.0 if one.gain is None else one.gain.value
