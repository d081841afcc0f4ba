"""Working scores off: interrupted, out of time, without what they need."""

import json
import math
import time

import pytest
import torch

from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.evaluation.once import Once
from georeg_diffusion.evaluation.runner import Outcome, evaluate
from georeg_diffusion.evaluation.score import OutOfTimeError, Result, Score


class Sum(Score):
    """The sum of the numbers of its pieces."""

    name, label, lower_is_better = "sum", "sum", None
    worked = 0
    fail_at = None

    def __init__(self):
        self.total, self.count = 0.0, 0

    @classmethod
    def of(cls, setting):
        return cls()

    def pieces(self):
        return 5

    def update(self, piece):
        if piece == type(self).fail_at:
            raise type(self).error
        type(self).worked += 1
        self.total += piece
        self.count += 1

    def compute(self):
        return Result(self.total if self.count else None, None, self.count, 0, "a sum", {"nan": math.nan, "in": [math.inf]})

    def state(self):
        return {"total": torch.tensor([self.total]), "count": torch.tensor([self.count])}

    def load_state(self, state):
        self.total, self.count = float(state["total"]), int(state["count"])


@pytest.fixture
def score():
    return type("Mine", (Sum,), {})


def test_an_interrupted_score_goes_on_where_it_was(score, make_setting, tmp_path):
    settings = {"model": make_setting()}
    score.fail_at, score.error = 3, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings, {"sum": score}, state=tmp_path)
    score.fail_at = None
    found = evaluate(settings, {"sum": score}, state=tmp_path)["model"]["sum"]
    assert found.result.value == 10
    assert score.worked == 5
    assert found.is_finished
    evaluate(settings, {"sum": score}, state=tmp_path)
    assert score.worked == 5, "a finished score was measured again"


def test_a_damaged_state_is_measured_again(score, make_setting, tmp_path):
    settings = {"model": make_setting()}
    evaluate(settings, {"sum": score}, state=tmp_path)
    next(tmp_path.iterdir()).write_bytes(b"damaged")
    assert evaluate(settings, {"sum": score}, state=tmp_path)["model"]["sum"].result.value == 10


def test_other_weights_do_not_take_up_a_state(score, make_setting, tmp_path):
    evaluate({"model": make_setting()}, {"sum": score}, state=tmp_path)
    other = make_setting()
    next(other.bundle.network.parameters()).data.add_(1)
    evaluate({"model": other}, {"sum": score}, state=tmp_path)
    assert score.worked == 10


def test_out_of_time(score, make_setting, tmp_path):
    found = evaluate({"model": make_setting()}, {"sum": score}, state=tmp_path, deadline=time.monotonic())["model"]["sum"]
    assert not found.is_finished
    assert found.failure is None
    record = found.as_json()
    assert record["value"] is None
    assert "stopped after 0 of 5" in record["protocol"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RunError("no weights; put them there"), "no weights; put them there"),
        (ValueError("x: is NaN"), "x: is NaN"),
        (torch.OutOfMemoryError("out of memory"), "lower --batch-size"),
    ],
)
def test_a_score_that_fails_does_not_stop_the_others(score, make_setting, error, message):
    class Failing(score):
        fail_at = 2

    Failing.error = error
    found = evaluate({"model": make_setting()}, {"bad": Failing, "sum": score})["model"]
    assert message in found["bad"].failure
    assert message in found["bad"].as_json()["protocol"]
    assert found["bad"].result.value is None
    assert found["sum"].result.value == 10


def test_an_option_that_is_wrong_is_found_before_any_work(score, make_setting):
    class Wrong(score):
        @classmethod
        def of(cls, setting):
            raise UsageError("--features: got x")

    with pytest.raises(UsageError):
        evaluate({"model": make_setting()}, {"sum": score, "wrong": Wrong})
    assert score.worked == 0


def test_a_record_is_strict_json(score, make_setting):
    record = evaluate({"model": make_setting()}, {"sum": score})["model"]["sum"].as_json()
    assert json.loads(json.dumps(record, allow_nan=False))["details"] == {"nan": None, "in": [None]}


def test_a_tool_out_of_time_leaves_the_score_undone_and_not_failed(score, make_setting):
    class Late(score):
        @classmethod
        def of(cls, setting):
            raise OutOfTimeError("out of time after 3 of 9 images")

    found = evaluate({"model": make_setting()}, {"late": Late, "sum": score})["model"]
    assert found["late"].failure is None
    assert not found["late"].is_finished
    assert found["late"].as_json()["protocol"] == "not measured yet: out of time after 3 of 9 images"
    assert found["late"].as_json()["finished"] is False
    assert found["sum"].result.value == 10


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_null_and_named(bad):
    record = Outcome(Result(bad, (0.0, bad), 3, 0, "a mean"), None, 1, 1).as_json()
    assert record["value"] is None
    assert record["ci"] is None
    assert f"the value is {bad}" in record["protocol"]
    half = Outcome(Result(1.0, (0.0, bad), 3, 0, "a mean"), None, 1, 1).as_json()
    assert (half["value"], half["ci"]) == (1.0, None)


def test_other_options_do_not_take_up_a_state(score, make_setting, tmp_path):
    for options in ({}, {"seed": 1}, {"num_samples": 3}, {"timesteps": (600,)}, {"options": {"ppl": "paper"}}):
        evaluate({"model": make_setting(**options)}, {"sum": score}, state=tmp_path)
    assert score.worked == 25
    evaluate({"model": make_setting(batch_size=3)}, {"sum": score}, state=tmp_path)
    assert score.worked == 25, "the batch size changes nothing"


def test_an_error_of_a_tool_is_remembered():
    calls = []

    def build():
        calls.append(1)
        raise RunError("offline")

    tool = Once(build)
    for _ in range(3):
        with pytest.raises(RunError, match="offline"):
            tool()
    assert len(calls) == 1
