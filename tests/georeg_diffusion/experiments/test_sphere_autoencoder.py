"""The toy autoencoders and what is measured of them."""

import math

import pytest
import torch

import georeg
from georeg_diffusion.experiments import sphere_autoencoder
from georeg_diffusion.experiments.sphere_autoencoder import (
    METRICS,
    aligned,
    disagreement,
    isometry_of,
    scores_of,
    train_autoencoder,
)
from georeg_diffusion.experiments.sphere_region import Region

CHART = georeg.SphereStereographic(radius=1.0)


def state_of(trained):
    return torch.cat([p.flatten() for p in (*trained.encoder.parameters(), *trained.decoder.parameters())])


def test_flat_is_euclidean_in_the_chart():
    """The domain that training uses against encoder ∘ Π⁻¹ with a Euclidean domain, values and gradients."""
    encoder = train_autoencoder("none", steps=1, seed=0).encoder.double().requires_grad_(True)
    x = Region().sample(64, torch.Generator().manual_seed(0)).double()
    x = x / x.norm(dim=1, keepdim=True)
    losses = {
        "domain": georeg.IsometryLoss(domain=METRICS["flat"], estimator=georeg.Exact(), normalize=True)(encoder, x).loss,
        "chart": georeg.IsometryLoss(estimator=georeg.Exact(), normalize=True)(
            lambda z: encoder(CHART.to_ambient(z)), CHART.from_ambient(x)
        ).loss,
    }
    torch.testing.assert_close(losses["domain"], losses["chart"], rtol=1e-9, atol=0)
    grads = [torch.autograd.grad(loss, list(encoder.parameters()), allow_unused=True) for loss in losses.values()]
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def test_the_flat_chart_is_fooled_by_the_stereographic_projection():
    region = Region()
    x = region.sample(2000, torch.Generator().manual_seed(0))
    fooled = georeg.IsometryLoss(domain=METRICS["flat"], estimator=georeg.Exact(), normalize=True)(CHART.from_ambient, x)
    assert fooled.loss.item() == pytest.approx(1, abs=1e-4)
    stereographic, equidistant = (scores_of(f, region, points=1024) for f in (CHART.from_ambient, region.equidistant))
    assert stereographic["condition"] == pytest.approx(1, abs=1e-3)
    assert stereographic["loss"] > 1.6 > 1.45 > equidistant["loss"] > 1
    assert stereographic["distances"] > equidistant["distances"] > 0


def test_scores_of_the_equidistant_projection_are_those_of_its_formula():
    """Its singular values are 1 along meridians and θ/sin θ along parallels."""
    region = Region(90.0)
    x = region.sample(200_000, torch.Generator().manual_seed(5)).double()
    theta = (-x[:, 2]).clamp(-1, 1).acos()
    stretch = theta / theta.sin()
    first, second = 1 + stretch.square(), 1 + stretch.pow(4)
    scores = scores_of(region.equidistant, region)
    assert scores["loss"] == pytest.approx(2 * second.mean().item() / first.mean().item() ** 2, rel=0.01)
    assert scores["condition"] == pytest.approx(stretch.mean().item(), rel=0.01)


def test_scores_of_a_small_region_are_those_of_an_isometry():
    """A small piece of the sphere is nearly flat: great circles are straight and all distances equal."""
    region = Region(3.0)
    moved = scores_of(lambda x: 7 * region.equidistant(x), Region(30.0), points=1024)
    assert 1 < moved["loss"] < 1.01
    assert 1 <= moved["rtl"] < 1.005
    assert moved["distances"] < 0.02


def test_rtl_of_a_half_turn_around_the_centre_is_that_of_a_curve():
    """Along the equator the equidistant projection draws circles of radius π/2: arc over chord."""
    region = Region()
    angle = math.radians(100)
    a, b = (torch.tensor([[math.cos(t), math.sin(t), 0.0]]) for t in (0.0, angle))
    path = region.equidistant(georeg.slerp(a, b, torch.linspace(0, 1, 65))[:, 0])[:, None]
    found = georeg.diagnostics.relative_trajectory_length(path).item()
    assert found == pytest.approx(angle / (2 * math.sin(angle / 2)), rel=1e-3)


def test_alignment_undoes_a_similarity():
    region = Region()
    x = region.sample(500, torch.Generator().manual_seed(0))
    turned = torch.tensor([[0.6, -0.8], [-0.8, -0.6]]) * 3
    same = aligned(lambda p: region.equidistant(p) @ turned + 5, x, region.equidistant)(x)
    centred = region.equidistant(x) - region.equidistant(x).mean(0)
    torch.testing.assert_close(same.float(), centred, rtol=1e-5, atol=1e-5)
    assert disagreement(lambda p: region.equidistant(p) @ turned + 5, region.equidistant, x) < 1e-5
    assert disagreement(CHART.from_ambient, region.equidistant, x) > 0.1


def test_equal_seeds_train_equally_and_leave_the_global_state_alone():
    torch.manual_seed(3)
    threads, expected = torch.get_num_threads(), torch.rand(1, generator=torch.Generator().manual_seed(3))
    first, again, other = (train_autoencoder("sphere", steps=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads
    assert torch.equal(state_of(first), state_of(again))
    assert not torch.equal(state_of(first), state_of(other))
    assert first.curve == again.curve
    assert [step for step, *_ in first.curve] == [0, 1, 2]


def test_losses_see_the_same_points_and_start():
    runs = [train_autoencoder(metric, steps=1, seed=0) for metric in METRICS]
    assert len({run.curve[0] for run in runs}) == 1
    assert len({float(state_of(run).sum()) for run in runs}) == 3


def test_probes_have_a_seed_of_their_own():
    runs = [train_autoencoder("sphere", steps=3, seed=0, probe_seed=probe, estimator="gaussian") for probe in (1, 1, 2)]
    assert torch.equal(state_of(runs[0]), state_of(runs[1]))
    assert not torch.equal(state_of(runs[0]), state_of(runs[2]))


def test_training_lowers_both_losses():
    region = Region(90.0)
    run = train_autoencoder("sphere", steps=150, seed=0, region=region)
    (_, error, loss), (_, error2, loss2) = run.curve[0], run.curve[-1]
    assert error2 < 0.05 * error
    assert loss2 < 1.15 < loss
    x = region.sample(512, torch.Generator().manual_seed(sphere_autoencoder._HELD_OUT_SEED))
    assert isometry_of(run.encoder, x).value == pytest.approx(run.curve[-1][2], rel=0.05)
    assert all(not p.requires_grad for p in run.encoder.parameters())


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="metric: got 'round', expected one of none, flat, sphere"):
        train_autoencoder("round", steps=1, seed=0)
    with pytest.raises(ValueError, match="estimator: got 'best', expected one of exact, gaussian, fixed-norm"):
        train_autoencoder("none", steps=1, seed=0, estimator="best")
    with pytest.raises(ValueError, match="steps: got 0"):
        train_autoencoder("none", steps=0, seed=0)
