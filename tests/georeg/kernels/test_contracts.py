"""What autograd promises of any operator, of the replaced ones too."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import georeg
from georeg.kernels import attention, fused, linear

from .cases import products

KERNEL, MATRIX = torch.randn(4, 4, 3, 3, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
OPERATORS = {
    "convolution": lambda x: F.conv2d(x, KERNEL.requires_grad_()),
    "linear": lambda x: F.linear(x, MATRIX.requires_grad_()),
    "linear by channels": lambda x: F.linear(x.movedim(1, -1), MATRIX.requires_grad_()),
    "norm": lambda x: F.group_norm(x, 2),
    "norm and SiLU": lambda x: F.silu(F.group_norm(x, 2)),
    "attention": lambda x: F.scaled_dot_product_attention(x, x.flip(-1), 2 * x),
    "attention by columns": lambda x: F.scaled_dot_product_attention(x.mT, x.mT, 2 * x.mT),
}
every = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


@pytest.fixture(params=[(2, 32), (10**6, 32), (10**6, 0)], ids=["kept", "P kept", "recomputed"], autouse=True)
def rules_at_any_size(request, monkeypatch):
    for name, value in zip(("WIDTH", "LENGTH"), request.param, strict=True):
        monkeypatch.setattr(attention, name, value)
    monkeypatch.setattr(linear, "LEAST_WORK", 0)


def points():
    torch.manual_seed(0)
    return torch.randn(2, 4, 4, 4, dtype=torch.float64, requires_grad=True)


def loss(operator, x):
    """‖y‖² + ‖Jᵀu‖² + ‖J Jᵀu‖², by the engine's own modes."""
    with sdpa_kernel(SDPBackend.MATH):
        y, g, q = products(operator, x)
    return y.square().sum() + g.square().sum() + q.square().sum()


def in_fused(operator):
    def run(x):
        with fused():
            return operator(x)

    return run


@every
def test_a_point_that_changed_since_is_noticed(operator):
    x = points()
    changing = x * 1
    with fused():
        y = operator(changing)
    with torch.no_grad():
        changing.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every
def test_an_output_may_be_changed(operator):
    """What a rule keeps is its own."""
    found = []
    for run in (operator, in_fused(operator)):
        x = points()
        with sdpa_kernel(SDPBackend.MATH):
            y = run(x)
        with torch.no_grad():
            y.add_(1)  # no gradient of it is recorded: that of y, as it was, is unchanged
        found.append(torch.autograd.grad(y.sum(), x)[0])
    torch.testing.assert_close(*found)


@every
def test_a_graph_that_is_kept_serves_twice(operator):
    x = points()
    value = loss(in_fused(operator), x)
    first = torch.autograd.grad(value, x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(value, x), first, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


@every
def test_one_context_within_another(operator):
    x = points()
    once = torch.autograd.grad(loss(in_fused(operator), x), x)
    twice = torch.autograd.grad(loss(in_fused(in_fused(operator)), x), x)
    torch.testing.assert_close(once, twice, rtol=0, atol=0)
    torch.testing.assert_close(once, torch.autograd.grad(loss(operator, x), x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3), nn.Linear(4, 4)], ids=["convolution", "linear"])
def test_weights_that_are_computed(norm, layer):
    """A weight that is no leaf gets its gradients also through Jacobian products."""
    torch.manual_seed(0)
    module = nn.Sequential(norm(type(layer)(4, 4, *layer.__dict__.get("kernel_size", ())[:1])), nn.Tanh()).double().eval()
    x, parameters = points(), list(module.parameters())
    found, expected = (torch.autograd.grad(loss(run, x), [x, *parameters]) for run in (in_fused(module), module))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_torchs_multi_head_attention():
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(4, 2, batch_first=True).double()

    def f(x):
        return layer(x, x, x, need_weights=False)[0]

    x = torch.randn(2, 3, 4, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        dense = torch.stack([torch.autograd.functional.jacobian(lambda p: f(p[None])[0], one) for one in x]).reshape(
            2, 12, 12
        )
    moments = georeg.spectral_moments(f, x, estimator=georeg.Exact())
    gram = dense @ dense.mT
    torch.testing.assert_close(moments.trace, gram.diagonal(dim1=1, dim2=2).sum(-1))
    torch.testing.assert_close(moments.trace_sq, gram.square().sum((1, 2)))
