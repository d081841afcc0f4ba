"""The scripts behind `make torture` and `make soak`, shorter."""

import pytest

from benchmarks.soak import growth, soak
from benchmarks.torture import differences, torture


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    result = torture(tmp_path, kills=4, steps=30, seed=1, damage_every=3)
    assert sum(result["kills"].values()) == 4
    assert result["left_over"] == []
    assert result["told"] >= result["damaged"]


@pytest.mark.slow
def test_memory_and_handles_stay_flat(tmp_path):
    found = growth(soak(tmp_path, steps=60, checkpointing_steps=5))
    assert found["memory_mib"] < 8
    assert found["handles"] <= 0
    assert found["tensors"] <= 0


def test_growth_and_differences_can_fail():
    assert growth({"handles": [1.0] * 20 + [float(i) for i in range(80)]})["handles"] > 50
    assert growth({"handles": [9.0] * 10 + [3.0] * 40})["handles"] == 0
    assert differences({"a": 1, "b": 2.0}, {"a": 1, "b": 2.0}) == []
    assert differences({"a": 1, "b": 2.0}, {"a": 2, "c": 0}) == ["b", "c", "a"]
