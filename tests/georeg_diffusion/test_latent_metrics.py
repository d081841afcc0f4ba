"""The ambient forms of the metrics against the charts they stand for, by dense Jacobians through the chart."""

import pytest
import torch
from torch import nn

import georeg
from georeg.testing import dense_moments
from georeg_diffusion.latent_metrics import StereographicFlat, isodiff_point, latent_manifold

B, N = 4, 6


@pytest.fixture
def f_and_x():
    f = nn.Sequential(nn.Linear(N, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    return f, torch.randn(B, N, dtype=torch.float64)


def chart(x, unit):
    r = x.norm(dim=1, keepdim=True)
    return (1 if unit else r) * x[:, :-1] / (r - x[:, -1:])


def inverse(z, r, unit):
    w = z if unit else z / r
    s = w.square().sum(-1, keepdim=True)
    return r * torch.cat([2 * w, s - 1], -1) / (s + 1)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("estimator", [georeg.Exact("domain"), georeg.Exact("codomain")])
def test_flat_in_stereographic_coordinates(f_and_x, unit, estimator):
    f, x = f_and_x
    m = georeg.spectral_moments(f, x, domain=StereographicFlat(unit_chart=unit), estimator=estimator)
    for i in range(B):
        r = x[i].norm()
        t1, t2 = dense_moments(lambda z, r=r: f(inverse(z, r, unit)), chart(x[i : i + 1], unit))
        torch.testing.assert_close(m.trace[i : i + 1], t1, rtol=1e-9, atol=0)
        torch.testing.assert_close(m.trace_sq[i : i + 1], t2, rtol=1e-9, atol=0)


def test_its_probes_have_the_cometric_as_covariance(f_and_x):
    x = f_and_x[1][:1]
    manifold = StereographicFlat()
    v = manifold.random_tangent(x, 40_000)[:, 0]
    covariance = manifold.sharp(x, torch.eye(N, dtype=x.dtype).unsqueeze(1))[:, 0]
    products = v.unsqueeze(2) * v.unsqueeze(1)
    assert ((products.mean(0) - covariance).abs() < 5 * products.std(0) / 200 + 1e-12).all()
    q, factor = manifold.cholesky(x)
    gram = q.mT @ manifold.flat(x, q.movedim(-1, 0)).movedim(0, -1)
    torch.testing.assert_close(factor @ factor.mT, gram, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("unit", [True, False])
def test_its_frames_are_those_of_its_metric(f_and_x, unit):
    """In which singular values and the projecting estimators work."""
    x, manifold = f_and_x[1], StereographicFlat(unit_chart=unit)
    w = torch.randn(3, B, N - 1, dtype=torch.float64)
    v, u = manifold.lift(x, w), manifold.colift(x, w)
    torch.testing.assert_close(manifold.inner(x, v, v), w.square().sum(-1))
    torch.testing.assert_close(manifold.flat(x, v), u)
    torch.testing.assert_close(manifold.components(x, v), w)
    torch.testing.assert_close(manifold.cocomponents(x, u), w)
    for outputs in (3, 9):
        f = nn.Linear(N, outputs, dtype=torch.float64)
        trace = georeg.spectral_moments(f, x, domain=manifold, estimator=georeg.Exact()).trace
        torch.testing.assert_close(georeg.diagnostics.singular_values(f, x, domain=manifold).square().sum(1), trace.detach())


def test_the_chart_with_its_own_metric_is_the_sphere(f_and_x):
    """`stereographic` is an alias of `sphere`, which this shows through the chart of Eq. 2 with the metric it induces."""
    f, x = f_and_x
    m = georeg.spectral_moments(f, x, domain=latent_manifold("stereographic"), estimator=georeg.Exact())
    for i in range(B):
        r = x[i].norm()
        z = chart(x[i : i + 1], True)
        metric = georeg.CustomMetric(lambda z, r=r: 4 * r**2 / (1 + z.square().sum(-1)) ** 2)
        through = georeg.spectral_moments(lambda z, r=r: f(inverse(z, r, True)), z, domain=metric, estimator=georeg.Exact())
        torch.testing.assert_close(m.trace_sq[i : i + 1], through.trace_sq, rtol=1e-10, atol=0)


def test_isodiff_reproduces_the_published_quadratic_forms(f_and_x):
    """From the released code's formulas: z unit chart, x at √(n−1), G = 4|z|⁴/(|z|²+|z|²)² = 1."""
    f, x = f_and_x
    m = georeg.spectral_moments(f, isodiff_point(x), domain=latent_manifold("isodiff"), estimator=georeg.Exact())
    z = chart(x, True)
    r = z.square().sum(1).sqrt()
    torch.testing.assert_close(4 * r**4 / (z.square().sum(1) + r**2) ** 2, torch.ones(B, dtype=z.dtype))
    t1, t2 = dense_moments(lambda z: f(inverse(z, torch.tensor((N - 1) ** 0.5), True)), z)
    torch.testing.assert_close(m.trace, t1, rtol=1e-6, atol=0)
    torch.testing.assert_close(m.trace_sq, t2, rtol=1e-6, atol=0)


def test_unknown_metric():
    with pytest.raises(ValueError, match="metric: got 'round'.*sphere"):
        latent_manifold("round")
