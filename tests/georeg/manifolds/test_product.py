"""A product's metric is the block-diagonal one of its factors."""

import pytest
import torch

import georeg
from georeg.testing import ManifoldContract
from tests.georeg.manifolds.moments import assert_hutchinson_is_unbiased, assert_moments_equal_the_dense_operators

FACTORS = [georeg.Sphere(1.5), georeg.SphereStereographic(2.0), georeg.CustomMetric(lambda x: 2 + x.sin())]
SIZES = [3, 2, 1]


def matrix(x):
    sphere, chart, line = x.split(SIZES, dim=1)
    u = sphere / sphere.norm(dim=1, keepdim=True)
    blocks = (
        torch.eye(3, dtype=x.dtype) - u.unsqueeze(2) * u.unsqueeze(1),
        torch.diag_embed((4 * 2.0**4 / (chart.square().sum(1) + 4) ** 2)[:, None].expand(-1, 2)),
        (2 + line.sin()).unsqueeze(2),
    )
    return torch.stack([torch.block_diag(*parts) for parts in zip(*blocks, strict=True)])


class TestProduct(ManifoldContract):
    manifold = georeg.Product(FACTORS, sizes=SIZES)
    events = ((6,), (2, 3))


class TestProductOfSpheres(ManifoldContract):
    manifold = georeg.Product([georeg.Sphere()] * 3, sizes=[2] * 3)
    events = ((6,), (3, 2))


class TestNestedProduct(ManifoldContract):
    manifold = georeg.Product(
        [georeg.Product([georeg.Sphere(), georeg.Euclidean()], sizes=[2, 1]), georeg.Euclidean()], sizes=[3, 1]
    )


def test_moments_equal_the_dense_operators():
    product = georeg.Product(FACTORS, sizes=SIZES)
    assert_moments_equal_the_dense_operators(product, matrix, 6, embed=product.projx)
    assert_hutchinson_is_unbiased(product, 6, embed=product.projx)


def test_the_identity_of_a_product_of_spheres_is_a_perfect_isometry():
    """One sphere around all factors would count radial directions between them."""
    product = georeg.Product([georeg.Sphere(), georeg.Sphere()], sizes=[4, 4])
    x = torch.randn(5, 8, dtype=torch.float64)
    loss = georeg.IsometryLoss(domain=product, codomain=product, normalize=True)
    assert loss(lambda p: p, x).loss.item() == pytest.approx(1, abs=1e-12)
    m = georeg.spectral_moments(lambda p: p, x, domain=product, estimator=georeg.Exact())
    torch.testing.assert_close(m.trace, torch.full_like(m.trace, 6.0))


def test_singular_values_are_on_the_product_of_tangent_spaces():
    product = georeg.Product([georeg.Sphere(), georeg.Euclidean()], sizes=[3, 1])
    sigma = georeg.diagnostics.singular_values(lambda p: 2 * p, torch.randn(2, 4).double(), domain=product)
    torch.testing.assert_close(sigma, torch.full((2, 3), 2.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: georeg.Product([georeg.Sphere], sizes=[3]), TypeError, "manifolds: got ABCMeta"),
        (lambda: georeg.Product([], sizes=[]), ValueError, "sizes: got 0"),
        (lambda: georeg.Product([georeg.Sphere()], sizes=[3, 3]), ValueError, "sizes: got 2 for 1"),
        (lambda: georeg.Product([georeg.Sphere()], sizes=[0]), ValueError, "positive"),
        (lambda: georeg.Product([georeg.Sphere()], sizes=[3]).dim(torch.zeros(2, 4)), ValueError, "x: got events of 4"),
        (
            lambda: georeg.Product([georeg.Sphere(), georeg.Sphere(2.0)], sizes=[3, 3]).check_point(
                torch.ones(2, 6), "f(x)"
            ),
            ValueError,
            r"f\(x\) \(factor 1\): got points with norms",
        ),
    ],
)
def test_bad_arguments_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()
