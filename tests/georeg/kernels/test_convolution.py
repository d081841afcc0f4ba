"""The convolution rule: torch's values and derivatives of any order, and no work that nobody asked for."""

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn import functional as F

from georeg.kernels import convolution
from georeg.kernels.mode import cotangents_only, products_only, skips
from tests.georeg.kernels.cases import flops

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CASES = {
    "plain": (2, {}),
    "padded": (2, {"padding": 1}),
    "strided": (2, {"stride": 2, "padding": (1, 0)}),
    "dilated": (2, {"dilation": (2, 1), "padding": "same"}),
    "even kernel, same": (2, {"padding": "same", "kernel": 2}),
    "valid": (2, {"padding": "valid"}),
    "grouped": (2, {"groups": 2, "padding": 1}),
    "depthwise": (2, {"groups": 4}),
    "1d": (1, {"stride": 2, "padding": 1}),
    "3d": (3, {"padding": 1}),
}


def tensors(n, *, groups=1, kernel=3, batch=2, dtype=torch.float64):
    torch.manual_seed(0)
    space = (6, 5, 4)[:n]
    x = torch.randn(batch, 4, *space, dtype=dtype, requires_grad=True)
    weight = torch.randn(8, 4 // groups, *[kernel] * n, dtype=dtype, requires_grad=True)
    return x, weight, torch.randn(8, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("case", CASES)
def test_values_and_derivatives_are_torchs(case):
    n, options = CASES[case]
    options = dict(options)
    inputs = tensors(n, groups=options.get("groups", 1), kernel=options.pop("kernel", 3), batch=1)

    def ours(*a):
        return convolution(*a, **options)

    torch.testing.assert_close(ours(*inputs), CONVOLUTIONS[n](*inputs, **options), rtol=1e-12, atol=1e-12)
    assert gradcheck(ours, inputs, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(ours, inputs, fast_mode=True, check_fwd_over_rev=True, check_batched_grad=True)


def third(conv, x, weight, bias):
    """A gradient of a quantity of second derivatives, as the isometry loss takes it, through a nonlinearity."""
    y = conv(torch.tanh(conv(x, weight, bias)), weight.transpose(0, 1))
    u = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape).requires_grad_()
    (g,) = torch.autograd.grad(y, x, u, create_graph=True)
    (q,) = torch.autograd.grad(g, u, g, create_graph=True)
    return torch.autograd.grad(q.square().sum() + g.square().sum(), [weight, bias])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_third_derivative_is_torchs(memory_format):
    x, weight, bias = tensors(2)
    x = x.detach().to(memory_format=memory_format).requires_grad_()
    torch.testing.assert_close(third(convolution, x, weight, bias), third(F.conv2d, x, weight, bias))


def test_any_layout_and_batch():
    x, weight, bias = tensors(2)
    for points in (x.transpose(2, 3), x[:, :, ::2], x[:1].expand(3, -1, -1, -1), x[:0], x[0]):
        torch.testing.assert_close(convolution(points, weight, bias), F.conv2d(points, weight, bias))


def test_an_unknown_padding_is_refused():
    x, weight, bias = tensors(2)
    with pytest.raises(ValueError, match="padding: got 'full'"):
        convolution(x, weight, bias, padding="full")
    with pytest.raises(ValueError, match="stride 2"):
        convolution(x, weight, bias, stride=2, padding="same")


def test_functorch():
    x, weight, _ = tensors(2)
    v = torch.randn(3, *x.shape, dtype=x.dtype)

    def sensitivity(conv):
        def f(w, p):
            return conv(p, w).tanh()

        def loss(w):
            pushed = torch.func.vmap(lambda d: torch.func.jvp(lambda p: f(w, p), (x,), (d,))[1])(v)
            return pushed.square().sum()

        return torch.func.grad(loss)(weight)

    torch.testing.assert_close(sensitivity(convolution), sensitivity(F.conv2d))


def test_forward_mode_without_gradients():
    """Nothing is recorded for a backward pass there, and the tangent must not be lost with it."""
    x, v = torch.randn(2, 1, 3, 6, 6, dtype=torch.float64)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    with torch.no_grad(), forward_ad.dual_level():
        y = convolution(forward_ad.make_dual(x, v), weight)
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, F.conv2d(v, weight))


def test_a_product_computes_no_weight_gradient_but_the_loss_does():
    x, weight, bias = tensors(2)
    y = convolution(x, weight, bias, padding=1)
    one = flops(lambda: convolution(x, weight, bias, padding=1))
    u = torch.randn_like(y, requires_grad=True)
    results = {}

    def products():
        with products_only():
            (g,) = torch.autograd.grad(y, x, u, create_graph=True)
        with products_only(cotangents=True):
            (q,) = torch.autograd.grad(g, u, g, create_graph=True)
        results["q"] = q

    assert flops(products) == 2 * one
    # Two products to pull back, through J of q and through Jᵀ of g: each an input's and a weight's gradient.
    assert flops(lambda: results["q"].square().sum().backward()) == 4 * one
    assert weight.grad is not None


def test_a_weight_that_is_computed_keeps_its_gradient_inside_a_product():
    """A hyper-network's weight may depend on the point."""
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)

    def f(conv):
        return conv(x, x[:, :, :2, :2] ** 2)

    expected = torch.autograd.grad(f(F.conv2d).sum(), x)
    with products_only():
        torch.testing.assert_close(torch.autograd.grad(f(convolution).sum(), x), expected)


def test_the_mode_ends_after_an_exception():
    parameter = torch.ones(1, requires_grad=True)
    assert not skips(parameter)
    with pytest.raises(RuntimeError), products_only(cotangents=True):
        assert skips(parameter)
        assert not skips(parameter * 2)
        assert cotangents_only()
        raise RuntimeError
    assert not skips(parameter)
    assert not cotangents_only()
    assert skips(None)
