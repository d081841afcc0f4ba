"""Directions that were planted; walks whose end is known."""

import math

import pytest
import torch

from georeg_diffusion.editing.labels import held_out_accuracy, label_direction
from georeg_diffusion.editing.shooting import shoot
from georeg_diffusion.editing.sphere import exp_map, unit_tangent

G = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("method", ["svm", "means"])
@pytest.mark.parametrize("offset", [0.0, 1.0])  # of the hyperplane: classes of one size, and of 84 to 16
def test_a_planted_direction_is_found(method, offset):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(800, 2, 3, 4, generator=g)
    normal = torch.randn(2, 3, 4, generator=g)
    normal = normal / normal.norm()
    labels = (x * normal).flatten(1).sum(1) > offset
    found = label_direction(x, labels, method=method)
    assert found.vector.shape == (1, 2, 3, 4)
    assert found.vector.norm() == pytest.approx(1, abs=1e-5)
    assert float((found.vector[0] * normal).sum()) > (0.97 if method == "svm" else 0.93)
    if method == "svm":
        assert found.offset == pytest.approx(-offset, abs=0.15)
    assert held_out_accuracy(x, labels, method=method) > 0.85
    flipped = label_direction(x, ~labels, method=method)
    torch.testing.assert_close(flipped.vector, -found.vector, rtol=0, atol=5e-2)


def test_means_are_the_difference_and_the_svm_is_the_widest_margin():
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [2.0, 0.0], [2.0, 9.0]])
    labels = torch.tensor([False, False, True, True])
    means = label_direction(x, labels, method="means").vector
    torch.testing.assert_close(means, torch.tensor([[2.0, 4.0]]) / 20**0.5)
    torch.testing.assert_close(label_direction(x, labels).vector, torch.tensor([[1.0, 0.0]]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ["svm", "means"])
def test_held_out_accuracy_of_chance_is_one_half(method):
    """More dimensions than latents: on those it was found from the hyperplane is perfect."""
    x = torch.randn(300, 400, generator=torch.Generator().manual_seed(2))
    labels = torch.rand(300, generator=torch.Generator().manual_seed(3)) < 0.3
    found = label_direction(x, labels)
    assert bool((((x @ found.vector[0] + found.offset) > 0) == labels).all())
    assert abs(held_out_accuracy(x, labels, method=method) - 0.5) < 4 * (0.25 / 90 + 0.25 / 210) ** 0.5 / 2
    assert held_out_accuracy(x, torch.arange(300) < 3) is None
    with pytest.raises(ValueError, match="folds"):
        held_out_accuracy(x, labels, folds=1)
    with pytest.raises(ValueError, match="method"):
        held_out_accuracy(x, labels, method="lda")


def test_label_errors():
    x = torch.randn(6, 4, generator=G)
    yes = torch.ones(6, dtype=torch.bool)
    half = torch.arange(6) < 3
    for arguments, options, message in [
        ((x, yes), {}, "6 of 6"),
        ((x, ~yes), {}, "0 of 6"),
        ((x, half[:5]), {}, "labels"),
        ((x, half), {"method": "lda"}, "method"),
        ((x * float("nan"), half), {}, "NaN"),
        ((x[:1].expand(6, -1), half), {"method": "means"}, "the same"),
    ]:
        with pytest.raises(ValueError, match=message):
            label_direction(*arguments, **options)


def test_shooting_through_an_isometry_is_the_exponential_map():
    """f = c Q x: every geodesic of the image is the image of a great circle."""
    Q = torch.linalg.qr(torch.randn(9, 6, dtype=torch.float64, generator=G)).Q
    x, v = torch.randn(2, 3, 2, 3, dtype=torch.float64, generator=G)
    path = shoot(lambda x: 7 * x.flatten(1) @ Q.T, x, v, 0.2, 5, rank=5)
    u = unit_tangent(x, v)
    r = x.flatten(1).norm(dim=1).reshape(-1, 1, 1)
    for step in range(6):
        torch.testing.assert_close(path[step], exp_map(x, 0.2 * step * r * u), rtol=0, atol=1e-6)
    back = shoot(lambda x: 7 * x.flatten(1) @ Q.T, x, v, -0.2, 2, rank=5)
    torch.testing.assert_close(back[2], exp_map(x, -0.4 * r * u), rtol=0, atol=1e-6)


def test_shooting_stays_on_a_great_circle_that_a_symmetry_fixes():
    """f = diag(4, 4, 2, 1) and rank 1: the circle in the first two axes is one of the image's geodesics."""
    scale = torch.tensor([4.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    eye = torch.eye(4, dtype=torch.float64)
    path = shoot(lambda x: x * scale, 3 * eye[:1], eye[1:2], 0.3, 4, rank=1)
    expected = torch.stack([3 * (math.cos(0.3 * k) * eye[:1] + math.sin(0.3 * k) * eye[1:2]) for k in range(5)])
    torch.testing.assert_close(path, expected, rtol=0, atol=1e-7)


def test_shooting_on_an_ellipsoid_keeps_its_direction_in_h():
    """f = diag(1, 2, 3): to second order the walk is a geodesic, whose acceleration is normal to the image. A great
    circle's is not, so this is not the exponential map in disguise."""
    scale = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    x, v = torch.tensor([[[1.0, 0.4, 0.3]], [[-0.2, 1.0, 0.5]]], dtype=torch.float64)
    x = x / x.norm()

    def bend(path):
        """The direction of the curve in h turns about the normal by this, relative to how far it turns towards it."""
        curve = (path * scale)[:, 0]
        tangents = curve[1:] - curve[:-1]
        tangents = tangents / tangents.norm(dim=1, keepdim=True)
        turn = tangents[1:] - tangents[:-1]
        normal = curve[1:-1] / scale**2
        normal = normal / normal.norm(dim=1, keepdim=True)
        along = (turn * normal).sum(1, keepdim=True)
        return float((turn - along * normal).norm() / along.norm())

    angle = 0.01
    walk = shoot(lambda x: x * scale, x, v, angle, 60, rank=2)
    circle = torch.stack([exp_map(x, angle * k * unit_tangent(x, v)) for k in range(61)])
    assert bend(walk) < 0.02
    assert bend(circle) > 5 * bend(walk)
    torch.testing.assert_close(walk.flatten(1).norm(dim=1), torch.ones(61, dtype=torch.float64))


def test_shooting_per_sample_and_errors():
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    x, v = torch.randn(2, 3, 4, dtype=torch.float64, generator=G)

    def f(x):
        return (x * scale).sin()

    both = shoot(f, x, v, 0.1, 3, rank=3)
    for i in range(3):
        torch.testing.assert_close(
            both[:, i : i + 1], shoot(f, x[i : i + 1], v[i : i + 1], 0.1, 3, rank=3), rtol=0, atol=1e-6
        )
    assert torch.equal(shoot(f, x, v, 0.1, 0), x[None])
    assert bool(torch.isfinite(shoot(lambda x: 0 * x, x, v, 0.1, 3)).all())  # a constant map: it stops after a step
    with pytest.raises(ValueError, match="num_steps"):
        shoot(f, x, v, 0.1, -1)
    with pytest.raises(ValueError, match="rank"):
        shoot(f, x, v, 0.1, 1, rank=0)
    with pytest.raises(ValueError, match="along x"):
        shoot(f, x, x, 0.1, 1)
