"""torch.compile around a loss, and inside of one: the same numbers, and how often a graph breaks."""

import pytest
import torch
from torch import nn

import georeg


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 3)).double()


@pytest.fixture
def x():
    return torch.randn(5, 6, dtype=torch.float64)


def with_gradient(run, parameters):
    torch.manual_seed(1)
    loss = run()
    return loss, *torch.autograd.grad(loss, list(parameters), materialize_grads=True)


def steps(encoder, x):
    def by_loss():
        return encoder(x).square().mean() + 2 * georeg.IsometryLoss(domain=georeg.Sphere())(encoder, x).loss

    def by_moments():
        moments = georeg.spectral_moments(encoder, x)
        return encoder(x).square().mean() + moments.trace_sq.mean() / moments.trace.mean() ** 2

    def by_products():
        lin = georeg.linearize(encoder, x)
        return encoder(x).square().mean() + lin.jvp(lin.vjp(torch.ones_like(lin.value)[None])).square().mean()

    return {"loss": by_loss, "moments": by_moments, "products": by_products}


@pytest.mark.parametrize("which", ["loss", "moments", "products"])
def test_a_compiled_step_breaks_once_and_has_the_same_gradient(encoder, x, which):
    """The loss runs as written between two graphs."""
    step = steps(encoder, x)[which]
    expected = with_gradient(step, encoder.parameters())
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    found = with_gradient(torch.compile(step, backend=backend), encoder.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    # Before the loss, and after it; the moments come first; before a product its cotangent is made.
    assert len(graphs) == {"loss": 2, "moments": 1, "products": 2}[which]
    inside = {node.target for graph in graphs for node in graph.graph.nodes}
    assert torch.autograd.grad not in inside


@pytest.mark.parametrize("engine", ["reverse", "forward"])
def test_a_compiled_map_runs_as_written(encoder, x, engine):
    """Its graphs, made by AOTAutograd, have no second derivative."""

    def run(f):
        lin = georeg.linearize(f, x, engine=engine)
        return lin.jvp(lin.vjp(torch.ones_like(lin.value)[None])).square().mean()

    expected = with_gradient(lambda: run(encoder), encoder.parameters())
    torch._dynamo.reset()
    compiled = torch.compile(encoder, backend="aot_eager")
    compiled(x)
    found = with_gradient(lambda: run(compiled), encoder.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
