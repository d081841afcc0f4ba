"""What holds of the rules in plain PyTorch, held by the same tests of the rules in Triton (by its interpreter alone)."""

import pytest

from georeg.kernels.triton import is_used
from tests.georeg.kernels import test_attention as attention
from tests.georeg.kernels import test_group_norm as group_norm
from tests.georeg.kernels.test_attention import (  # noqa: F401
    test_a_fourth_derivative,
    test_any_layout,
    test_functorch,
    test_scores_that_would_overflow,
    test_the_third_derivative_when_one_input_alone_moves,
    test_under_hooks_on_saved_tensors,
)


@pytest.fixture(autouse=True)
def on_the_cpu(device):
    if device != "cpu":
        pytest.skip("these tests are of float64 on the CPU")


@pytest.fixture
def width():
    """Of the tests of attention: Triton comes before the choice of matrices to keep."""
    return attention.RECOMPUTED


def test_attentions_third_derivative(monkeypatch):
    assert is_used(attention.tensors()[0])
    attention.test_the_third_derivative({"is_causal": True}, None, True, "by rows", monkeypatch)
    attention.test_the_third_derivative({}, None, False, "by columns", monkeypatch)


def test_group_norms_two_derivatives():
    group_norm.test_values_and_two_derivatives(*group_norm.PAIRS["norm and SiLU"], (1, 4, 3))


@group_norm.both
def test_group_norms_third_derivative(ours, torchs):
    group_norm.test_the_third_derivative(ours, torchs, (True, True), True, group_norm.SHAPES["2d"])
    group_norm.test_the_third_derivative(ours, torchs, (True, False), False, group_norm.SHAPES["1d"])


def test_group_norms_other_promises():
    pair = group_norm.PAIRS["norm and SiLU"]
    group_norm.test_extreme_inputs(*pair)
    group_norm.test_functorch(*pair)
    group_norm.test_empty_batches_and_what_is_refused()
