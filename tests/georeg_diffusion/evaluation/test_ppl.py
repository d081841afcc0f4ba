"""PPL as a score: seeds of its own for every pair, float32, resumable."""

import math

import pytest
import torch
from torch import nn

from georeg_diffusion.evaluation.feature_network import FeatureNetwork
from georeg_diffusion.evaluation.perceptual import PerceptualDistance, feature_distance
from georeg_diffusion.evaluation.ppl import PIECE, Ppl

PIXELS = feature_distance(FeatureNetwork("the pixels", nn.Flatten()))
SHAPE = (1, 2, 3)


def twice(x, seeds):
    return 2 * x


def ppl(count=70, *, decode=twice, distance=PIXELS, **options):
    return Ppl(decode, distance, SHAPE, num_pairs=count, **{"dtype": torch.float64, "how": "no steps"} | options)


def run(score):
    for piece in range(score.pieces()):
        score.update(piece)
    return score.compute()


def test_a_linear_generator_in_closed_form():
    """E‖2 x'(t)‖² over normal ends: along the seeds' own slerps it is 4(ρ'² + ρ²θ²), by hand from the ends."""
    expected = []
    for seed in range(70):
        draw = torch.Generator().manual_seed(seed)
        a, b = torch.randn(2, *SHAPE, generator=draw).double().flatten(1)
        t = torch.rand((), generator=draw, dtype=torch.float64)
        theta = torch.arccos(a @ b / a.norm() / b.norm())
        radius = (1 - t) * a.norm() + t * b.norm()
        expected.append(4 * ((b.norm() - a.norm()).square() + (radius * theta).square()))
    result = run(ppl())
    assert result.details["mean_of_all"] == pytest.approx(float(torch.stack(expected).mean()), rel=1e-3)
    kept = torch.stack(expected).sort().values  # percentiles 1 and 99 of 70 are the second and the last value but none
    assert result.value == pytest.approx(float(kept.mean()), rel=0.05)
    assert result.ci[0] < result.value < result.ci[1]
    assert result.n == 70


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64, 999])
def test_the_batch_size_changes_nothing(batch_size):
    assert run(ppl(batch_size=batch_size)) == run(ppl())


def test_the_seed_moves_by_one_pair():
    """Pair i of seed s is pair i + 1 of seed s − 1."""
    first, second = ppl(10, seed=0), ppl(9, seed=1)
    run(first), run(second)
    torch.testing.assert_close(first.state()["distances"][1:], second.state()["distances"], rtol=0, atol=0)


def test_an_interrupted_score_goes_on():
    whole, first = run(ppl()), ppl()
    first.update(0)
    assert first.compute().n == PIECE
    second = ppl(batch_size=3)
    second.load_state(first.state())
    for piece in range(1, second.pieces()):
        second.update(piece)
    assert second.compute() == whole
    fresh = ppl()
    fresh.load_state(fresh.state())
    assert fresh.compute().value is None
    assert "no pair" in fresh.compute().protocol


def test_end_point_sampling_starts_at_the_end():
    """At t = 0 on slerps of one angle, the speed is that of the first end."""
    result = ppl(40, sampling="end")
    run(result)
    expected = []
    for seed in range(40):
        a, b = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed)).double().flatten(1)
        theta = torch.arccos(a @ b / a.norm() / b.norm())
        expected.append(4 * ((b.norm() - a.norm()).square() + (a.norm() * theta).square()))
    torch.testing.assert_close(result.state()["distances"] / 1e-8, torch.stack(expected), rtol=1e-3, atol=0)
    assert "end sampling" in result.compute().protocol


def test_protocols():
    stylegan, paper = run(ppl()), run(ppl(protocol="paper"))
    assert "stylegan2: d/ε² at ε = 0.0001, percentiles 1 to 99 kept" in stylegan.protocol
    assert "paper: d/ε at ε = 0.0001, all kept" in paper.protocol
    assert "proportional to ε" in paper.protocol
    assert paper.value == pytest.approx(stylegan.details["mean_of_all"] * 1e-4, rel=1e-9)
    assert paper.details["per_epsilon_squared"] == pytest.approx(stylegan.details["mean_of_all"], rel=1e-9)
    for result in (stylegan, paper):
        assert "squared distance of the pixels" in result.protocol
        assert "float64" in result.protocol
        assert "no steps" in result.protocol
    with pytest.raises(ValueError, match="expected one of stylegan2, paper"):
        ppl(protocol="other")
    with pytest.raises(ValueError, match="'full' or 'end'"):
        ppl(sampling="middle")


def test_both_points_of_a_pair_see_one_condition():
    """A class that is drawn anew for each image would put the distance of classes over ε²."""

    def conditional(x, seeds):
        assert len(x) == len(seeds)
        return x + torch.tensor([float(seed % 10) for seed in seeds]).reshape(-1, 1, 1, 1)

    assert run(ppl(decode=conditional)).value < 100


def test_precision():
    seen = []

    def look(x, seeds):
        seen.append(x.dtype)
        return x

    run(ppl(3, decode=look, dtype=torch.float32))
    assert seen == [torch.float32]
    linear = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    run(ppl(3, distance=feature_distance(FeatureNetwork("linear", linear))))
    assert linear[1].weight.dtype == torch.float32, "a network that other scores use is left as it is"
    with pytest.raises(ValueError, match="half precision"):
        run(ppl(3, dtype=torch.float16))


def test_the_distance_is_taken_of_images_that_are_not_clipped():
    assert run(ppl(5, decode=lambda x, _: 100 * x)).value == pytest.approx(2500 * run(ppl(5)).value, rel=1e-6)


def test_distances_that_are_not_finite():
    class Nothing(nn.Module):
        def forward(self, a, b):
            return torch.full((len(a),), math.nan)

    result = run(ppl(4, distance=PerceptualDistance("nothing", Nothing())))
    assert result.value is None
    assert "4 distances are not finite" in result.protocol
