"""PPL's mathematics: exact for linear generators, and torchmetrics' on the same generator and distance."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import perceptual_path_length

from georeg_diffusion.evaluation.path_length import PROTOCOLS, path_distances, path_points, trimmed_mean


def squared(a, b):
    return (a - b).flatten(1).square().sum(1)


def ends(count=5, shape=(2, 3, 3), seed=0):
    return torch.randn(2, count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(x):
    return x / x.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


def angle(x0, x1):
    return torch.arccos((unit(x0) * unit(x1)).flatten(1).sum(1))


@pytest.mark.parametrize("epsilon", [1e-4, 0.01, 0.25])
def test_a_scaled_isometry_has_the_chord_of_its_arc(epsilon):
    """G(x) = c·x on ends of length ρ: d = (2 c ρ sin(θε/2))² at every t, and d/ε² → (cρθ)²."""
    x0, x1 = (4 * unit(e) for e in ends())
    t = torch.tensor([0.0, 0.2, 0.5, 0.7, 0.9])
    d = path_distances(lambda x: 3 * x, squared, x0, x1, t, epsilon=epsilon, dtype=torch.float64)
    theta = angle(x0, x1)
    torch.testing.assert_close(d, (2 * 12 * torch.sin(theta * epsilon / 2)).square(), rtol=1e-9, atol=0)
    limit = (12 * theta).square()
    torch.testing.assert_close(d / epsilon**2, limit, rtol=(theta.max().item() * epsilon) ** 2 / 12 * 1.01 + 1e-9, atol=0)


def test_a_linear_generator_along_a_spiral_between_ends_of_different_length():
    """d/ε² → ‖A x'(t)‖², x' differentiated by hand: x = ρ(t) u(t), u' = θ (−cos((1−t)θ) x̂₀ + cos(tθ) x̂₁)/sin θ."""
    x0, x1 = ends()
    A = torch.randn(7, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    t = torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0], dtype=torch.float64)
    theta = angle(x0, x1)
    r0, r1 = x0.flatten(1).norm(dim=1), x1.flatten(1).norm(dim=1)

    def rows(v):
        return v[:, None]

    u0, u1 = unit(x0).flatten(1), unit(x1).flatten(1)
    u = (rows(torch.sin((1 - t) * theta)) * u0 + rows(torch.sin(t * theta)) * u1) / rows(torch.sin(theta))
    du = rows(theta) * (rows(torch.cos(t * theta)) * u1 - rows(torch.cos((1 - t) * theta)) * u0) / rows(torch.sin(theta))
    velocity = rows(r1 - r0) * u + rows((1 - t) * r0 + t * r1) * du
    expected = (velocity @ A.T).square().sum(1)

    d = path_distances(lambda x: x.flatten(1) @ A.T, squared, x0, x1, t, epsilon=1e-5, dtype=torch.float64)
    torch.testing.assert_close(d / 1e-10, expected, rtol=1e-4, atol=0)


def test_the_slerp_takes_an_image_as_one_vector():
    """A slerp along the last axis alone, as code for (B, z) does on (B, C, H, W), is another curve."""
    x0, x1 = ends()
    t = torch.full((5,), 0.3)
    flat = path_points(x0.flatten(1), x1.flatten(1), t, 0.1)
    torch.testing.assert_close(path_points(x0, x1, t, 0.1).flatten(2), flat)
    assert path_points(x0[:0], x1[:0], t[:0], 0.1).shape == (2, 0, 2, 3, 3)
    with pytest.raises(ValueError, match="one for each of 5 pairs"):
        path_points(x0, x1, t[:3], 0.1)


class Generator(torch.nn.Module):
    """Of the kind that torchmetrics takes: flat latents of length 1, images in [0, 255]."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(6)
        self.matrix = torch.randn(6, 12, dtype=torch.float64, generator=generator)
        self.latents = list(torch.randn(2, 40, 6, dtype=torch.float64, generator=generator))
        self.latents = [x / x.norm(dim=1, keepdim=True) for x in self.latents]
        self.queue = list(self.latents)

    def sample(self, count):
        return self.queue.pop(0)

    def forward(self, z):
        return 127.5 * ((z @ self.matrix).tanh().reshape(-1, 3, 2, 2) + 1)


class SquaredDistance(torch.nn.Module):
    def forward(self, a, b):
        return squared(a, b)


def test_distances_are_those_of_torchmetrics():
    """End-point sampling, which is the only one it has; ends of length 1, for which the two slerps agree."""
    model = Generator()
    x0, x1 = model.latents
    mean, _, theirs = perceptual_path_length(
        model, num_samples=40, interpolation_method="slerp_any", resize=None, sim_net=SquaredDistance(),
        lower_discard=None, upper_discard=None, batch_size=7,
    )  # fmt: skip
    d = path_distances(lambda z: model(z) / 127.5 - 1, squared, x0, x1, torch.zeros(40), epsilon=1e-4, dtype=torch.float64)
    torch.testing.assert_close(d / 1e-8, theirs, rtol=1e-4, atol=0)
    assert trimmed_mean(d / 1e-8, None).value == pytest.approx(float(mean), rel=1e-4)


def test_the_trimmed_mean_is_stylegans_and_torchmetrics_drops_one_more():
    model = Generator()
    _, _, kept = perceptual_path_length(
        model, num_samples=40, interpolation_method="slerp_any", resize=None, sim_net=SquaredDistance()
    )
    values = path_distances(
        lambda z: model(z) / 127.5 - 1, squared, *model.latents, torch.zeros(40), epsilon=1e-4, dtype=torch.float64
    )
    values = values / 1e-8
    low = np.percentile(values, 1, method="lower")
    high = np.percentile(values, 99, method="higher")
    expected = values[(values >= low) & (values <= high)].mean()
    assert trimmed_mean(values, (1, 99)).value == pytest.approx(float(expected), rel=1e-12)
    # Their upper bound is rounded down: with 40 values the largest is dropped, ours keeps it.
    torch.testing.assert_close(values.sort().values[:-1], kept.sort().values, rtol=1e-4, atol=0)


def test_the_standard_error_of_a_trimmed_mean():
    """Against its spread over 600 repetitions, on heavy tails, where that of the values kept is too small."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(600, 200, dtype=torch.float64, generator=generator).exp()
    estimates = [trimmed_mean(row, (5.0, 95.0)) for row in x]
    spread = torch.tensor([e.value for e in estimates]).std()
    reported = torch.tensor([e.stderr for e in estimates]).square().mean().sqrt()
    assert reported == pytest.approx(float(spread), rel=0.1)
    assert estimates[0].n == 200


def test_the_percentiles_leave_few_values_alone():
    assert trimmed_mean(torch.tensor([2.0]).double(), (1.0, 99.0)).value == 2
    assert trimmed_mean(torch.tensor([2.0]).double(), (1.0, 99.0)).stderr is None
    assert trimmed_mean(torch.tensor([1.0, 3.0]).double(), (1.0, 99.0)).value == 2
    with pytest.raises(ValueError, match="no samples"):
        trimmed_mean(torch.empty(0), (1.0, 99.0))


def test_half_precision_is_refused():
    """At ε = 1e-4 its step is below the spacing of float16."""
    x0, x1 = ends(2)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match="half precision cannot resolve"):
            path_distances(lambda x: x, squared, x0, x1, torch.zeros(2), epsilon=1e-4, dtype=dtype)
    with pytest.raises(ValueError, match="epsilon"):
        path_distances(lambda x: x, squared, x0, x1, torch.zeros(2), epsilon=0.0)


def test_float32_agrees_with_float64_at_the_step_in_use():
    """On a linear generator rounding adds to d about n·(ulp)², 1e-3 of it here at most."""
    x0, x1 = ends(64, (3, 8, 8))
    t = torch.rand(64, generator=torch.Generator().manual_seed(8))
    single, double = (
        path_distances(lambda x: 2 * x, squared, x0, x1, t, epsilon=1e-4, dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(single, double, rtol=1e-2, atol=0)
    assert float(single.mean()) == pytest.approx(float(double.mean()), rel=1e-3)


def test_the_papers_formula_is_proportional_to_epsilon():
    x0, x1 = (unit(e) for e in ends())
    t = torch.full((5,), 0.5)
    at = {e: path_distances(lambda x: x, squared, x0, x1, t, epsilon=e, dtype=torch.float64) for e in (1e-4, 1e-3)}
    assert PROTOCOLS["paper"].power == 1
    assert PROTOCOLS["stylegan2"].power == 2
    torch.testing.assert_close(at[1e-3] / 1e-3, 10 * at[1e-4] / 1e-4, rtol=1e-5, atol=0)
    torch.testing.assert_close(at[1e-3] / 1e-6, at[1e-4] / 1e-8, rtol=1e-5, atol=0)
    assert math.isclose(PROTOCOLS["stylegan2"].epsilon, 1e-4)
