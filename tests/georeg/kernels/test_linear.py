"""The linear layer: torch's values and derivatives, and a pullback at zero that costs nothing."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import georeg
from georeg.kernels import linear as module
from georeg.kernels.linear import linear

from .cases import copied, flops, products, third


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(module, "LEAST_WORK", 0)


def by_channels(x):
    """The same values, in memory as (B, C, ...)."""
    return x.movedim(-1, 1).contiguous().movedim(1, -1)


LAYOUTS = {"by rows": torch.clone, "by channels": by_channels}
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def tensors(*, leading=(2, 5), dtype=torch.float64, layout=torch.clone):
    torch.manual_seed(0)
    x, *parameters = (torch.randn(s, dtype=dtype, requires_grad=True) for s in ((*leading, 3), (4, 3), (4,)))
    return layout(x.detach()).requires_grad_(), *parameters


def curved(op, x, *parameters):
    """With a second derivative by x and by the weight."""
    return op(op(x, *parameters).tanh(), parameters[0].mT)


@each_layout
@pytest.mark.parametrize("leading", [(2,), (2, 5), (2, 3, 2), (1, 1), (2, 1, 4), (0, 5)])
def test_values_and_two_derivatives(leading, layout):
    inputs = tensors(leading=leading, layout=layout)
    tolerance = 1e-14 if layout is by_channels else 0  # of sums in another order
    torch.testing.assert_close(linear(*inputs), F.linear(*inputs), rtol=tolerance, atol=tolerance)
    assert type(linear(*inputs).grad_fn).__name__ == "_ValueBackward"
    assert gradcheck(linear, inputs, check_forward_ad=True)
    assert gradgradcheck(linear, inputs, check_fwd_over_rev=True)


@each_layout
@pytest.mark.parametrize("through_modes", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_third_derivative(through_modes, has_bias, layout):
    x, *parameters = tensors(layout=layout)[: 2 + has_bias]
    found = third(lambda p: curved(linear, p, *parameters), x, parameters, through_modes=through_modes)
    expected = third(lambda p: curved(F.linear, p, *parameters), x, parameters, through_modes=False)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("leading", [(2, 5), (2, 3, 2)])
def test_what_lies_by_channels_stays_so_and_is_not_copied(leading):
    x, w, b = tensors(leading=leading, layout=by_channels)
    u, c = (by_channels(torch.randn(*leading, 4, dtype=x.dtype)).requires_grad_() for _ in range(2))
    v = by_channels(torch.randn(*leading, 3, dtype=x.dtype))
    found = []

    def step():
        y, g, q = products(lambda p: linear(p, w, b), x, u, v)
        found.extend((y, g, q, *torch.autograd.grad((y, g, q), (x, w, b), (c, v, c))))

    assert copied(step) == 0
    y, g, q, dx, *_ = found
    assert all(t.movedim(-1, 1).is_contiguous() for t in (y, g, q, dx))
    with torch.autograd.forward_ad.dual_level():
        pushed = linear(torch.autograd.forward_ad.make_dual(x, v), w, b)
        tangent = torch.autograd.forward_ad.unpack_dual(pushed).tangent
    assert tangent.movedim(-1, 1).is_contiguous()


def test_a_cotangent_in_another_layout():
    for layout, others in ((torch.clone, by_channels), (by_channels, torch.clone)):
        inputs = tensors(layout=layout)
        c = others(torch.randn(2, 5, 4, dtype=torch.float64))
        found, expected = (torch.autograd.grad(op(*inputs), inputs, c) for op in (linear, F.linear))
        torch.testing.assert_close(found, expected)


@each_layout
def test_half_precision(layout):
    x, w, b = (t.detach().bfloat16().requires_grad_() for t in tensors(layout=layout))
    exact = F.linear(x.double(), w.double(), b.double())
    y = linear(x, w, b)
    assert y.dtype == torch.bfloat16
    assert (y - exact).abs().max() <= torch.finfo(torch.bfloat16).eps * exact.abs().max()
    assert [g.dtype for g in torch.autograd.grad(y.sum(), (x, w, b))] == [torch.bfloat16] * 3


@each_layout
def test_functorch(layout):
    x, w, b = tensors(layout=layout)
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
