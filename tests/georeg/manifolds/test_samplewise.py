"""assert_samplewise finds maps that mix samples, and only those."""

import pytest
import torch
from torch import nn

from georeg.testing import assert_samplewise


@pytest.mark.parametrize("batch", [2, 3, 8])
@pytest.mark.parametrize(
    "f",
    [
        nn.Linear(4, 3),
        nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(0.5)),
        nn.BatchNorm1d(4).eval(),
        lambda x: x.half(),
        lambda x: x.square().sum(1, keepdim=True),
    ],
)
def test_maps_that_act_on_each_sample_pass(f, batch):
    assert_samplewise(f, torch.randn(batch, 4))


@pytest.mark.parametrize("batch", [2, 3, 8])
@pytest.mark.parametrize(
    "f",
    [
        lambda x: x - x.mean(0),
        lambda x: x + x.roll(1, 0),
        lambda x: torch.cat([x[:-1], x[-1:] + 0.1 * x[:1]]),
        lambda x: x.double().cumsum(0),
        nn.BatchNorm1d(4, track_running_stats=False).eval(),
    ],
)
def test_maps_that_mix_samples_fail(f, batch):
    with pytest.raises(AssertionError, match="when only other samples change"):
        assert_samplewise(f, torch.randn(batch, 4))


def test_a_batch_norm_in_train_mode_is_named_and_left_as_it_was():
    f = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    before = {k: v.clone() for k, v in f.state_dict().items()}
    x = torch.randn(4, 2, 5, 5)
    state = torch.get_rng_state()
    with pytest.raises(AssertionError, match=r"f\.eval\(\), or use GroupNorm\. Here: 1 \(BatchNorm2d\)"):
        assert_samplewise(f, x)
    assert f.training
    assert all(torch.equal(v, before[k]) for k, v in f.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert_samplewise(f.eval(), x)


def test_identical_samples_and_a_batch_of_one():
    with pytest.raises(AssertionError):
        assert_samplewise(lambda x: x - x.mean(0), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="at least two samples"):
        assert_samplewise(nn.Identity(), torch.randn(1, 2))
    with pytest.raises(ValueError, match="f: returned shape"):
        assert_samplewise(lambda x: x[:1], torch.randn(3, 2))
