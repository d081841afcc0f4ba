import math

import pytest
import torch

from georeg_diffusion.bundle import Bundle
from georeg_diffusion.data.digits import Digits
from georeg_diffusion.evaluation.classifier import train_classifier
from georeg_diffusion.evaluation.denoising import denoising_loss
from georeg_diffusion.evaluation.frechet import frechet_distance
from georeg_diffusion.evaluation.geometry import MAX_SPECTRUM, geometry
from georeg_diffusion.evaluation.mrtl import mean_relative_trajectory_length


def test_frechet_distance_of_gaussians_in_closed_form():
    """Features with exactly the wanted mean and diagonal covariance: ‖μ‖² + Σ(σ₁ − σ₂)²."""
    x = torch.randn(500, 4, dtype=torch.float64)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    s, t, mu = torch.tensor([1.0, 2, 3, 0]).double(), torch.tensor([2.0, 2, 0.5, 0]).double(), torch.ones(4).double()
    assert frechet_distance(x * s, x * t + mu) == pytest.approx(4 + 1 + 2.5**2, rel=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_against_scipys_matrix_root():
    from scipy.linalg import sqrtm

    a, b = torch.randn(60, 5).double(), torch.randn(70, 5).double() @ torch.randn(5, 5).double()
    ca, cb = torch.cov(a.T), torch.cov(b.T)
    root = torch.as_tensor(sqrtm((ca @ cb).numpy()).real)
    expected = (a.mean(0) - b.mean(0)).square().sum() + (ca + cb - 2 * root).trace()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)


class LinearModel(torch.nn.Module):
    """A denoiser whose h is a known linear map of x_t, and whose prediction is constant zero."""

    def __init__(self, matrix):
        super().__init__()
        self.mid = torch.nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        self.mid.weight.data = matrix
        size = math.isqrt(matrix.shape[1])
        self.config = type("config", (), {"sample_size": size, "in_channels": 1})()

    def forward(self, sample, timestep):
        h = self.mid(sample.flatten(1))
        return type("out", (), {"sample": 0 * sample + 0 * h.sum()})()


def linear_bundle(matrix, scheduler):
    return Bundle(LinearModel(matrix), scheduler)


def test_geometry_of_an_isometry_is_perfect(scheduler):
    x0 = torch.randn(12, 1, 4, 4, dtype=torch.float64)
    g = geometry(linear_bundle(3 * torch.eye(16, dtype=torch.float64), scheduler), x0, at="mid", num_spectra=4)
    assert g.dimension == 15
    assert g.isometry.value == pytest.approx(1, abs=1e-9)
    assert g.mcn.value == pytest.approx(1, abs=1e-9)
    assert g.effective_rank.value == pytest.approx(15, abs=1e-9)
    assert g.vor.value == pytest.approx(0, abs=1e-12)
    assert g.timesteps == [550, 650, 750, 850, 950]


def test_a_model_too_large_for_full_spectra_is_scored_without_them(scheduler):
    """32 × 32 and more used to end in an error, or in hours, after the training was done."""
    g = geometry(linear_bundle(torch.eye(784), scheduler), torch.randn(6, 1, 28, 28), at="mid")
    assert g.dimension == 783 > MAX_SPECTRUM
    assert g.mcn is g.vor is g.vor_log is g.effective_rank is None
    assert g.isometry.value == pytest.approx(1, abs=1e-4)


def test_mrtl_of_an_isometry_is_arc_over_chord(scheduler):
    result = mean_relative_trajectory_length(
        linear_bundle(2 * torch.eye(16), scheduler), num_pairs=3, segments=64, num_steps=3, at="mid"
    )
    # The norms of the ends differ, so that the slerp is a spiral: close to arc over chord, not equal to it.
    assert result.mrtl.value == pytest.approx(result.perfect, rel=0.1)
    assert len(result.rtl) == len(result.timesteps) == 3
    assert result.mrtl.value > 1


def test_mrtl_of_a_map_to_a_line_is_one_or_more(scheduler):
    matrix = torch.zeros(2, 16)
    matrix[0, 0] = 1
    result = mean_relative_trajectory_length(linear_bundle(matrix, scheduler), num_pairs=4, num_steps=2, at="mid")
    assert result.mrtl.value >= 1


def test_denoising_loss_of_a_constant_is_the_noises_variance(scheduler):
    estimate = denoising_loss(linear_bundle(torch.eye(16), scheduler), torch.randn(400, 1, 4, 4))
    assert abs(estimate.value - 1) < 4 * estimate.stderr


def test_the_classifier_is_honest_about_its_accuracy():
    network = train_classifier(Digits(8), epochs=3)
    assert 0.5 < network.accuracy <= 1
    assert f"{network.accuracy:.1%}" in network.name
    assert not any(p.requires_grad for p in network.features.parameters())
