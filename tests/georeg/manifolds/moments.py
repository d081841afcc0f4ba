"""What every metric must give: the dense operator's moments, values and gradients, on both sides."""

import torch
from torch import nn

import georeg
from georeg.testing import dense_moments, dense_operator
from tests.conftest import gradients


def network(n, m):
    return nn.Sequential(nn.Linear(n, 6), nn.Tanh(), nn.Linear(6, m)).double()


def assert_moments_equal_the_dense_operators(manifold, matrix, n, *, parameters=(), embed=None):
    """As a domain and as a codomain of dimension n, with Exact and Hutchinson.

    Args:
        manifold: the metric under test; its points are events ``(n,)``.
        matrix: G(x) in plain formulas, ``(B, d, d)``, zero on the normal space.
        parameters: the metric's own, which must receive the right gradient too.
        embed: puts arbitrary coordinates onto the manifold.
    """
    embed = embed or (lambda x: x)
    other = georeg.CustomMetric(lambda y: 1 + y**2)
    noise = torch.randn(2, n, dtype=torch.float64)

    def cometric(x):
        return torch.linalg.pinv(matrix(x), hermitian=True)

    out, inner = network(n, 3), network(3, n)
    cases = [
        (out, embed(noise).detach(), manifold, other, cometric, lambda y: torch.diag_embed(1 + y**2)),
        (
            lambda x: embed(inner(x)),
            torch.randn(2, 3, dtype=torch.float64),
            other,
            manifold,
            lambda x: torch.diag_embed(1 / (1 + x**2)),
            matrix,
        ),
    ]
    for f, x, domain, codomain, co, metric in cases:
        theta = [*(out if f is out else inner).parameters(), *parameters]
        dense = dense_moments(f, x, co, metric)
        truth = gradients((dense[1] / dense[0] ** 2).sum(), theta)
        for side in ("domain", "codomain"):
            m = georeg.spectral_moments(f, x, domain=domain, codomain=codomain, estimator=georeg.Exact(side))
            torch.testing.assert_close(m.trace, dense[0], rtol=1e-8, atol=0)
            torch.testing.assert_close(m.trace_sq, dense[1], rtol=1e-8, atol=0)
            ours = gradients((m.trace_sq / m.trace**2).sum(), theta)
            torch.testing.assert_close(ours, truth, rtol=1e-6, atol=1e-9)
            for probe in ("sphere", "gaussian"):
                _assert_hutchinson(f, x, domain, codomain, co, metric, side, probe, theta)


def _assert_hutchinson(f, x, domain, codomain, cometric, metric, side, probe, theta):
    def seeded():
        return torch.Generator().manual_seed(5)

    estimator = georeg.Hutchinson(3, probe, side)
    m = georeg.spectral_moments(f, x, domain=domain, codomain=codomain, estimator=estimator, generator=seeded())
    J = torch.stack([torch.autograd.functional.jacobian(lambda s: f(s[None])[0], p, create_graph=True) for p in x])
    if side == "domain":
        probes, A, B = domain.random_tangent(x, 3, seeded(), probe=probe), J.mT @ metric(f(x)) @ J, cometric(x)
    else:
        probes, A, B = codomain.random_cotangent(f(x), 3, seeded(), probe=probe), J @ cometric(x) @ J.mT, metric(f(x))
    trace = torch.einsum("kbi,bij,kbj->kb", probes, A, probes).mean(0)
    trace_sq = torch.einsum("kbi,bij,kbj->kb", probes, A @ B @ A, probes).mean(0)
    torch.testing.assert_close(m.trace, trace, rtol=1e-7, atol=0)
    torch.testing.assert_close(m.trace_sq, trace_sq, rtol=1e-7, atol=0)
    ours, naive = (gradients((b / a**2).sum(), theta) for a, b in ((m.trace, m.trace_sq), (trace, trace_sq)))
    torch.testing.assert_close(ours, naive, rtol=1e-6, atol=1e-9)
    assert dense_operator(f, x, cometric, metric).shape[1] == x.shape[1]


def assert_hutchinson_is_unbiased(manifold, n, embed=None):
    """Within 4 standard errors of Exact, every side and distribution, as domain and codomain."""
    embed = embed or (lambda x: x)
    out, inner = network(n, 3), network(3, n)
    with torch.no_grad():
        for f, x, spaces in (
            (out, embed(torch.randn(1, n, dtype=torch.float64)), {"domain": manifold}),
            (lambda p: embed(inner(p)), torch.randn(1, 3, dtype=torch.float64), {"codomain": manifold}),
        ):
            exact = georeg.spectral_moments(f, x, estimator=georeg.Exact(), **spaces)
            for side in ("domain", "codomain"):
                for probe in ("gaussian", "sphere", "rademacher"):
                    m = georeg.spectral_moments(f, x, estimator=georeg.Hutchinson(2000, probe, side), **spaces)
                    assert (m.trace - exact.trace).abs() <= 4 * m.trace_stderr + 1e-9
                    assert (m.trace_sq - exact.trace_sq).abs() <= 4 * m.trace_sq_stderr + 1e-9
