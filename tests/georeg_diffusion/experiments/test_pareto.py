"""The front and the verdict of a sweep, as functions of numbers."""

import math

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from georeg_diffusion.experiments.no_worse import bargain, closest, found
from georeg_diffusion.experiments.pareto import Standing, is_measured, standings
from georeg_diffusion.experiments.replicates import interval, over_seeds
from georeg_diffusion.experiments.trade import claim_of, interval_of, trade
from georeg_diffusion.report.tradeoff import Spot, tradeoff


def around(mean, spread=0.01):
    """Three seeds with a standard error of spread/√3."""
    return (mean - spread, mean, mean + spread)


def states(points):
    return {name: one.state for name, one in standings(points).items()}


def test_without_errors_the_front_is_the_one_of_the_definition():
    """Against every pair compared as Pareto's definition says, for random points far apart for their errors."""
    generator = np.random.default_rng(0)
    means = generator.permutation(30).reshape(15, 2).astype(float)
    found = standings({str(i): [around(x, 1e-6), around(y, 1e-6)] for i, (x, y) in enumerate(means)})
    for i, mine in enumerate(means):
        dominating = {str(j) for j, other in enumerate(means) if j != i and (other < mine).all()}
        assert found[str(i)].state == ("dominated" if dominating else "front")
        assert set(found[str(i)].by) == dominating
        assert found[str(i)].is_front_of_means is (not dominating)


def test_a_difference_within_two_standard_errors_leaves_it_undecided():
    """b is worse in both means; its second score by 1.9 or by 2.1 standard errors of the paired difference."""
    spread = np.array([-1.0, 0.0, 1.0])
    error = 1 / math.sqrt(3)
    for sigmas, state in ((4.2, "undecided"), (4.4, "dominated")):
        points = {"a": [(1.0, 1.0, 1.0), (5.0, 5.0, 5.0)], "b": [around(2.0), tuple(5 + sigmas * error + spread)]}
        found = standings(points)
        assert found["b"].state == state
        assert found["b"].by == ("a",)
        assert found["a"] == Standing("front", (), True)  # its first score is certainly lower
        assert not found["b"].is_front_of_means


def test_differences_are_paired_by_seed():
    """Seeds differ by far more than the settings do."""
    a = [(1.0, 50.0, 99.0), (2.0, 60.0, 7.0)]
    b = [(2.0, 51.1, 100.2), (3.0, 61.1, 8.2)]
    assert states({"a": a, "b": b}) == {"a": "front", "b": "dominated"}
    shuffled = [(100.2, 2.0, 51.1), (8.2, 3.0, 61.1)]
    assert states({"a": a, "b": shuffled}) == {"a": "undecided", "b": "undecided"}


def test_ties():
    same = [around(1.0), around(2.0)]
    assert states({"a": same, "b": same}) == {"a": "front", "b": "front"}
    better = [around(1.0), around(1.0)]
    assert states({"a": same, "b": better}) == {"a": "dominated", "b": "front"}
    wider = [around(1.0, 0.5), around(1.0)]  # an equal mean is no tie
    assert states({"a": same, "b": wider}) == {"a": "undecided", "b": "front"}


def test_one_seed_decides_nothing_but_equality():
    points = {"a": [(1.0,), (1.0,)], "b": [(2.0,), (2.0,)], "c": [(1.0,), (1.0,)]}
    found = standings(points)
    assert [one.state for one in found.values()] == ["undecided"] * 3
    assert found["a"].by == ("b",)
    assert [one.is_front_of_means for one in found.values()] == [True, False, True]
    assert states({"a": [(1.0,), (1.0,)], "b": [(1.0,), (1.0,)]}) == {"a": "front", "b": "front"}


@pytest.mark.parametrize("missing", [(None, 1.0, 1.0), (math.nan, 1.0, 1.0), (math.inf, 1.0, 1.0)])
def test_what_is_not_measured_takes_no_part(missing):
    points = {"a": [around(1.0), around(1.0)], "b": [missing, around(0.1)], "c": [around(2.0), around(2.0)]}
    assert states(points) == {"a": "front", "b": "not measured", "c": "dominated"}
    assert not is_measured(missing)


def test_a_single_setting_is_the_front_and_none_is_none():
    assert standings({"a": [around(1.0), around(1.0)]}) == {"a": Standing("front", (), True)}
    assert standings({}) == {}
    assert not is_measured(())


def test_different_numbers_of_seeds_are_refused():
    with pytest.raises(ValueError, match="different numbers of scores or seeds"):
        standings({"a": [(1.0, 2.0)], "b": [(1.0,)]})
    with pytest.raises(ValueError, match="cost: got different numbers of values"):
        bargain(base_cost=[1.0], cost=[1.0, 2.0], base_gain=[1.0], gain=[1.0], tolerance=0.05)
    for tolerance in (-0.1, math.nan):
        with pytest.raises(ValueError, match="tolerance: got"):
            bargain(base_cost=[1.0], cost=[1.0], base_gain=[1.0], gain=[1.0], tolerance=tolerance)


BASE = (10.0, 12.0, 8.0, 11.0)


def against(cost, gain, *, base_gain=(5.0, 5.1, 4.9, 5.0), tolerance=0.05):
    cost = tuple(b * (1 + rise) for b, rise in zip(BASE, cost, strict=True))
    gain = tuple(b + change for b, change in zip(base_gain, gain, strict=True))
    return bargain(base_cost=BASE, cost=cost, base_gain=base_gain, gain=gain, tolerance=tolerance)


DOWN, UP, LEVEL = (-1.0, -1.1, -0.9, -1.0), (1.0, 1.1, 0.9, 1.0), (0.3, -0.3, 0.2, -0.2)


@pytest.mark.parametrize(
    ("cost", "gain", "verdict"),
    [
        ((0.01, 0.0, -0.01, 0.0), DOWN, "free"),
        ((0.02, 0.022, 0.018, 0.02), DOWN, "free"),  # a certain rise, below the tolerance
        ((0.2, -0.2, 0.1, -0.1), DOWN, "cost unclear"),  # no mean rise, and nothing shown
        ((0.03, 0.06, 0.045, 0.045), DOWN, "cost unclear"),  # the mean is within, the interval is not
        ((0.2, 0.22, 0.18, 0.2), DOWN, "costly"),
        ((0.2, 0.22, 0.18, 0.2), UP, "costly"),
        ((0.0, 0.001, 0.0, 0.001), UP, "no gain"),
        ((0.0, 0.001, 0.0, 0.001), LEVEL, "gain unclear"),
        ((-0.2, -0.22, -0.18, -0.2), DOWN, "free"),
        ((math.nan, 0.0, 0.0, 0.0), DOWN, "not measured"),
        ((0.0, 0.0, 0.0, 0.0), (math.nan, 0.0, 0.0, 0.0), "not measured"),
        ((0.0, 0.0, 0.0, 0.0), DOWN, "free"),  # the very same images
    ],
)
def test_a_verdict_needs_evidence_on_both_sides(cost, gain, verdict):
    assert against(cost, gain).verdict == verdict


def test_the_interval_is_that_of_a_paired_t_test():
    rises = (0.03, -0.01, 0.02, 0.05)
    mine = against(rises, DOWN)
    low, high = stats.ttest_1samp(rises, 0.0).confidence_interval(0.95)
    assert (mine.low, mine.high) == pytest.approx((low, high))
    assert mine.rise.value == pytest.approx(np.mean(rises))
    assert interval_of(mine) == "−1.7% … +6.2%"


def test_it_covers_as_often_as_it_says():
    """The 95% interval of three seeds, over 2,000 draws; two normal standard errors would cover 82%."""
    generator = np.random.default_rng(1)
    hits = 0
    for sample in generator.standard_normal((2000, 3)) + 1:
        low, high = interval(over_seeds(list(sample)))
        hits += low < 1 < high
    assert abs(hits / 2000 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)


def test_a_false_find_is_rare_at_the_tolerance():
    """The true rise is the tolerance itself: at most 2.5% of the draws may call it free."""
    generator = np.random.default_rng(2)
    rises = 0.05 + 0.02 * generator.standard_normal((2000, 4))
    share = np.mean([against(tuple(one), DOWN).verdict == "free" for one in rises])
    assert share < 0.025 + 3 * math.sqrt(0.025 * 0.975 / 2000)
    assert share > 0.01  # and it can find: exactly 2.5% are expected


def test_the_tolerance_decides():
    rises = (0.02, 0.022, 0.018, 0.02)
    assert against(rises, DOWN, tolerance=0.01).verdict == "costly"
    assert against(rises, DOWN, tolerance=0.0205).verdict == "cost unclear"
    assert against(rises, DOWN, tolerance=0.03).verdict == "free"


def test_one_seed_finds_nothing():
    one = bargain(base_cost=[10.0], cost=[9.0], base_gain=[5.0], gain=[1.0], tolerance=0.05)
    assert (one.low, one.high, one.verdict) == (None, None, "gain unclear")
    zero = bargain(base_cost=[0.0, 1.0], cost=[1.0, 1.0], base_gain=[5.0, 5.0], gain=[1.0, 1.1], tolerance=0.05)
    assert zero.verdict == "not measured"  # no relative rise over 0


def test_what_is_found_over_all_settings():
    free, costly = against((0.0, 0.01, -0.01, 0.0), DOWN), against((0.2, 0.22, 0.18, 0.2), DOWN)
    unclear, worse = against((0.2, -0.2, 0.1, -0.1), DOWN), against((0.0, 0.0, 0.0, 0.0), UP)
    assert found({"a": costly, "b": free, "c": unclear}) is True
    assert found({"a": costly, "b": worse}) is False
    assert found({"a": costly, "b": unclear}) is None
    assert found({}) is None
    failed = against((math.nan, 0.0, 0.0, 0.0), DOWN)
    assert found({"a": costly, "b": failed}) is False
    assert found({"b": failed}) is None
    assert closest({"a": costly, "b": unclear}) == "a"  # +22% against +33% at the upper end
    assert closest({"a": worse}) is None


def values(**rises):
    """A base and settings that all lower PPL, with the given relative rises of FID."""
    made = {"base": {"fid": BASE, "ppl": (5.0, 5.1, 4.9, 5.0)}}
    for name, rise in rises.items():
        fid = tuple(b * (1 + r) for b, r in zip(BASE, rise, strict=True))
        made[name] = {"fid": fid, "ppl": (4.0, 4.2, 3.9, 4.0)}
    return made


def test_the_claim_says_what_was_found_and_how_sure_it_is():
    one = trade(values(mild=(0.0, 0.01, -0.01, 0.0), harsh=(0.2, 0.22, 0.18, 0.2)), "base", cost="fid", gain="ppl")
    claim = claim_of(one, "FID", "PPL")
    assert claim.holds is True
    assert claim.text == "A setting lowers PPL at no cost in FID (a rise of at most 5%)"
    assert "mild: PPL −0.975 ± 0.025 (4 seeds), FID +0.0% (95% interval −1.3% … +1.3%)" in claim.evidence
    assert "2 settings tried: what is picked from many looks better than it is" in claim.evidence
    assert one.standings["harsh"].state == "dominated"

    claim = claim_of(trade(values(harsh=(0.2, 0.22, 0.18, 0.2)), "base", cost="fid", gain="ppl"), "FID", "PPL")
    assert claim.holds is False
    assert "of 1 setting tried, 1 lowers PPL beyond its 95% interval, and 1 certainly costs more" in claim.evidence

    claim = claim_of(trade(values(noisy=(0.2, -0.2, 0.1, -0.1)), "base", cost="fid", gain="ppl"), "FID", "PPL")
    assert claim.holds is None
    assert "Nearest to it: noisy" in claim.evidence
    assert claim.evidence.endswith("More seeds narrow the intervals")


def test_the_claim_of_one_seed_asks_for_more():
    points = {"base": {"fid": (1.0,), "ppl": (2.0,)}, "a": {"fid": (0.5,), "ppl": (1.0,)}}
    claim = claim_of(trade(points, "base", cost="fid", gain="ppl"), "FID", "PPL")
    assert claim.holds is None
    assert "pass --seeds 3 or more" in claim.evidence


def test_the_picture_draws_what_there_is(tmp_path):
    base = Spot(4.0, 9.0, 0.1, 0.1, "λ = 0", None, "front", True)
    ours = Spot(40.0, 7.0, None, None, "0.1", "a $name$ & more", "dominated", False)
    for name, panels in {
        "two": {"PPL": [base, ours], "mRTL": [base]},
        "one": {"PPL": [ours], "mRTL": []},
        "zero": {"PPL": [Spot(0.0, -1.0, 0.0, 0.0, "0", "s", "undecided", True)]},
        "many": {"PPL": [base, *(Spot(5.0 + i, 5.0, None, None, "1", f"s{i}", "front", False) for i in range(9))]},
    }.items():
        target = tmp_path / f"{name}.png"
        tradeoff(panels, target, title="t", xlabel="FID", tolerance=0.05, caption="how")
        assert Image.open(target).size[0] > 500
    assert Image.open(tmp_path / "two.png").size[0] > 1.5 * Image.open(tmp_path / "one.png").size[0]
    with pytest.raises(ValueError, match="panels: got no points"):
        tradeoff({"PPL": []}, tmp_path / "none.png", title="t", xlabel="FID", tolerance=0.05)
    assert not (tmp_path / "none.png").exists()
