"""Great-circle and straight paths: exact ends, kept lengths, finite and right gradients."""

import math

import pytest
import torch
from scipy.spatial import geometric_slerp

import georeg

STEPS = torch.linspace(0, 1, 7, dtype=torch.float64)


def ends(*shape, dtype=torch.float64):
    x = torch.randn(2, *shape, dtype=dtype)
    return x[0], x[1]


@pytest.mark.parametrize("seed", range(5))
def test_slerp_equals_scipy_on_the_unit_sphere(seed):
    torch.manual_seed(seed)
    x0, x1 = (torch.nn.functional.normalize(x, dim=1) for x in ends(3, 5))
    path = georeg.slerp(x0, x1, STEPS)
    for i in range(3):
        expected = torch.from_numpy(geometric_slerp(x0[i].numpy(), x1[i].numpy(), STEPS.numpy()))
        torch.testing.assert_close(path[:, i], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [(4, 6), (4, 2, 3, 3)])
def test_slerp_interpolates_lengths_linearly_per_sample_and_hits_the_ends(shape):
    x0, x1 = ends(*shape)
    x1 = 5 * x1
    path = georeg.slerp(x0, x1, STEPS)
    norms = path.flatten(2).norm(dim=2)
    expected = georeg.lerp(x0.flatten(1).norm(dim=1, keepdim=True), x1.flatten(1).norm(dim=1, keepdim=True), STEPS)
    torch.testing.assert_close(norms, expected.squeeze(2), rtol=1e-13, atol=0)
    assert torch.equal(path[0], x0)
    assert torch.equal(path[-1], x1)
    alone = torch.cat([georeg.slerp(x0[i : i + 1], x1[i : i + 1], STEPS) for i in range(4)], dim=1)
    torch.testing.assert_close(path, alone, rtol=1e-14, atol=1e-15)


def test_slerp_moves_at_constant_angular_speed():
    x0, x1 = (torch.nn.functional.normalize(x, dim=1) for x in ends(3, 4))
    path = georeg.slerp(x0, x1, STEPS)
    chords = (path[1:] - path[:-1]).norm(dim=-1)
    torch.testing.assert_close(chords, chords[:1].expand_as(chords), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "angle", [0.0, 1e-12, 1e-7, 1e-3, 0.9999, 1.0001, 3.0, math.pi - 1e-3, math.pi - 1e-7, math.pi - 1e-12]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_slerp_of_nearly_parallel_and_nearly_antipodal_ends(angle, dtype):
    x0 = torch.tensor([[2.0, 0.0, 0.0]], dtype=dtype)
    x1 = 2 * torch.tensor([[math.cos(angle), math.sin(angle), 0.0]], dtype=dtype)
    path = georeg.slerp(x0, x1, STEPS)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(path.norm(dim=-1), torch.full_like(path[..., 0], 2.0), rtol=8 * eps, atol=0)
    middle = 2 * torch.tensor([[math.cos(angle / 2), math.sin(angle / 2), 0.0]], dtype=dtype)
    # Near π the plane of the circle is what the difference of two rounded vectors leaves of it.
    condition = 1 / max(math.pi - angle, eps)
    if condition * eps < 1e-2:
        torch.testing.assert_close(path[3], middle, rtol=0, atol=8 * eps * condition)


@pytest.mark.parametrize("event", [(2,), (3, 4)])
def test_slerp_of_antipodal_ends_is_a_great_circle_of_the_same_length(event):
    x0, _ = ends(3, *event)
    path = georeg.slerp(x0, -x0, STEPS).flatten(2)
    norm = x0.flatten(1).norm(dim=1)
    torch.testing.assert_close(path.norm(dim=2), norm.expand(7, 3), rtol=1e-13, atol=0)
    length = (path[1:] - path[:-1]).norm(dim=2).sum(0)
    torch.testing.assert_close(length, norm * 6 * 2 * math.sin(math.pi / 12), rtol=1e-12, atol=0)


def test_slerp_from_zero_and_of_vectors_of_one_number():
    x1 = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(georeg.slerp(torch.zeros(1, 2), x1, 0.5), x1 / 2)
    torch.testing.assert_close(georeg.slerp(x1, torch.zeros(1, 2), 0.5), x1 / 2)
    assert torch.equal(georeg.slerp(torch.zeros(1, 2), torch.zeros(1, 2), 0.5), torch.zeros(1, 2))
    assert georeg.slerp(torch.ones(1, 1), -torch.ones(1, 1), 0.5).isfinite().all()


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("angle", [0.5, 0.99, 1.01, 2.0])
def test_slerp_gradients_equal_finite_differences(t, angle):
    x0 = torch.tensor([[1.5, 0.2, -0.3]], dtype=torch.float64, requires_grad=True)
    turn = torch.tensor([[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0], [0, 0, 1]]).double()
    x1 = (x0.detach() @ turn).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: georeg.slerp(a, b, t), (x0, x1))


def test_slerp_gradient_at_equal_ends_is_that_of_the_straight_line():
    """Both ends equal: ∂x(t)/∂x1 = t·I, which an angle with a blocked gradient would lose or turn into NaN."""
    x = torch.randn(1, 4, dtype=torch.float64)
    for t in (0.0, 0.25, 1.0):
        j0, j1 = torch.autograd.functional.jacobian(lambda a, b, t=t: georeg.slerp(a, b, t)[0], (x, x.clone()))
        torch.testing.assert_close(j0[:, 0], (1 - t) * torch.eye(4).double(), rtol=0, atol=1e-12)
        torch.testing.assert_close(j1[:, 0], t * torch.eye(4).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [lambda x: -x, torch.zeros_like], ids=["antipodal", "zero"])
def test_slerp_gradients_are_finite_where_the_path_is_not_unique(make):
    x0 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    x1 = make(x0.detach()).requires_grad_()
    for a, b in ((x0, x1), (x1, x0)):
        grads = torch.autograd.grad(georeg.slerp(a, b, STEPS).square().sum(), [x0, x1])
        assert all(g.isfinite().all() for g in grads)


def test_steps_are_numbers_or_a_leading_axis():
    x0, x1 = ends(2, 3)
    for path in (georeg.slerp, georeg.lerp):
        assert path(x0, x1, 0.5).shape == (2, 3)
        assert path(x0, x1, torch.tensor([0.5, 0.7])).shape == (2, 2, 3)
        torch.testing.assert_close(path(x0, x1, torch.tensor([0.5, 0.75]))[1], path(x0, x1, 0.75))
        assert path(x0.half(), x1.half(), 0.5).dtype == torch.float16


def test_lerp_is_straight():
    x0, x1 = ends(2, 3)
    torch.testing.assert_close(georeg.lerp(x0, x1, STEPS)[2], x0 + (x1 - x0) / 3)


def test_bad_ends_are_refused():
    with pytest.raises(ValueError, match=r"x1: got shape \(3, 2\), expected x0's"):
        georeg.slerp(torch.ones(2, 2), torch.ones(3, 2), 0.5)
    with pytest.raises(ValueError, match=r"x0: got shape \(2,\), expected a batch"):
        georeg.lerp(torch.ones(2), torch.ones(2), 0.5)


# Curves and geodesics of a metric


def arc(angle=2.0, steps=64):
    x1 = torch.tensor([[math.cos(angle), math.sin(angle), 0.0]], dtype=torch.float64)
    return georeg.slerp(torch.eye(3, dtype=torch.float64)[:1], x1, torch.linspace(0, 1, steps + 1).double())


@pytest.mark.parametrize(
    "manifold", [None, georeg.Sphere(), georeg.Sphere(1.0), georeg.CustomMetric(lambda x: 9 * torch.ones(len(x)))]
)
def test_length_and_energy_of_a_circular_arc(manifold):
    path, scale = arc(), 3 if isinstance(manifold, georeg.CustomMetric) else 1
    error = 2.0 * (2 / 64) ** 2  # O(h²)
    assert georeg.curve_length(path, manifold).item() == pytest.approx(2.0 * scale, abs=error * scale)
    assert georeg.curve_energy(path, manifold).item() == pytest.approx(2.0 * scale**2, abs=2 * error * scale**2)
    again = georeg.curve_length(arc(steps=128), manifold).item()
    assert abs(again - 2 * scale) < 0.3 * abs(georeg.curve_length(path, manifold).item() - 2 * scale)


def test_energy_bounds_the_squared_length_with_equality_at_constant_speed():
    path = torch.randn(9, 4, 3, dtype=torch.float64)
    assert (georeg.curve_length(path).square() <= 2 * georeg.curve_energy(path)).all()
    torch.testing.assert_close(georeg.curve_length(arc()).square(), 2 * georeg.curve_energy(arc()), rtol=1e-12, atol=0)


def test_length_in_the_induced_metric_is_the_length_of_the_image():
    f = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5)).double()
    path = georeg.lerp(*ends(3, 2), torch.linspace(0, 1, 201).double())
    image = f(path.flatten(0, 1)).reshape(201, 3, 5)
    induced = georeg.curve_length(path, georeg.PullbackMetric(f))
    torch.testing.assert_close(induced, georeg.curve_length(image), rtol=1e-4, atol=0)


def test_length_of_a_path_that_stands_still_has_gradient_zero():
    path = torch.ones(4, 2, 3, requires_grad=True)
    assert not torch.autograd.grad(georeg.curve_length(path).sum(), path)[0].any()


def test_geodesics_of_the_sphere_are_great_circles():
    x0, x1 = (torch.nn.functional.normalize(x, dim=1) for x in ends(3, 4))
    for steps in (16, 64):
        found = georeg.geodesic(x0, x1, georeg.Sphere(1.0), steps=steps)
        assert found.converged.all()
        circle = georeg.slerp(x0, x1, torch.linspace(0, 1, steps + 1).double())
        torch.testing.assert_close(found.path, circle, rtol=0, atol=1e-6)
        angle = torch.arccos((x0 * x1).sum(1))
        torch.testing.assert_close(found.length, angle, rtol=2 / steps**2, atol=0)
    assert torch.equal(found.path[0], x0)
    assert torch.equal(found.path[-1], x1)


@pytest.mark.parametrize("pulled", [True, False])
def test_geodesics_in_a_chart_of_the_sphere_are_great_circles(pulled):
    """The metric that the chart's inverse induces is the chart's own, and its geodesics are curved in the chart."""
    chart = georeg.SphereStereographic()
    z0, z1 = ends(2, 2)
    found = georeg.geodesic(z0, z1, georeg.PullbackMetric(chart.to_ambient) if pulled else chart, steps=32)
    assert found.converged.all()
    path = chart.to_ambient(found.path.flatten(0, 1)).reshape(33, 2, 3)
    torch.testing.assert_close(path, georeg.slerp(path[0], path[-1], torch.linspace(0, 1, 33).double()), rtol=0, atol=5e-3)
    torch.testing.assert_close(found.length, torch.arccos((path[0] * path[-1]).sum(1)), rtol=2e-3, atol=0)
    straight = chart.to_ambient(georeg.lerp(z0, z1, torch.linspace(0, 1, 33).double()).flatten(0, 1)).reshape(33, 2, 3)
    assert (straight - path).abs().max() > 0.05


def test_geodesics_of_the_plane_are_straight_from_any_start():
    A = torch.randn(5, 2, dtype=torch.float64)
    z0, z1 = ends(3, 2)
    line = georeg.lerp(z0, z1, STEPS)
    noise = torch.randn_like(line) * torch.tensor([0.0, 1, 1, 1, 1, 1, 0])[:, None, None]
    found = georeg.geodesic(z0, z1, georeg.PullbackMetric(lambda z: z @ A.T), steps=6, initial=line + noise)
    torch.testing.assert_close(found.path, line, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.length, ((z1 - z0) @ A.T).norm(dim=1), rtol=1e-8, atol=0)


def test_geodesics_of_a_network_are_shorter_than_straight_and_do_not_touch_it():
    f = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 6)).double()
    f[0].weight.data.mul_(3)
    metric = georeg.PullbackMetric(f)
    z0, z1 = ends(3, 2)
    with torch.no_grad():
        found = georeg.geodesic(z0, z1, metric, steps=12)
    assert found.converged.all()
    assert (found.length < georeg.curve_length(georeg.lerp(z0, z1, torch.linspace(0, 1, 13).double()), metric)).all()
    assert all(p.grad is None for p in f.parameters())
    assert not found.path.requires_grad
    alone = georeg.geodesic(z0[1:2], z1[1:2], metric, steps=12)
    torch.testing.assert_close(found.path[:, 1:2], alone.path, rtol=0, atol=1e-10)
    impatient = georeg.geodesic(z0, z1, metric, steps=12, max_iterations=1)
    assert not impatient.converged.any()


def test_geodesic_between_equal_ends_and_of_no_samples():
    x = torch.eye(3)[:1]
    found = georeg.geodesic(x, x, georeg.Sphere(1.0))
    assert found.length.item() == 0
    assert found.converged.all()
    assert georeg.geodesic(x[:0], x[:0], georeg.Sphere(1.0)).path.shape == (17, 0, 3)


def test_bad_geodesics_are_refused():
    x = torch.eye(3)
    with pytest.raises(ValueError, match="steps: got 1, expected at least 2"):
        georeg.geodesic(x, x, georeg.Euclidean(), steps=1)
    with pytest.raises(ValueError, match=r"initial: got shape \(4, 3, 3\), expected \(17, 3, 3\)"):
        georeg.geodesic(x, x, georeg.Euclidean(), initial=torch.ones(4, 3, 3))
    with pytest.raises(ValueError, match="x1: got points with norms 2 to 2"):
        georeg.geodesic(x, 2 * x, georeg.Sphere(1.0))
    with pytest.raises(ValueError, match="path: got shape"):
        georeg.curve_length(torch.ones(1, 2, 3))
