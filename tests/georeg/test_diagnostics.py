"""Scores against the dense whitened Jacobian, hand formulas and maps with known answers."""

import functools
import math

import pytest
import torch
from torch import nn

import georeg
from georeg import diagnostics
from georeg.testing import dense_jacobian
from tests.georeg.test_moments import MANIFOLDS

N, M = 5, 4


def network(n=N, m=M):
    return nn.Sequential(nn.Linear(n, 8), nn.Tanh(), nn.Linear(8, m)).double()


def tangent_basis(x):
    """An orthonormal basis of each tangent space of the sphere, by SVD: nothing of the library."""
    return torch.linalg.svd(x.unsqueeze(1)).Vh[:, 1:].mT


def whitened(f, x, domain, codomain):
    """L_Hᵀ Q_Hᵀ J Q_G L_G⁻ᵀ by plain linear algebra."""
    J, y = dense_jacobian(f, x), f(x)
    for point, name, side in ((x, domain, "domain"), (y, codomain, "codomain")):
        if name == "sphere":
            Q = tangent_basis(point)
            J = J @ Q if side == "domain" else Q.mT @ J
        elif MANIFOLDS[name][1] is not None:
            L = torch.linalg.cholesky(MANIFOLDS[name][1](point))
            J = J @ torch.linalg.inv(L).mT if side == "domain" else L.mT @ J
    return J


def rotated(sigma, m=None):
    """A linear map with the given singular values."""
    sigma = torch.as_tensor(sigma, dtype=torch.float64)
    d, m = len(sigma), m or len(sigma)
    A = torch.linalg.qr(torch.randn(m, d, dtype=torch.float64)).Q @ torch.diag(sigma)
    A = A @ torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q
    return lambda x: x @ A.T.to(x.dtype)


@pytest.mark.parametrize("domain", MANIFOLDS)
@pytest.mark.parametrize("codomain", MANIFOLDS)
@pytest.mark.parametrize("shape", [(N, M), (3, 6)])
def test_singular_values_equal_the_dense_whitened_jacobian(domain, codomain, shape):
    f, x = network(*shape), torch.randn(3, shape[0], dtype=torch.float64)
    G, H = MANIFOLDS[domain][0], MANIFOLDS[codomain][0]
    expected = torch.linalg.svdvals(whitened(f, x, domain, codomain).detach())
    sigma = diagnostics.singular_values(f, x, domain=G, codomain=H)
    torch.testing.assert_close(sigma, expected, rtol=1e-9, atol=1e-10)
    top = diagnostics.top_singular(f, x, 2, domain=G, codomain=H, tolerance=1e-9)
    torch.testing.assert_close(top.values, expected[:, :2], rtol=1e-9, atol=1e-10)
    low = diagnostics.smallest_singular(f, x, domain=G, codomain=H, max_dense=0)
    torch.testing.assert_close(low.upper_bound, expected[:, -1], rtol=1e-5, atol=1e-7)
    assert not low.exact


def test_singular_values_explain_the_moments():
    f, x = network(), torch.randn(3, N, dtype=torch.float64)
    options = {"domain": georeg.Sphere(), "codomain": georeg.CustomMetric(lambda y: 1 + y**2)}
    sigma = diagnostics.singular_values(f, x, **options)
    m = georeg.spectral_moments(f, x, estimator=georeg.Exact(), **options)
    torch.testing.assert_close(sigma.square().sum(1), m.trace.detach())
    torch.testing.assert_close(sigma.pow(4).sum(1), m.trace_sq.detach())
    assert not sigma.requires_grad


@pytest.mark.parametrize(("n", "m"), [(4, 4), (4, 7), (6, 3)])
def test_no_structural_zero_on_the_sphere(n, m):
    sigma = diagnostics.singular_values(network(n, m), torch.randn(2, n, dtype=torch.float64), domain=georeg.Sphere())
    assert sigma.shape == (2, min(n - 1, m))
    assert (sigma > 1e-3).all()


def test_scores_of_a_linear_map_against_hand_formulas():
    f, x = rotated([4.0, 2.0, 1.0]), torch.randn(6, 3, dtype=torch.float64)
    assert float(diagnostics.mean_condition_number(f, x)) == pytest.approx(4, rel=1e-12)
    assert float(diagnostics.mean_condition_number(f, x, of="sigma_squared")) == pytest.approx(16, rel=1e-12)
    assert float(diagnostics.effective_rank(f, x)) == pytest.approx(21**2 / (256 + 16 + 1), rel=1e-12)
    assert float(diagnostics.isotropy(f, x)) == pytest.approx(21**2 / (256 + 16 + 1) / 3, rel=1e-12)
    torch.testing.assert_close(diagnostics.k_condition(diagnostics.singular_values(f, x)), torch.full((6,), 7 / 4).double())
    for options in ({}, {"log": True}, {"of": "sigma_squared"}):
        assert float(diagnostics.variance_of_riemannian_metric(f, x, **options)) == pytest.approx(0, abs=1e-24)
    assert float(diagnostics.affine_invariant_variance(f, x)) == pytest.approx(0, abs=1e-24)


def test_scores_of_the_stereographic_projection():
    """Conformal: isotropic everywhere with σ = 2/(1 + ‖z‖²), so that only the variance is not trivial."""
    chart = georeg.SphereStereographic()
    z = torch.randn(40, 3, dtype=torch.float64)
    factor = 2 / (1 + z.square().sum(1))
    sigma = diagnostics.singular_values(chart.to_ambient, z)
    torch.testing.assert_close(sigma, factor[:, None].expand(-1, 3))
    assert float(diagnostics.mean_condition_number(chart.to_ambient, z)) == pytest.approx(1, rel=1e-12)
    assert float(diagnostics.effective_rank(chart.to_ambient, z)) == pytest.approx(3, rel=1e-12)
    vor = diagnostics.variance_of_riemannian_metric
    assert float(vor(chart.to_ambient, z)) == pytest.approx(3 * float(factor.var()), rel=1e-10)
    assert float(vor(chart.to_ambient, z, log=True)) == pytest.approx(3 * float(factor.log().var()), rel=1e-10)
    assert float(vor(chart.to_ambient, z, of="sigma_squared")) == pytest.approx(3 * float(factor.square().var()), rel=1e-10)
    # d²(λ²I, mean λ² I) = 3 log²(λ²/mean λ²)
    expected = 3 * (factor.square() / factor.square().mean()).log().square().mean()
    assert float(diagnostics.affine_invariant_variance(chart.to_ambient, z)) == pytest.approx(float(expected), rel=1e-10)
    # Measured with its own metric on the chart it is an isometry, and onto the sphere as well.
    for codomain in (None, georeg.Sphere(1.0)):
        sigma = diagnostics.singular_values(chart.to_ambient, z, domain=chart, codomain=codomain)
        torch.testing.assert_close(sigma, torch.ones(40, 3).double())


def test_affine_invariant_variance_is_lee_et_als_and_invariant():
    f, x = network(3, 6), torch.randn(5, 3, dtype=torch.float64)
    J = dense_jacobian(f, x).detach()
    G = J.mT @ J
    eigenvalues = torch.linalg.eigvals(torch.linalg.solve(G.mean(0).expand_as(G), G)).real
    score = diagnostics.affine_invariant_variance(f, x)
    assert score.value == pytest.approx(float(eigenvalues.log().square().sum(1).mean()), rel=1e-9)
    A = torch.randn(3, 3, dtype=torch.float64)
    moved = diagnostics.affine_invariant_variance(lambda u: 7 * f(u @ A.T), torch.linalg.solve(A, x.T).T)
    assert moved.value == pytest.approx(score.value, rel=1e-9)
    with pytest.raises(ValueError, match="f: induces a singular metric"):
        diagnostics.affine_invariant_variance(network(3, 2), x)


def test_log_variance_is_invariant_to_scale_and_the_plain_one_is_not():
    f, x = network(), torch.randn(8, N, dtype=torch.float64)
    vor = diagnostics.variance_of_riemannian_metric
    assert vor(lambda p: 10 * f(p), x, log=True).value == pytest.approx(vor(f, x, log=True).value, rel=1e-10)
    assert vor(lambda p: 10 * f(p), x).value == pytest.approx(100 * vor(f, x).value, rel=1e-10)


@pytest.mark.parametrize("log", [False, True])
def test_variance_of_metric_standard_error_is_that_of_repeated_draws(log):
    """The mean reported squared error equals the variance of the score over draws, within 4 standard errors."""
    draws, n = 3000, 40
    sigma = 1 + torch.rand(draws, n, 3, dtype=torch.float64)
    estimates = [diagnostics.variance_of_metric(s, log=log) for s in sigma]
    values = torch.tensor([e.value for e in estimates], dtype=torch.float64)
    squared_errors = torch.tensor([e.stderr**2 for e in estimates], dtype=torch.float64)
    deviation = (values - values.mean()).square()
    # The jackknife overestimates a variance by O(1/n).
    gap = squared_errors.mean() / (1 + 1 / n) - deviation.mean()
    assert gap.abs() < 4 * ((squared_errors.var() + deviation.var()) / draws).sqrt() + deviation.mean() / n
    exact = 3 / 12 if not log else 3 * float((1 + torch.rand(2_000_000).double()).log().var())
    assert abs(values.mean() - exact) < 4 * values.std() / draws**0.5 + 1e-3 * exact


def test_standard_error_of_a_mean_and_of_too_few_samples():
    f = lambda x: torch.stack([x[:, 0], x[:, 0] * x[:, 1]], 1)  # noqa: E731
    x = torch.randn(30, 2, dtype=torch.float64)
    kappa = diagnostics.condition_number(diagnostics.singular_values(f, x))
    mcn = diagnostics.mean_condition_number(f, x)
    assert mcn.stderr == pytest.approx(float(kappa.std() / 30**0.5))
    assert (mcn.n, diagnostics.mean_condition_number(f, x[:1]).stderr) == (30, None)
    assert diagnostics.variance_of_metric(torch.rand(2, 3)).stderr is None
    with pytest.raises(ValueError, match="x: got 1 samples, expected at least 2"):
        diagnostics.variance_of_riemannian_metric(f, x[:1])


SPECTRA = {
    "flat": torch.ones(60),
    "decaying": torch.logspace(0, -4, 60),
    "one spike": torch.cat([torch.tensor([30.0]), torch.ones(59)]),
    "multiple": torch.cat([torch.full((4,), 3.0), torch.linspace(2, 0.1, 56)]),
    "rank 2": torch.cat([torch.tensor([2.0, 1.0]), torch.zeros(58)]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_top_singular_values_with_multiplicities(spectrum, dtype):
    sigma = SPECTRA[spectrum].double()
    f, x, k = rotated(sigma, m=80), torch.randn(2, 60, dtype=dtype), 5
    top = diagnostics.top_singular(f, x, k, generator=torch.Generator().manual_seed(0))
    expected = sigma.sort(descending=True).values[:k].expand(2, k)
    assert top.converged.all()
    precision = 1e-7 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(top.values, expected, rtol=1e-6, atol=precision * float(sigma.max()))
    # A true singular value lies within the residual (plus what rounding takes).
    distance = (top.values.unsqueeze(-1) - sigma).abs().amin(-1)
    assert (distance <= top.residuals + 100 * torch.finfo(dtype).eps * float(sigma.max())).all()
    v = top.vectors
    gram = torch.einsum("kbn,lbn->bkl", v, v)
    torch.testing.assert_close(gram, torch.eye(k, dtype=v.dtype).expand(2, k, k), rtol=0, atol=1e-6)
    torch.testing.assert_close(f(v[0]).norm(dim=1), top.values[:, 0], rtol=1e-6, atol=0)


def test_top_singular_spends_what_it_says_and_less_than_the_dense_one():
    f, x = rotated(torch.logspace(0, -3, 400)), torch.zeros(1, 400, dtype=torch.float64)
    calls = 0

    def counted(p):
        nonlocal calls
        calls += len(p)
        return f(p)

    top = diagnostics.top_singular(counted, x, 3, engine="reverse")
    assert calls == 1  # one forward pass
    assert top.num_products % 14 == 0
    assert top.num_products < 200
    assert top.converged.all()


def test_top_singular_tells_how_far_it_is():
    f, x = rotated(torch.logspace(0, -3, 400)), torch.zeros(1, 400, dtype=torch.float64)
    seen = []
    top = diagnostics.top_singular(f, x, 3, callback=lambda values, residuals: seen.append((values, residuals)))
    assert len(seen) == top.num_products / 14
    torch.testing.assert_close(seen[-1], (top.values, top.residuals))
    largest = torch.cat([values[:, 0] for values, _ in seen])
    assert (largest.diff() >= -1e-12).all()  # Rayleigh quotients on a growing basis


def test_top_singular_reports_what_did_not_converge(monkeypatch):
    f, x = rotated(torch.linspace(1, 0.9, 300)), torch.zeros(1, 300, dtype=torch.float64)
    top = diagnostics.top_singular(f, x, 2, max_iterations=1)
    assert not top.converged.any()
    assert (top.values <= 1 + 1e-12).all()
    impatient = functools.partial(diagnostics.top_singular, max_iterations=1)
    monkeypatch.setattr("georeg.diagnostics.spectra.top_singular", impatient)
    with pytest.warns(UserWarning, match="k: of the 2 largest singular values some did not converge"):
        diagnostics.singular_values(f, x, k=2)


def test_top_singular_restarts_and_is_deterministic_under_a_generator():
    f, x = rotated(torch.linspace(1, 0, 300)), torch.zeros(2, 300, dtype=torch.float64)
    runs = [diagnostics.top_singular(f, x, 4, tolerance=1e-6, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert runs[0].num_products > 6 * 16  # more than the basis holds
    assert torch.equal(runs[0].values, runs[1].values)
    expected = torch.linspace(1, 0, 300).double()[:4].expand(2, 4)
    torch.testing.assert_close(runs[0].values, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(diagnostics.singular_values(f, x, 4), expected, rtol=1e-7, atol=0)


def test_smallest_singular_is_exact_when_dense_and_a_bound_beyond():
    sigma = torch.logspace(0, -2, 200)
    for m, n in ((300, 200), (200, 200)):
        f, x = rotated(sigma, m=m), torch.zeros(2, n, dtype=torch.float64)
        dense = diagnostics.smallest_singular(f, x)
        assert dense.exact
        torch.testing.assert_close(dense.upper_bound, torch.full((2,), 0.01).double(), rtol=1e-6, atol=0)
        bounded = diagnostics.smallest_singular(f, x, max_dense=50, max_iterations=3)
        assert not bounded.exact
        assert (bounded.upper_bound >= dense.upper_bound).all()
        nearest = (bounded.upper_bound[:, None] - sigma.double()).abs().amin(1)
        assert (nearest <= bounded.residual).all()
    wide = lambda p: f(p[:, :200])  # noqa: E731  (the kernel of a wide Jacobian is no singular value)
    low = diagnostics.smallest_singular(wide, torch.zeros(1, 230).double(), max_dense=50, max_iterations=200)
    assert 0.01 <= low.upper_bound.item() < 0.013


def test_degenerate_maps():
    x = torch.randn(3, 4, dtype=torch.float64)
    zero = diagnostics.singular_values(lambda p: 0 * p, x)
    assert torch.equal(zero, torch.zeros(3, 4).double())
    assert torch.equal(diagnostics.condition_number(zero), torch.full((3,), math.inf).double())
    assert torch.equal(diagnostics.k_condition(zero), torch.full((3,), math.inf).double())
    assert torch.equal(diagnostics.effective_rank_of(zero), torch.zeros(3).double())
    assert torch.equal(diagnostics.top_singular(lambda p: 0 * p, x, 2).values, torch.zeros(3, 2).double())
    with pytest.raises(ValueError, match="log: got a singular value 0"):
        diagnostics.variance_of_metric(zero, log=True)
    assert diagnostics.singular_values(torch.sin, torch.randn(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_points_are_refused(bad):
    x = torch.tensor([[1.0, bad]])
    for score in (
        diagnostics.singular_values,
        lambda f, x: diagnostics.singular_values(f, x, 1),
        lambda f, x: diagnostics.smallest_singular(f, x, max_dense=0),
        lambda f, x: diagnostics.affine_invariant_variance(f, x.expand(2, 2)),
    ):
        with pytest.raises(ValueError, match="products with the Jacobian are not finite"):
            score(torch.sin, x)


def test_bad_arguments_are_refused():
    f, x = network(), torch.randn(2, N, dtype=torch.float64)
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k: got {k}, expected 1 to 4"):
            diagnostics.top_singular(f, x, k)
    with pytest.raises(ValueError, match="of: got 'lambda', expected 'sigma'"):
        diagnostics.mean_condition_number(f, x, of="lambda")
    with pytest.raises(ValueError, match="x: the smaller dimension is 5000, expected at most 4096"):
        diagnostics.singular_values(torch.sin, torch.zeros(1, 5000))
    with pytest.raises(ValueError, match="tangent spaces have dimension 0"):
        diagnostics.singular_values(torch.sin, torch.ones(2, 1), domain=georeg.Sphere())
    with pytest.raises(ValueError, match="x: got no samples"):
        diagnostics.effective_rank(f, x[:0])


# Trajectories


@pytest.mark.parametrize("angle", [0.3, math.pi / 2, 3.0])
def test_rtl_of_an_isometry_of_the_sphere_is_arc_over_chord(angle):
    """An isometric map does not straighten a slerp: θ/(2 sin(θ/2)) is its value, 1.1107 between orthogonal ends."""
    x0 = torch.tensor([[3.0, 0.0, 0.0]], dtype=torch.float64)
    x1 = 3 * torch.tensor([[math.cos(angle), math.sin(angle), 0.0]], dtype=torch.float64)
    target = angle / (2 * math.sin(angle / 2))
    errors = [
        target - diagnostics.relative_trajectory_length(georeg.slerp(x0, x1, torch.linspace(0, 1, s + 1).double())).item()
        for s in (10, 100)
    ]
    assert 0 < errors[1] < errors[0]
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.05)  # a polyline's error is O(1/S²)
    assert float(diagnostics.great_circle_ratio(angle)) == pytest.approx(target, rel=1e-12)


def test_rtl_of_straight_closed_and_constant_paths():
    steps = torch.tensor([0.0, 0.1, 0.5, 1.0])[:, None, None]
    straight = steps * torch.randn(1, 2, 3)
    torch.testing.assert_close(diagnostics.relative_trajectory_length(straight), torch.ones(2))
    closed = torch.stack([torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2)])
    assert diagnostics.relative_trajectory_length(closed).item() == math.inf
    assert diagnostics.relative_trajectory_length(torch.ones(4, 2, 3)).tolist() == [1, 1]
    detour = torch.tensor([[[0.0, 0.0]], [[3.0, 0.0]], [[3.0, 4.0]]])
    assert diagnostics.relative_trajectory_length(detour).item() == pytest.approx(7 / 5)
    scaled = diagnostics.relative_trajectory_length(detour.half() * 1000)  # float16 holds no square of this
    assert scaled.item() == pytest.approx(7 / 5, rel=1e-3)
    assert diagnostics.relative_trajectory_length(detour.reshape(3, 1, 1, 2)).item() == pytest.approx(7 / 5)


def test_great_circle_ratio_at_zero_and_bad_paths():
    assert float(diagnostics.great_circle_ratio(0.0)) == 1
    assert float(diagnostics.great_circle_ratio(math.pi / 2)) == pytest.approx(1.1107, abs=5e-5)
    with pytest.raises(ValueError, match=r"path: got shape \(1, 2, 3\), expected \(steps, B, ...\)"):
        diagnostics.relative_trajectory_length(torch.ones(1, 2, 3))
