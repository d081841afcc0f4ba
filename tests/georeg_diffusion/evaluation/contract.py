"""The laws of a score; every registered one is held to them."""

import json
from dataclasses import asdict, replace

import pytest
import torch


def close(a, b, tolerance=2e-4):
    """Two results, up to the rounding of batches of other shapes."""
    if a is None or b is None:
        return a is b
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(close(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, bool | str):
        return a == b
    return a == pytest.approx(b, rel=tolerance, abs=1e-6)


def rounding(result):
    """What batches of other shapes may change of a result; a difference quotient divides two images' rounding by its ε."""
    epsilon = (result.details or {}).get("epsilon")
    return 2e-4 if epsilon is None else 2 * torch.finfo(torch.float32).eps / epsilon


def run(score, pieces=None):
    for piece in range(score.pieces() if pieces is None else pieces):
        score.update(piece)
    return score.compute()


class ScoreContract:
    """Inherit it with fixtures ``score``, a class, and ``setting``, of several pieces of its work."""

    def test_it_says_what_it_is(self, score):
        assert score.name
        assert score.label
        assert score.lower_is_better in (True, False, None)
        assert score.__doc__

    def test_the_batch_size_changes_nothing(self, score, setting):
        expected = run(score.of(setting))
        for batch_size in (1, 5, 64):
            got = run(score.of(replace(setting, batch_size=batch_size, shared={})))
            assert close(asdict(got), asdict(expected), rounding(expected))

    def test_what_was_interrupted_goes_on(self, score, setting):
        expected, first = run(score.of(setting)), score.of(setting)
        assert first.pieces() > 1
        first.update(0)
        state = {name: tensor.clone() for name, tensor in first.state().items()}
        assert all(tensor.device.type == "cpu" for tensor in state.values())
        second = score.of(replace(setting, shared={}))
        second.load_state(state)
        for piece in range(1, second.pieces()):
            second.update(piece)
        assert close(asdict(second.compute()), asdict(expected), 1e-9)

    def test_part_of_the_work_has_a_score(self, score, setting):
        whole, part = run(score.of(setting)), run(score.of(setting), 1)
        assert part.protocol
        assert part.n < whole.n
        assert whole.value is not None

    def test_none_of_the_work_has_none_but_a_reason(self, score, setting):
        result = score.of(setting).compute()
        assert result.value is None
        assert result.n == 0
        assert result.protocol
        fresh = score.of(setting)
        fresh.load_state(fresh.state())
        assert close(asdict(run(fresh)), asdict(run(score.of(setting))), 1e-9)

    def test_compute_changes_nothing(self, score, setting):
        one = score.of(setting)
        one.update(0)
        before = one.compute()
        assert asdict(one.compute()) == asdict(before)

    def test_metrics_are_json(self, score, setting):
        result = run(score.of(setting))
        text = json.dumps(asdict(result), allow_nan=False)
        assert json.loads(text)["seed"] == setting.seed

    def test_global_random_numbers_are_left_alone(self, score, setting):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        run(score.of(setting), 1)
        assert torch.equal(torch.rand(3), expected)
