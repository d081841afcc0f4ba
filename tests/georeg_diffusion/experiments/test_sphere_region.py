"""The region of the sphere that the toy autoencoders see."""

import math

import pytest
import torch

import georeg
from georeg_diffusion.experiments.sphere_region import POLE, Region

REGIONS = [
    Region(),
    Region(90.0),
    Region(60.0, (0.0, -1.0, 0.0)),
    Region(20.0, (0.6, 0.0, -0.8)),
    Region(50.0, (1.0, 0.0, 0.0)),
]


@pytest.fixture(params=REGIONS, ids=lambda r: f"{r.angle:g}° around {r.centre}")
def region(request):
    return request.param


def angle_to(x, centre):
    """In degrees, by the chord: another formula than the code's."""
    return 2 * ((x - torch.tensor(centre)).norm(dim=-1) / 2).clamp(max=1).asin().rad2deg()


def test_points_fill_the_region_by_area(region):
    x = region.sample(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.norm(dim=1), torch.ones(len(x)))
    angles = angle_to(x, region.centre)
    assert 0.98 * region.angle < angles.max() <= region.angle + 0.05
    # The area within θ is 2π(1 − cos θ): at the median half of it.
    half = math.degrees(math.acos((1 + math.cos(math.radians(region.angle))) / 2))
    assert (angles < half).double().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / len(x) ** 0.5)
    across = torch.stack([x.double() @ torch.linalg.svd(torch.tensor([region.centre]).double()).Vh[i] for i in (1, 2)])
    assert (across.mean(1).abs() <= 4 * across.std(1) / len(x) ** 0.5).all()
    assert not region.contains(torch.tensor(POLE))


def test_what_is_drawn_lies_on_the_region(region):
    for theta, circle in region.parallels():
        torch.testing.assert_close(angle_to(circle, region.centre), torch.full((len(circle),), theta), rtol=0, atol=0.05)
    assert region.parallels()[-1][0] <= region.angle
    for line in region.meridians():
        assert (angle_to(line, region.centre).diff() > 0).all()
        # Of a great circle: all points in one plane with the origin.
        assert torch.linalg.svdvals(line.double())[2] < 1e-5
    for disc in region.discs():
        centre = disc[:-1].mean(0) / disc[:-1].mean(0).norm()
        torch.testing.assert_close(angle_to(disc, centre.tolist()), torch.full((len(disc),), 7.0), rtol=0, atol=0.05)
        assert region.contains(disc).all()


def test_discs_do_not_overlap(region):
    centres = torch.stack([d[:-1].mean(0) / d[:-1].mean(0).norm() for d in region.discs()])
    between = torch.rad2deg(torch.acos((centres @ centres.mT).clamp(-1, 1))).fill_diagonal_(180)
    assert between.min() > 14


def test_arcs_between_pairs_stay_in_the_region(region):
    a, b = region.pairs(200, torch.Generator().manual_seed(0))
    assert a.shape == b.shape == (200, 3)
    path = georeg.slerp(a, b, torch.linspace(0, 1, 401))
    assert (angle_to(path, region.centre) <= region.angle + 0.1).all()
    assert angle_to(a, (0.0, 0.0, 0.0)).isfinite().all()
    assert ((a * b).sum(1) <= math.cos(math.radians(20)) + 1e-6).all()


def test_equidistant_projection_keeps_distances_from_the_centre_and_directions(region):
    x = region.sample(500, torch.Generator().manual_seed(0))
    y = region.equidistant(x)
    torch.testing.assert_close(y.norm(dim=1).rad2deg(), angle_to(x, region.centre), rtol=1e-3, atol=0.05)
    assert region.equidistant(torch.tensor([region.centre])).abs().max() < 1e-3
    assert all(torch.linalg.svdvals(region.equidistant(line).double())[1] < 1e-4 for line in region.meridians())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"angle": 0.0}, "angle: got 0.0"),
        ({"angle": math.nan}, "angle: got nan"),
        ({"angle": 180.0}, "angle: got 180.0"),
        ({"centre": (0.0, 0.0, 2.0)}, "length 2, expected a unit vector"),
        ({"angle": 90.0, "centre": (0.0, -1.0, 0.0)}, "expected less than 90, at which the chart's pole is"),
    ],
)
def test_what_is_no_region_is_refused(given, says):
    with pytest.raises(ValueError, match=says):
        Region(**given)
