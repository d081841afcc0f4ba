"""The mathematics of FID and KID against closed forms and torchmetrics."""

import math

import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from georeg_diffusion.evaluation.feature_moments import FeatureMoments
from georeg_diffusion.evaluation.frechet import frechet_distance, frechet_of_gaussians
from georeg_diffusion.evaluation.mmd import polynomial_mmd, subset_mmd


class Flatten(torch.nn.Module):
    """A feature network that is the identity."""

    num_features = 12

    def forward(self, images):
        return images.flatten(1)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(150, 3, 2, 2, generator=generator, dtype=torch.float64)
    fake = 0.3 + torch.rand(130, 3, 2, 2, generator=generator, dtype=torch.float64).square()
    return real, fake


@pytest.mark.parametrize("sizes", [[97], [1] * 97, [0, 40, 1, 56]])
def test_moments_joined_batch_by_batch_are_those_of_the_whole(sizes):
    """With a mean of 1e6, sums of squares in one pass would lose all digits of the covariance."""
    x = torch.randn(97, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 1e6
    total = FeatureMoments.of(x[:0])
    for part in x.split(sizes):
        total = total + FeatureMoments.of(part)
    assert total.count == 97
    torch.testing.assert_close(total.mean, x.mean(0))
    torch.testing.assert_close(total.covariance, torch.cov(x.T), rtol=1e-7, atol=1e-9)


def test_the_rank_a_covariance_can_have():
    assert FeatureMoments.of(torch.randn(4, 9)).rank_bound == 3
    assert FeatureMoments.of(torch.randn(40, 9)).rank_bound == 9
    x = torch.randn(4, 9, dtype=torch.float64)
    assert int(torch.linalg.matrix_rank(FeatureMoments.of(x).covariance)) == 3


def test_features_that_are_not_finite_are_refused():
    x = torch.randn(4, 9)
    x[2, 3] = math.nan
    with pytest.raises(ValueError, match="1 of 4 are not finite"):
        FeatureMoments.of(x)
    with pytest.raises(ValueError, match="expected \\(N, F\\)"):
        FeatureMoments.of(torch.randn(4))
    with pytest.raises(ValueError, match="expected at least 2"):
        _ = FeatureMoments.of(torch.randn(1, 9)).covariance


def test_commuting_gaussians_in_closed_form():
    """In a common eigenbasis Q: ‖μ‖² + Σ(√a − √b)²; the basis is no coordinate basis."""
    q, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    a, b = torch.tensor([4.0, 1, 0.25, 9, 0, 1]).double(), torch.tensor([1.0, 1, 4, 0, 0, 2.25]).double()
    mean = torch.full((6,), 0.5, dtype=torch.float64)
    expected = 6 * 0.25 + (a.sqrt() - b.sqrt()).square().sum()
    got = frechet_of_gaussians(0 * mean, q * a @ q.T, mean, q * b @ q.T)
    assert got == pytest.approx(float(expected), rel=1e-7)
    swapped = frechet_of_gaussians(mean, q * b @ q.T, 0 * mean, q * a @ q.T)
    assert swapped == pytest.approx(got, rel=1e-7)


def test_two_dimensional_gaussians_by_an_independent_formula():
    """For 2 × 2, Tr (AB)^½ = √(Tr AB + 2 √det AB), without any eigenvalue."""
    x = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    a, b = x[0].T @ x[0], x[1].T @ x[1]
    overlap = ((a @ b).trace() + 2 * (a.det() * b.det()).sqrt()).sqrt()
    zero = torch.zeros(2)
    assert frechet_of_gaussians(zero, a, zero, b) == pytest.approx(float(a.trace() + b.trace() - 2 * overlap), rel=1e-9)


def test_features_of_different_networks_are_refused():
    with pytest.raises(ValueError, match="got 3 features, expected mean_a's 2"):
        frechet_of_gaussians(torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(3))


def test_fid_equals_torchmetrics_on_the_same_features(images):
    real, fake = images
    metric = FrechetInceptionDistance(feature=Flatten(), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    assert frechet_distance(real.flatten(1), fake.flatten(1)) == pytest.approx(float(metric.compute()), abs=1e-4)


def test_kid_equals_torchmetrics_on_the_same_features(images):
    """Subsets as large as the sets leave no choice; unequal sizes and other subsets are tested below."""
    real, fake = images[0][:130], images[1]
    metric = KernelInceptionDistance(feature=Flatten(), subsets=2, subset_size=130)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    mean, _ = metric.compute()
    assert polynomial_mmd(real.flatten(1), fake.flatten(1)) == pytest.approx(float(mean), abs=1e-9)


def test_mmd_by_its_definition(images):
    a, b = images[0][:5].flatten(1), images[1][:4].flatten(1)

    def k(x, y):
        return (float(x @ y) / 12 + 1) ** 3

    expected = sum(k(a[i], a[j]) for i in range(5) for j in range(5) if i != j) / 20
    expected += sum(k(b[i], b[j]) for i in range(4) for j in range(4) if i != j) / 12
    expected -= 2 * sum(k(x, y) for x in a for y in b) / 20
    assert polynomial_mmd(a, b) == pytest.approx(expected, rel=1e-9)


def test_mmd_is_unbiased():
    """Between samples of one distribution its mean is 0; the biased V-statistic's is not."""
    generator = torch.Generator().manual_seed(4)
    values = torch.tensor(
        [polynomial_mmd(*torch.randn(2, 12, 6, generator=generator)) for _ in range(400)], dtype=torch.float64
    )
    assert abs(values.mean()) < 4 * values.std() / 20
    assert values.min() < 0


def test_subsets(images):
    a, b = images[0].flatten(1), images[1].flatten(1)
    generator = torch.Generator().manual_seed(0)
    whole = polynomial_mmd(a, b)
    assert subset_mmd(a, b, subsets=1, subset_size=130, generator=generator) == pytest.approx(
        whole, abs=0.05 * abs(whole)
    )  # a subset of the 150 real ones
    mean = subset_mmd(a, b, subsets=200, subset_size=40, generator=generator)
    assert mean == pytest.approx(whole, abs=0.05 * abs(whole))
    for size in (1, 131):
        with pytest.raises(ValueError, match="subset_size"):
            subset_mmd(a, b, subsets=2, subset_size=size, generator=generator)
    with pytest.raises(ValueError, match="expected at least 2"):
        polynomial_mmd(a[:1], b)
    with pytest.raises(ValueError, match="features of shape"):
        polynomial_mmd(a, b[:, :3])
