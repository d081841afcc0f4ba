"""The linear layer: torch's values and derivatives, and a pullback at zero that costs nothing."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import georeg
from georeg.kernels import linear as module
from georeg.kernels.linear import linear

from .cases import flops, third


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(module, "LEAST_WORK", 0)


def tensors(*, leading=(2, 5), dtype=torch.float64):
    torch.manual_seed(0)
    return tuple(torch.randn(s, dtype=dtype, requires_grad=True) for s in ((*leading, 3), (4, 3), (4,)))


def curved(op, x, *parameters):
    """With a second derivative by x and by the weight."""
    return op(op(x, *parameters).tanh(), parameters[0].mT)


@pytest.mark.parametrize("leading", [(2,), (2, 5), (2, 3, 2)])
def test_values_and_two_derivatives(leading):
    inputs = tensors(leading=leading)
    torch.testing.assert_close(linear(*inputs), F.linear(*inputs), rtol=0, atol=0)
    assert type(linear(*inputs).grad_fn).__name__ == "_ValueBackward"
    assert gradcheck(linear, inputs, check_forward_ad=True)
    assert gradgradcheck(linear, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("through_modes", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_third_derivative(through_modes, has_bias):
    x, *parameters = tensors()[: 2 + has_bias]
    found = third(lambda p: curved(linear, p, *parameters), x, parameters, through_modes=through_modes)
    expected = third(lambda p: curved(F.linear, p, *parameters), x, parameters, through_modes=False)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_functorch():
    x, w, b = tensors()
    v = torch.randn(3, *x.shape, dtype=x.dtype)

    def pushed(op, w):
        return torch.func.vmap(lambda d: torch.func.jvp(lambda p: curved(op, p, w, b), (x,), (d,))[1])(v)

    torch.testing.assert_close(pushed(linear, w), pushed(F.linear, w))
    through = [torch.func.grad(lambda w, op=op: pushed(op, w).square().sum())(w) for op in (linear, F.linear)]
    torch.testing.assert_close(*through)
    many = torch.randn(3, *w.shape, dtype=w.dtype)  # an ensemble of weights
    torch.testing.assert_close(
        torch.func.vmap(lambda w: linear(x, w, b))(many), torch.stack([F.linear(x, w, b) for w in many])
    )


def test_what_is_left_to_torch(monkeypatch):
    x, w, b = tensors()
    for arguments in ((x[0, 0], w, b), (x, w[0]), (x, w.detach().to_sparse())):
        y = linear(*arguments)
        torch.testing.assert_close(y, F.linear(*arguments))
        assert type(y.grad_fn).__name__ != "_ValueBackward"
    with pytest.raises(RuntimeError):
        linear(x.float(), w)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x.float(), w.float(), b.float()).dtype == torch.bfloat16
    monkeypatch.setattr(module, "LEAST_WORK", 1000)
    assert type(linear(x, w, b).grad_fn).__name__ != "_ValueBackward"


def test_the_domain_side_of_a_map_with_linear_layers():
    """J v at one forward pass, one pass at zero that costs nothing, and one product; its values are the dense Jacobian's."""
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    x, v = torch.randn(2, 3, dtype=torch.float64), torch.randn(1, 2, 3, dtype=torch.float64)
    one = flops(lambda: layers(x))
    lin = georeg.linearize(layers, x)
    with FlopCounterMode(display=False) as counter:
        found = lin.jvp(v)[0]
    assert counter.get_total_flops() == one
    dense = torch.stack([torch.autograd.functional.jacobian(layers, point) @ d for point, d in zip(x, v[0], strict=True)])
    torch.testing.assert_close(found, dense)
    torch.testing.assert_close(lin.vjp(found[None])[0].mul(v[0]).sum(), found.square().sum())
