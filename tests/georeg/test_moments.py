"""Moments and their gradients against the dense Jacobian in float64."""

import pytest
import torch
from torch import nn

import georeg
from georeg.testing import dense_moments, dense_operator
from tests.conftest import gradients

N, M, B = 4, 3, 3


def network(n=N, m=M):
    return nn.Sequential(nn.Linear(n, 6), nn.Tanh(), nn.Linear(6, m)).double()


def spd(y):
    """A matrix metric that depends on the point, with a plain formula for the oracle."""
    a = torch.stack([torch.sin(y * (k + 1)) for k in range(y.shape[-1])], dim=-1)
    return a @ a.mT + torch.eye(y.shape[-1], dtype=y.dtype)


def tangent_projector(x):
    u = x / x.norm(dim=1, keepdim=True)
    return torch.eye(x.shape[1], dtype=x.dtype) - u.unsqueeze(2) * u.unsqueeze(1)


def conformal(y):
    return 1 + y.square().sum(1)


MANIFOLDS = {
    "euclidean": (georeg.Euclidean(), None),
    "sphere": (georeg.Sphere(), tangent_projector),
    "conformal": (georeg.CustomMetric(conformal), lambda y: torch.diag_embed(conformal(y)[:, None].expand_as(y))),
    "diagonal": (georeg.CustomMetric(lambda y: 1 + y**2), lambda y: torch.diag_embed(1 + y**2)),
    "matrix": (georeg.CustomMetric(spd), spd),
    "stereographic": (
        georeg.SphereStereographic(radius=1.7),
        lambda z: torch.diag_embed((4 * 1.7**4 / (z.square().sum(1) + 1.7**2) ** 2)[:, None].expand_as(z)),
    ),
}


def cometric(name):
    metric = MANIFOLDS[name][1]
    if name == "sphere" or metric is None:
        return metric  # P is its own pseudo-inverse
    return lambda x: torch.linalg.inv(metric(x))


@pytest.mark.parametrize("codomain", MANIFOLDS)
@pytest.mark.parametrize("domain", MANIFOLDS)
@pytest.mark.parametrize("side", ["domain", "codomain"])
@pytest.mark.parametrize("engine", ["reverse", "forward"])
def test_exact_moments_and_gradients_equal_the_dense_operator(domain, codomain, side, engine):
    f, x = network(), torch.randn(B, N, dtype=torch.float64)
    m = georeg.spectral_moments(
        f, x, domain=MANIFOLDS[domain][0], codomain=MANIFOLDS[codomain][0], estimator=georeg.Exact(side), engine=engine
    )
    trace, trace_sq = dense_moments(f, x, cometric(domain), MANIFOLDS[codomain][1])
    torch.testing.assert_close(m.trace, trace, rtol=1e-10, atol=0)
    torch.testing.assert_close(m.trace_sq, trace_sq, rtol=1e-10, atol=0)
    ratio, expected = (t2.mean() / t1.mean() ** 2 for t1, t2 in ((m.trace, m.trace_sq), (trace, trace_sq)))
    torch.testing.assert_close(gradients(ratio, f.parameters()), gradients(expected, f.parameters()), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("distribution", ["gaussian", "sphere", "rademacher"])
@pytest.mark.parametrize("codomain", MANIFOLDS)
@pytest.mark.parametrize("domain", MANIFOLDS)
@pytest.mark.parametrize("side", ["domain", "codomain"])
@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_hutchinson_equals_the_naive_quadratic_forms_of_the_same_probes(domain, codomain, side, distribution, chunk_size):
    """Values and gradients: u = L(f(x))w keeps its graph, and nothing is detached."""
    f, x, k = network(), torch.randn(B, N, dtype=torch.float64), 3
    G, H = MANIFOLDS[domain][0], MANIFOLDS[codomain][0]

    def seeded():
        return torch.Generator().manual_seed(7)

    m = georeg.spectral_moments(
        f,
        x,
        domain=G,
        codomain=H,
        estimator=georeg.Hutchinson(k, distribution, side),
        generator=seeded(),
        chunk_size=chunk_size,
    )
    R = dense_operator(f, x, cometric(domain), MANIFOLDS[codomain][1])
    J = torch.stack([torch.autograd.functional.jacobian(lambda s: f(s[None])[0], s, create_graph=True) for s in x])
    coG = cometric(domain)(x) if cometric(domain) else torch.eye(N, dtype=x.dtype)
    Hy = MANIFOLDS[codomain][1](f(x)) if MANIFOLDS[codomain][1] else torch.eye(M, dtype=x.dtype)
    if side == "domain":
        v = G.random_tangent(x, k, seeded(), probe=distribution)
        metric = J.mT @ Hy @ J
        t1 = torch.einsum("kbi,bij,kbj->kb", v, metric, v).mean(0)
        t2 = torch.einsum("kbi,bij,bjl,blm,kbm->kb", v, metric, coG.expand(B, -1, -1), metric, v).mean(0)
    else:
        u = H.random_cotangent(f(x), k, seeded(), probe=distribution)
        metric = J @ coG @ J.mT
        t1 = torch.einsum("kbi,bij,kbj->kb", u, metric, u).mean(0)
        t2 = torch.einsum("kbi,bij,bjl,blm,kbm->kb", u, metric, Hy.expand(B, -1, -1), metric, u).mean(0)
    assert R.shape == (B, N, N)
    torch.testing.assert_close(m.trace, t1, rtol=1e-10, atol=0)
    torch.testing.assert_close(m.trace_sq, t2, rtol=1e-10, atol=0)
    ours, theirs = (a.mean() / b.mean() ** 2 for a, b in ((m.trace_sq, m.trace), (t2, t1)))
    torch.testing.assert_close(gradients(ours, f.parameters()), gradients(theirs, f.parameters()), rtol=1e-8, atol=1e-12)
    assert m.num_products == 2 * k


@pytest.mark.parametrize("side", ["domain", "codomain"])
@pytest.mark.parametrize("distribution", ["gaussian", "sphere", "rademacher"])
@pytest.mark.parametrize(("domain", "codomain"), [("sphere", "matrix"), ("matrix", "sphere"), ("stereographic", "diagonal")])
def test_hutchinson_is_unbiased(domain, codomain, side, distribution):
    f, x = network(), torch.randn(1, N, dtype=torch.float64)
    G, H = MANIFOLDS[domain][0], MANIFOLDS[codomain][0]
    with torch.no_grad():
        exact = georeg.spectral_moments(f, x, domain=G, codomain=H, estimator=georeg.Exact())
        m = georeg.spectral_moments(f, x, domain=G, codomain=H, estimator=georeg.Hutchinson(20_000, distribution, side))
    assert (m.trace - exact.trace).abs() < 4 * m.trace_stderr
    assert (m.trace_sq - exact.trace_sq).abs() < 4 * m.trace_sq_stderr


def test_gradient_of_the_stochastic_loss_is_unbiased():
    """A metric that depends on f(x): detaching H, u or the second cotangent would each bias this."""
    f, x = network(), torch.randn(2, N, dtype=torch.float64)
    H = georeg.CustomMetric(spd)
    parameters = list(f.parameters())
    exact = georeg.spectral_moments(f, x, codomain=H, estimator=georeg.Exact())
    truth = gradients(exact.trace_sq.sum(), parameters)
    draws = torch.stack(
        [
            gradients(georeg.spectral_moments(f, x, codomain=H, estimator=georeg.Hutchinson(64)).trace_sq.sum(), parameters)
            for _ in range(60)
        ]
    )
    error = (draws.mean(0) - truth).abs()
    assert (error < 4.5 * draws.std(0) / 60**0.5 + 1e-12).all()


def test_side_auto_is_the_smaller_dimension():
    x = torch.randn(2, N)
    wide_map, narrow = nn.Linear(N, 9), nn.Linear(N, 2)
    for f, side in ((wide_map, "domain"), (narrow, "codomain")):
        draws = [
            georeg.spectral_moments(f, x, estimator=georeg.Hutchinson(2, side=s), generator=torch.Generator().manual_seed(1))
            for s in ("auto", side)
        ]
        assert torch.equal(draws[0].trace, draws[1].trace)


def test_fixed_norm_probes_have_no_variance_at_the_optimum_on_the_smaller_side_only():
    f = nn.Linear(8, 3, bias=False).double()
    nn.init.orthogonal_(f.weight)
    x = torch.randn(1, 8, dtype=torch.float64)
    with torch.no_grad():
        small = georeg.spectral_moments(f, x, estimator=georeg.Hutchinson(64, side="codomain"))
        large = georeg.spectral_moments(f, x, estimator=georeg.Hutchinson(64, side="domain"))
    assert small.trace_stderr.item() < 1e-14
    assert large.trace_stderr.item() > 1e-2


@pytest.mark.parametrize("distribution", ["gaussian", "sphere"])
def test_probe_norms_on_the_sphere(distribution):
    """‖w‖ = √(n−1), not √n: the tangent space has n − 1 dimensions."""
    x = torch.randn(3, 2, 5, dtype=torch.float64)
    v = georeg.Sphere().random_tangent(x, 500, probe=distribution)
    assert ((v * x).sum((-1, -2)).abs() < 1e-12).all()
    squared = v.square().sum((-1, -2))
    if distribution == "sphere":
        torch.testing.assert_close(squared, torch.full_like(squared, 9.0))
    else:
        assert (squared.mean() - 9).abs() < 4 * squared.std() / squared.numel() ** 0.5


def test_sample_generators_do_not_depend_on_the_split():
    f, x = network(), torch.randn(4, N, dtype=torch.float64)

    def draw(rows):
        generators = [torch.Generator().manual_seed(100 + i) for i in rows]
        return georeg.spectral_moments(f, x[rows], estimator=georeg.Hutchinson(2), generator=generators).trace

    torch.testing.assert_close(draw([0, 1, 2, 3]), torch.cat([draw([0, 1]), draw([2, 3])]), rtol=1e-14, atol=0)


def test_events_of_any_shape_and_non_contiguous_input():
    f = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, stride=2)).double()
    x = torch.randn(2, 5, 5, 2, dtype=torch.float64).permute(0, 3, 1, 2)
    for domain in (georeg.Euclidean(), georeg.Sphere()):
        m = georeg.spectral_moments(f, x, domain=domain, estimator=georeg.Exact())
        flat = dense_moments(
            lambda p: f(p.reshape(-1, 2, 5, 5)).flatten(1),
            x.reshape(2, -1),
            None if isinstance(domain, georeg.Euclidean) else tangent_projector,
        )
        torch.testing.assert_close(m.trace, flat[0], rtol=1e-10, atol=0)
        torch.testing.assert_close(m.trace_sq, flat[1], rtol=1e-10, atol=0)


def test_float32_agrees_with_float64_and_never_overflows():
    f, x = network(), torch.randn(B, N, dtype=torch.float64)
    exact = georeg.spectral_moments(f, x, estimator=georeg.Exact())
    single = georeg.spectral_moments(f.float(), x.float(), estimator=georeg.Exact())
    torch.testing.assert_close(single.trace_sq, exact.trace_sq, rtol=1e-5, atol=0)
    huge = georeg.spectral_moments(lambda p: 1e12 * f(p), x.float(), estimator=georeg.Hutchinson(2))
    plain = georeg.spectral_moments(lambda p: 1.0 * f(p), x.float(), estimator=georeg.Hutchinson(2))
    assert torch.isfinite(huge.trace_sq).all()
    assert torch.isfinite(plain.trace_sq).all()


def test_half_precision_never_sees_the_moments():
    """τ₂ = d·1e12 here; float16 ends at 65504."""
    m = georeg.spectral_moments(lambda p: 1000 * p, torch.randn(2, 8).half(), estimator=georeg.Hutchinson(2))
    torch.testing.assert_close(m.trace_sq, torch.full_like(m.trace_sq, 8e12), rtol=5e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_lengths_that_it_cannot_hold(dtype):
    """‖Jv‖ = 1e5 where each component is about 1e3; and a length rounded to bfloat16 is off by up to 0.4%."""
    m = georeg.spectral_moments(lambda p: 1000 * p, torch.zeros(8, 10_000, dtype=dtype), estimator=georeg.Hutchinson())
    torch.testing.assert_close(m.trace, torch.full_like(m.trace, 1e10), rtol=1e-3, atol=0)
    torch.testing.assert_close(m.trace_sq, torch.full_like(m.trace_sq, 1e16), rtol=2e-3, atol=0)
