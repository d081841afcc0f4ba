"""The metric that a network induces equals JᵀHJ, with its gradients."""

import pytest
import torch
from torch import nn

import georeg
from georeg.testing import ManifoldContract, dense_jacobian
from tests.conftest import gradients
from tests.georeg.manifolds.moments import assert_hutchinson_is_unbiased, assert_moments_equal_the_dense_operators


class Features(nn.Module):
    """An immersion of events of any shape: a skip connection beside a smooth nonlinearity."""

    def __init__(self, d=4, m=6):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(d, m, generator=generator, dtype=torch.float64) * 0.5)

    def forward(self, x):
        flat = x.flatten(1)
        return torch.cat([flat, torch.tanh(flat @ self.weight.to(x.dtype))], dim=1)


def curved(y):
    return 1 + y.sin() ** 2


class TestPullback(ManifoldContract):
    manifold = georeg.PullbackMetric(Features(), georeg.CustomMetric(curved))
    fixed_norm = ("random_tangent",)


class TestPullbackByConjugateGradients(ManifoldContract):
    manifold = georeg.PullbackMetric(Features(), georeg.CustomMetric(curved), solver="cg", damping=0.1)
    fixed_norm = ("random_tangent",)


class TestPullbackFromTheSphere(ManifoldContract):
    manifold = georeg.PullbackMetric(
        lambda x: nn.functional.pad(x.flatten(1), (0, 1), value=1.0), georeg.Sphere(), chunk_size=1
    )
    fixed_norm = ("random_tangent",)


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize("codomain", [None, georeg.CustomMetric(curved)])
def test_moments_equal_the_dense_operators(solver, damping, codomain):
    f = Features()
    metric = georeg.PullbackMetric(f, codomain, solver=solver, damping=damping)

    def matrix(x):
        J = dense_jacobian(f, x)
        H = torch.diag_embed(curved(f(x))) if codomain else torch.eye(J.shape[1], dtype=J.dtype)
        return J.mT @ H @ J + damping * torch.eye(4, dtype=J.dtype)

    assert_moments_equal_the_dense_operators(metric, matrix, 4, parameters=f.parameters())


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_hutchinson_is_unbiased(solver):
    assert_hutchinson_is_unbiased(georeg.PullbackMetric(Features(), georeg.CustomMetric(curved), solver=solver), 4)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_the_solve_has_exact_derivatives(solver):
    """Of first order; of second order too, or an error."""
    metric = georeg.PullbackMetric(Features(2, 2), solver=solver, tolerance=1e-14)
    x, c = torch.randn(2, 2, 2, dtype=torch.float64)
    inputs = (x.requires_grad_(), c.requires_grad_())
    assert torch.autograd.gradcheck(metric.sharp, inputs)
    if solver == "cholesky":
        assert torch.autograd.gradgradcheck(metric.sharp, inputs)
        return
    (first,) = torch.autograd.grad(metric.sharp(x, c).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_gradient_reaches_the_metrics_own_parameters_and_the_map():
    """A perceptual loss: both networks move the moments, and neither gradient is dropped."""
    f, features = nn.Linear(3, 4).double(), Features()
    x = torch.randn(2, 3, dtype=torch.float64)
    m = georeg.spectral_moments(f, x, codomain=georeg.PullbackMetric(features))
    gradient = gradients(m.trace.sum(), [*f.parameters(), *features.parameters()])
    assert all(part.abs().sum() > 0 for part in gradient.split([12, 4, 24]))


def test_the_map_runs_once_for_each_point():
    calls = []

    def f(x):
        calls.append(x)
        return 2 * x

    x = torch.randn(3, 4)
    georeg.spectral_moments(nn.Linear(2, 4), torch.randn(3, 2), codomain=georeg.PullbackMetric(f))
    assert len(calls) == 1
    at = georeg.PullbackMetric(f).at(x)
    for _ in range(3):
        at.sharp(at.flat(x))
    assert len(calls) == 2
    assert at.lin.num_jvps == 4 + 3


def test_a_composite_map_is_the_map_into_the_pulled_back_metric():
    f, features = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double(), Features()
    x = torch.randn(2, 3, dtype=torch.float64)
    through = georeg.spectral_moments(f, x, codomain=georeg.PullbackMetric(features), estimator=georeg.Exact())
    composite = georeg.spectral_moments(lambda p: features(f(p)), x, estimator=georeg.Exact())
    torch.testing.assert_close(through.trace_sq, composite.trace_sq, rtol=1e-10, atol=0)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize(
    "f", [lambda x: x[:, :3], lambda x: torch.cat([x[:, :3], x[:, :3]], 1), lambda x: 0 * x, lambda x: torch.ones_like(x)]
)
def test_a_singular_metric_is_refused_as_a_domain_and_usable_as_a_codomain(f, solver):
    metric, x = georeg.PullbackMetric(f, solver=solver), torch.randn(2, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"singular.*damping|damping"):
        metric.sharp(x, torch.randn_like(x))
    assert torch.isfinite(georeg.spectral_moments(lambda p: 2 * p, x, codomain=metric).trace).all()
    damped = georeg.PullbackMetric(f, solver=solver, damping=0.5)
    torch.testing.assert_close(damped.flat(x, damped.sharp(x, x)), x)


def test_the_rank_of_a_seminorm_is_that_of_the_map():
    """The floor 1/d of the loss counts the directions that the features see."""
    x = torch.randn(2, 4, dtype=torch.float64)
    m = georeg.spectral_moments(lambda p: p, x, codomain=georeg.PullbackMetric(lambda y: y[:, :2]), estimator=georeg.Exact())
    assert m.rank == 2
    torch.testing.assert_close(m.rank * m.trace_sq / m.trace**2, torch.ones(2, dtype=torch.float64))


def test_inside_torch_func_cholesky_works_and_cg_is_refused():
    f, x = nn.Linear(4, 3).double(), torch.randn(2, 4, dtype=torch.float64)

    def trace(weight, solver):
        metric = georeg.PullbackMetric(Features(), solver=solver)
        return georeg.spectral_moments(
            lambda p: (p @ weight.T).sin(), x, domain=metric, estimator=georeg.Exact()
        ).trace.sum()

    plain = torch.autograd.grad(trace(f.weight, "cholesky"), f.weight)[0]
    torch.testing.assert_close(torch.func.grad(trace)(f.weight.detach(), "cholesky"), plain)
    with pytest.raises(RuntimeError, match="expected 'cholesky' there"):
        torch.func.grad(trace)(f.weight.detach(), "cg")


def test_fixed_norm_cotangents_have_no_variance_where_the_composite_is_a_scaled_isometry():
    f, features = nn.Linear(8, 6, bias=False).double(), nn.Linear(6, 3, bias=False).double()
    nn.init.orthogonal_(f.weight)
    nn.init.orthogonal_(features.weight)
    x = torch.randn(1, 8, dtype=torch.float64)
    m = georeg.spectral_moments(f, x, codomain=georeg.PullbackMetric(features), estimator=georeg.Hutchinson(16))
    assert m.trace_stderr.item() < 1e-12
    torch.testing.assert_close(m.trace, torch.full_like(m.trace, 3.0))


def test_slow_convergence_is_an_error_that_names_the_remedy():
    f = lambda x: x * torch.logspace(0, 4, 4, dtype=x.dtype)  # noqa: E731
    metric = georeg.PullbackMetric(f, solver="cg", max_iterations=2)
    with pytest.raises(ValueError, match=r"relative residual of .* after 2 iterations"):
        metric.sharp(torch.zeros(1, 4), torch.ones(1, 4))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"f": 3}, TypeError, "f: got int"),
        ({"codomain": georeg.Sphere}, TypeError, "codomain: got ABCMeta"),
        ({"damping": -1.0}, ValueError, "damping: got -1.0"),
        ({"damping": float("nan")}, ValueError, "damping: got nan"),
        ({"solver": "lu"}, ValueError, "solver: got 'lu'"),
        ({"tolerance": 0.0}, ValueError, "tolerance: got 0.0"),
        ({"max_iterations": 0}, ValueError, "max_iterations: got 0"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        georeg.PullbackMetric(**{"f": torch.sin, **arguments})
