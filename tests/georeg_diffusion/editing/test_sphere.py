"""Moves on the sphere against closed forms."""

import math

import pytest
import torch

from georeg_diffusion.editing.sphere import exp_map, move, unit_tangent

G = torch.Generator().manual_seed(0)
X = torch.randn(4, 2, 5, 5, dtype=torch.float64, generator=G)
V = torch.randn(3, 4, 2, 5, 5, dtype=torch.float64, generator=G)


def angle(a, b):
    """Between events, from half-chords."""
    a, b = (y.flatten(-3) / y.flatten(-3).norm(dim=-1, keepdim=True) for y in (a, b))
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


@pytest.mark.parametrize("gamma", [-2.0, -0.5, 0.0, 1e-6, 1.0, 7.0])
def test_a_step_stays_on_the_sphere_and_turns_by_its_angle(gamma):
    a = 0.37
    y = move(X, V[:1], [gamma], a)
    torch.testing.assert_close(y.flatten(1).norm(dim=1), X.flatten(1).norm(dim=1), rtol=1e-14, atol=0)
    torch.testing.assert_close(angle(X, y), torch.full((4,), abs(gamma * a), dtype=torch.float64), rtol=1e-9, atol=1e-15)
    u = unit_tangent(X, V[0])
    if 0 < abs(gamma * a) < math.pi:
        along = ((y - X) * u).flatten(1).sum(1)
        assert bool((along.sign() == math.copysign(1, gamma)).all())


def test_no_step_is_x_bit_by_bit():
    for dtype in (torch.float16, torch.float32, torch.float64):
        x = X.to(dtype)
        assert torch.equal(move(x, V.to(dtype), [0.0, 0.0, 0.0], 0.3), x)


def test_the_exponential_map_solves_the_geodesic_equation():
    """c″ = −‖c′‖²/r² c, integrated by Runge-Kutta; and Exp_x((s+t)v) goes on from Exp_x(sv)."""
    v = 3 * V[0] - X * ((3 * V[0] * X).flatten(1).sum(1) / X.flatten(1).square().sum(1)).reshape(-1, 1, 1, 1)
    speed = v.flatten(1).square().sum(1).reshape(-1, 1, 1, 1) / X.flatten(1).square().sum(1).reshape(-1, 1, 1, 1)
    c, w, steps = X, v, 400
    h = 1 / steps
    for _ in range(steps):
        k1 = (w, -speed * c)
        k2 = (w + h / 2 * k1[1], -speed * (c + h / 2 * k1[0]))
        k3 = (w + h / 2 * k2[1], -speed * (c + h / 2 * k2[0]))
        k4 = (w + h * k3[1], -speed * (c + h * k3[0]))
        c = c + h / 6 * (k1[0] + 2 * k2[0] + 2 * k3[0] + k4[0])
        w = w + h / 6 * (k1[1] + 2 * k2[1] + 2 * k3[1] + k4[1])
    torch.testing.assert_close(exp_map(X, v), c, rtol=0, atol=1e-8)


def test_directions_combine_linearly_in_the_tangent_space():
    u = unit_tangent(X, V)
    torch.testing.assert_close((u * X).flatten(2).sum(2), torch.zeros(3, 4, dtype=torch.float64), rtol=0, atol=1e-13)
    weights = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 0.0]], dtype=torch.float64)
    found = move(X, V, weights, 0.1)
    assert found.shape == (2, *X.shape)
    r = X.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(found[0], exp_map(X, 0.1 * r * (u[0] - 2 * u[1] + 0.5 * u[2])))
    torch.testing.assert_close(found[1], move(X, V[1:2], [1.0], 0.1))
    alone = torch.stack([move(X[i : i + 1], V[:, i : i + 1], weights, 0.1)[:, 0] for i in range(4)], dim=1)
    torch.testing.assert_close(found, alone)


def test_one_direction_serves_all_samples_and_half_precision_keeps_the_norm():
    torch.testing.assert_close(
        move(X, V[:, :1], [1.0, 0, 0], 0.2), move(X, V[:, :1].expand(-1, 4, -1, -1, -1), [1.0, 0, 0], 0.2)
    )
    big = torch.randn(2, 3, 64, 64, generator=G).half()
    y = move(big, torch.randn(1, 2, 3, 64, 64, generator=G), [1.0], 0.5)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float().flatten(1).norm(dim=1), big.float().flatten(1).norm(dim=1), rtol=1e-3, atol=0)


def test_errors():
    with pytest.raises(ValueError, match="direction.*along x"):
        unit_tangent(X, 3 * X)
    with pytest.raises(ValueError, match="direction"):
        unit_tangent(X, torch.full_like(X, float("nan")))
    with pytest.raises(ValueError, match="origin"):
        exp_map(0 * X, V)
    for shape in ((3, 2, 5, 5), (4, 2, 5), (2, 4, 2, 4, 5)):
        with pytest.raises(ValueError, match="direction: got shape"):
            unit_tangent(X, torch.ones(shape, dtype=torch.float64))
    for weights in ([1.0], [[[1.0, 1, 1]]]):
        with pytest.raises(ValueError, match="weights"):
            move(X, V, weights, 0.1)
