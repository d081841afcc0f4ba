"""Group norm with and without SiLU: torch's values, and derivatives of any order from closed forms."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from georeg.kernels import group_norm as module
from georeg.kernels.group_norm import group_norm, group_norm_silu
from georeg.kernels.mode import products_only

from .cases import kept_bytes, third


def plain_silu(x, *arguments):
    return F.silu(F.group_norm(x, *arguments))


PAIRS = {"norm": (group_norm, F.group_norm), "norm and SiLU": (group_norm_silu, plain_silu)}
SHAPES = {"2d": (2, 4, 3, 2), "none": (3, 6), "1d": (2, 4, 5), "3d": (1, 4, 2, 3, 2), "one value": (2, 4, 1, 1)}
both = pytest.mark.parametrize(("ours", "torchs"), PAIRS.values(), ids=PAIRS)


def tensors(shape, *, dtype=torch.float64):
    torch.manual_seed(0)
    x = (3 * torch.randn(shape, dtype=dtype) + 1).requires_grad_()
    return x, *(torch.randn(shape[1], dtype=dtype, requires_grad=True) for _ in range(2))


@both
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_two_derivatives(ours, torchs, shape):
    x, w, b = tensors(shape)

    def f(*values):
        return ours(values[0], 2, *values[1:])

    torch.testing.assert_close(f(x, w, b), torchs(x, 2, w, b), rtol=1e-12, atol=1e-12)
    assert gradcheck(f, (x, w, b), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(f, (x, w, b), check_fwd_over_rev=True, fast_mode=True)


@both
@pytest.mark.parametrize("affine", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("through_modes", [True, False])
@pytest.mark.parametrize("shape", [SHAPES["2d"], SHAPES["1d"]])
def test_the_third_derivative(ours, torchs, affine, through_modes, shape):
    x, w, b = tensors(shape)
    w, b = (p if wanted else None for p, wanted in zip((w, b), affine, strict=True))
    parameters = [p for p in (w, b) if p is not None]
    found = third(lambda p: ours(p, 2, w, b), x, parameters, through_modes=through_modes)
    expected = third(lambda p: torchs(p, 2, w, b), x, parameters, through_modes=False)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@both
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("shape", [SHAPES["2d"], (1, 4, 4), (2, 4, 2, 2, 2)])
def test_the_third_derivative_with_all_channels_in_a_group_and_each_in_its_own(ours, torchs, groups, shape):
    x, w, b = tensors(shape)
    found = third(lambda p: ours(p, groups, w, b), x, [w, b])
    expected = third(lambda p: torchs(p, groups, w, b), x, [w, b], through_modes=False)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@both
def test_the_third_derivative_in_parts_of_the_batch(ours, torchs, monkeypatch):
    x, w, b = tensors((5, 4, 3, 2))
    expected = third(lambda p: torchs(p, 2, w, b), x, [w, b], through_modes=False)
    for size in (1, 2 * x[0].numel() * 8, 4 * x[0].numel() * 8, 2**20):
        monkeypatch.setattr(module, "CACHE_BYTES", size)
        torch.testing.assert_close(third(lambda p: ours(p, 2, w, b), x, [w, b]), expected, rtol=1e-9, atol=1e-11)


@both
def test_a_fourth_derivative(ours, torchs):
    """Somebody trains through the gradient of an isometry loss."""
    x, w, b = tensors((1, 4, 3))

    def f(op):
        (g,) = torch.autograd.grad(op(x, 2, w, b).pow(3).sum(), x, create_graph=True)
        (h,) = torch.autograd.grad(g.pow(2).sum(), x, create_graph=True)
        (k,) = torch.autograd.grad(h.pow(2).sum(), w, create_graph=True)
        return torch.autograd.grad(k.sum(), [x, w])

    torch.testing.assert_close(f(ours), f(torchs), rtol=1e-8, atol=1e-9)


LAYOUTS = {
    "transposed": lambda t: t.transpose(2, 3),
    "strided": lambda t: t[:, :, ::2],
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "channels moved": lambda t: t.permute(2, 1, 0, 3),
}


@both
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_strides_as_points_and_as_tangents(ours, torchs, layout):
    base, w, b = tensors((4, 6, 5, 4))
    x, v = layout(base), layout(torch.randn_like(base))
    torch.testing.assert_close(ours(x, 2, w, b), torchs(x, 2, w, b))
    for point, tangent in ((x, v), (x.contiguous(), v), (x, v.contiguous())):
        found = torch.func.jvp(lambda p: ours(p, 2, w, b), (point,), (tangent,))[1]
        expected = torch.func.jvp(lambda p: torchs(p, 2, w, b), (x.contiguous(),), (v.contiguous(),))[1]
        torch.testing.assert_close(found, expected)


@both
def test_points_that_share_memory(ours, torchs):
    x, w, b = tensors((4, 6, 5, 4))
    torch.testing.assert_close(ours(x[:1].expand(3, -1, -1, -1), 2, w, b), torchs(x[:1].expand(3, -1, -1, -1), 2, w, b))


@both
def test_functorch(ours, torchs):
    x, w, b = tensors((2, 4, 3))
    v = torch.randn(3, *x.shape, dtype=x.dtype)

    def pushed(op, w):
        return torch.func.vmap(lambda d: torch.func.jvp(lambda p: op(p, 2, w, b), (x,), (d,))[1])(v)

    def through(op):
        return torch.func.grad(lambda w: pushed(op, w).square().sum())(w)

    torch.testing.assert_close(pushed(ours, w), pushed(torchs, w))
    torch.testing.assert_close(through(ours), through(torchs))
    many = torch.randn(3, 4, dtype=x.dtype)  # an ensemble of weights
    each = torch.func.vmap(lambda w: ours(x, 2, w, b))(many)
    torch.testing.assert_close(each, torch.stack([torchs(x, 2, w, b) for w in many]))
    y = ours(x, 2, w, b)
    pulled = torch.func.vmap(lambda c: torch.autograd.grad(y, [x, w, b], c, retain_graph=True))(v)
    expected = [torch.autograd.grad(torchs(x, 2, w, b), [x, w, b], c) for c in v]
    torch.testing.assert_close(pulled, tuple(torch.stack(g) for g in zip(*expected, strict=True)))


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_errs_by_its_own_rounding(ours, torchs, dtype):
    x, w, b = (t.detach().to(dtype).requires_grad_() for t in tensors((2, 8, 6, 6)))
    y = ours(x, 2, w, b)
    assert y.dtype == dtype
    exact = torchs(x.double(), 2, w.double(), b.double())
    assert (y - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
    gradient = torch.autograd.grad(y.float().pow(2).sum(), x)[0]
    assert gradient.dtype == dtype
    expected = torch.autograd.grad(exact.pow(2).sum(), x)[0]
    assert (gradient - expected).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max() * w.abs().max()


@both
def test_extreme_inputs(ours, torchs):
    _, w, b = tensors((2, 4, 3))
    for x in (torch.zeros(2, 4, 3), 1e18 * torch.randn(2, 4, 3), 1e-18 * torch.randn(2, 4, 3)):
        point = x.double().requires_grad_()
        found = third(lambda p: ours(p, 2, w, b), point, [w, b])
        expected = third(lambda p: torchs(p, 2, w, b), point, [w, b], through_modes=False)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_empty_batches_and_what_is_refused():
    w = torch.ones(4)
    assert group_norm(torch.zeros(0, 4, 3), 2, w).shape == (0, 4, 3)
    with pytest.raises(ValueError, match="num_groups: got 3"):
        group_norm(torch.zeros(2, 4, 3), 3)
    with pytest.raises(ValueError, match="weight: got shape"):
        group_norm_silu(torch.zeros(2, 4, 3), 2, torch.ones(3))


def test_no_graph_where_none_is_wanted():
    x, w, b = tensors((2, 4, 3))
    with torch.no_grad():
        assert not group_norm_silu(x, 2, w, b).requires_grad
    assert not group_norm_silu(x.detach(), 2).requires_grad


def test_it_keeps_less():
    x, w, b = tensors((4, 8, 16, 16), dtype=torch.float32)

    def graph(op):
        y = op(x * 1, 2, w, b)
        u = torch.ones_like(y).requires_grad_()
        with products_only():
            (g,) = torch.autograd.grad(y, x, u, create_graph=True)
        with products_only(cotangents=True):
            (q,) = torch.autograd.grad(g, u, g, create_graph=True)
        return y, g, q

    size = x.numel() * x.element_size()
    ours, torchs = kept_bytes(lambda: graph(group_norm_silu)), kept_bytes(lambda: graph(plain_silu))
    assert ours <= 4.2 * size  # x, u, and g twice: as a cotangent's pullback and as q's tangent
    assert torchs >= 2 * ours
