import pytest
import torch

from georeg_diffusion.data.digits import Digits
from georeg_diffusion.evaluation.classifier import train_classifier
from georeg_diffusion.evaluation.denoising import denoising_loss
from georeg_diffusion.evaluation.frechet import frechet_distance


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


def test_denoising_loss_of_a_constant_is_the_noises_variance(linear_bundle):
    estimate = denoising_loss(linear_bundle(torch.eye(16)), torch.randn(400, 1, 4, 4))
    assert abs(estimate.value - 1) < 4 * estimate.stderr


def test_the_classifier_is_honest_about_its_accuracy():
    network = train_classifier(Digits(8), epochs=3)
    assert 0.5 < network.accuracy <= 1
    assert f"{network.accuracy:.1%}" in network.name
    assert not any(p.requires_grad for p in network.features.parameters())
