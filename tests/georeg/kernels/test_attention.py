"""Attention: torch's values, and derivatives of any order from closed forms, in blocks."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import georeg
from georeg.kernels import attention as module
from georeg.kernels import blocks
from georeg.kernels.attention import attention
from georeg.kernels.mode import frugal, products_only

from .cases import flops, kept_bytes, third

OPTIONS = {"plain": {}, "causal": {"is_causal": True}, "scaled": {"scale": 0.3}}
NEVER = 10**6
KEPT, HALF, RECOMPUTED = (2, NEVER), (NEVER, NEVER), (NEVER, 0)  # the least width, and the greatest length by the width
BLOCKS = {"one": None, "rows": 64, "a row": 1, "heads": 400}


def keep(monkeypatch, what):
    for name, value in zip(("WIDTH", "LENGTH"), what, strict=True):
        monkeypatch.setattr(module, name, value)


@pytest.fixture(params=[KEPT, HALF, RECOMPUTED], ids=["kept", "P kept", "recomputed"], autouse=True)
def kept(request, monkeypatch):
    keep(monkeypatch, request.param)
    return request.param


def by_torch(*arguments, **options):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*arguments, **options)


def tensors(*, leading=(2, 2), rows=5, columns=4, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = ((*leading, rows, 3), (*leading, columns, 3), (*leading, columns, 2))
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


def of_one(op, **options):
    """Attention of one tensor, its thirds being query, key and value."""
    return lambda x: op(*x.chunk(3, dim=-1), **options)


def lies(monkeypatch, layout):
    """Features by rows or by columns; of rows as narrow and as wide ones, which are not taken by columns."""
    monkeypatch.setattr(blocks, "NARROW", 1 if layout == "by wide rows" else 16)
    return (lambda t: t.mT.contiguous().mT) if layout == "by columns" else torch.clone


each_layout = pytest.mark.parametrize("layout", ["by rows", "by wide rows", "by columns"])


@each_layout
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_values_and_two_derivatives(options, block, layout, monkeypatch):
    lay = lies(monkeypatch, layout)
    inputs = [lay(t.detach()).requires_grad_() for t in tensors()]

    def f(*a):
        return attention(*a, **options, block_bytes=block)

    torch.testing.assert_close(f(*inputs), by_torch(*inputs, **options), rtol=1e-12, atol=1e-12)
    assert gradcheck(f, inputs, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(f, inputs, check_fwd_over_rev=True, fast_mode=True)


@each_layout
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("through_modes", [True, False])
def test_the_third_derivative(options, block, through_modes, layout, monkeypatch):
    torch.manual_seed(1)
    x = lies(monkeypatch, layout)(torch.randn(2, 2, 5, 9, dtype=torch.float64)).requires_grad_()
    found = third(of_one(attention, **options, block_bytes=block), x, [], through_modes=through_modes)
    expected = third(of_one(by_torch, **options), x, [], through_modes=False)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_the_third_derivative_when_one_input_alone_moves(part):
    """As in cross-attention, whose keys and values are no function of the point."""
    inputs = tensors()

    def f(op):
        def g(x):
            return op(*[x if i == part else t for i, t in enumerate(inputs)])

        return third(g, inputs[part], [t for i, t in enumerate(inputs) if i != part], through_modes=op is attention)

    torch.testing.assert_close(f(attention), f(by_torch), rtol=1e-9, atol=1e-11)


def test_a_fourth_derivative():
    x = torch.randn(1, 1, 3, 6, dtype=torch.float64, requires_grad=True)

    def f(op):
        (g,) = torch.autograd.grad(of_one(op)(x).pow(3).sum(), x, create_graph=True)
        (h,) = torch.autograd.grad(g.pow(2).sum(), x, create_graph=True)
        (k,) = torch.autograd.grad(h.pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(k.sum(), x)

    torch.testing.assert_close(f(attention), f(by_torch), rtol=1e-8, atol=1e-9)


def test_under_hooks_on_saved_tensors():
    """Where torch.func refuses to run."""
    x = torch.randn(1, 1, 3, 6, dtype=torch.float64, requires_grad=True)

    def f(op):
        (g,) = torch.autograd.grad(of_one(op)(x).pow(3).sum(), x, create_graph=True)
        (h,) = torch.autograd.grad(g.pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(h.pow(2).sum(), x)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        torch.testing.assert_close(f(attention), f(by_torch), rtol=1e-8, atol=1e-9)


def test_functorch():
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    v = torch.randn(3, *x.shape, dtype=x.dtype)

    def pushed(op, scale):
        return torch.func.vmap(lambda d: torch.func.jvp(lambda p: of_one(op)(p * scale), (x,), (d,))[1])(v)

    one = torch.ones((), dtype=x.dtype)
    torch.testing.assert_close(pushed(attention, one), pushed(by_torch, one))
    through = [torch.func.grad(lambda s, op=op: pushed(op, s).square().sum())(one) for op in (attention, by_torch)]
    torch.testing.assert_close(*through)
    y = of_one(attention)(x)
    c = torch.randn(3, *y.shape, dtype=x.dtype)
    pulled = torch.func.vmap(lambda w: torch.autograd.grad(y, x, w, retain_graph=True)[0])(c)
    torch.testing.assert_close(pulled, torch.stack([torch.autograd.grad(of_one(by_torch)(x), x, w)[0] for w in c]))


def test_what_goes_to_the_mathematical_form():
    q, k, v = tensors()
    mask = torch.rand(5, 4) > 0.4
    mask[:, 0] = True
    bias = torch.randn(2, 1, 5, 4, dtype=q.dtype, requires_grad=True)
    torch.testing.assert_close(attention(q, k, v, mask), by_torch(q, k, v, mask))
    found, expected = (torch.autograd.grad(op(q, k, v, bias).pow(2).sum(), bias) for op in (attention, by_torch))
    torch.testing.assert_close(found, expected)
    torch.manual_seed(5)
    dropped = attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(5)
    torch.testing.assert_close(dropped, by_torch(q, k, v, dropout_p=0.5))
    few = [t[:, :1] for t in (k, v)]
    torch.testing.assert_close(attention(q, *few, enable_gqa=True), by_torch(q, *few, enable_gqa=True))
    torch.testing.assert_close(attention(q, *few), by_torch(q, *few))  # heads that broadcast
    for value in (few[1], v[0], v[0, 0]):  # the values alone
        torch.testing.assert_close(attention(q, k, value), by_torch(q, k, value))


@each_layout
@pytest.mark.parametrize("width", [8, 32])
def test_derivatives_lie_as_their_points_do(layout, width, monkeypatch):
    lay = lies(monkeypatch, layout)
    q, k, v = (lay(torch.randn(2, 6, width)).requires_grad_() for _ in range(3))
    y = attention(q, k, v)
    u = lay(torch.randn(2, 6, width)).requires_grad_()
    with products_only():
        g = torch.autograd.grad(y, q, u, create_graph=True)[0]
    with products_only(cotangents=True):
        pushed = torch.autograd.grad(g, u, lay(torch.randn(2, 6, width)), create_graph=True)[0]
    for t in (y, g, pushed):
        assert blocks.is_tall(t) == (layout == "by columns" or (layout == "by rows" and width < 16))


def test_any_layout():
    q, k, v = tensors(leading=(3, 4))
    for layout in (lambda t: t.transpose(0, 1), lambda t: t[::2], lambda t: t[0], lambda t: t[0, 0], lambda t: t[:0]):
        arguments = [layout(t) for t in (q, k, v)]
        torch.testing.assert_close(attention(*arguments), by_torch(*arguments))


@pytest.mark.parametrize(
    "shapes", [((2, 5, 3), (2, 0, 3)), ((2, 0, 3), (2, 4, 3)), ((0, 5, 3), (0, 4, 3)), ((2, 5, 0), (2, 4, 0))]
)
def test_without_elements(shapes):
    q, k = (torch.randn(shape, requires_grad=True) for shape in shapes)
    torch.testing.assert_close(attention(q, k, k), by_torch(q, k, k), equal_nan=True)


def test_autocast_and_mixed_dtypes_as_torch_has_them():
    q, k, v = (t.float() for t in tensors())
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(q, k, v).dtype == by_torch(q, k, v).dtype == torch.bfloat16
    with pytest.raises(RuntimeError):
        attention(q.double(), k, v)


def test_autocast_leaves_what_is_within_the_operator_alone():
    """Products of a Jacobian taken under autocast are those of the rounded q, k and v, in float32."""
    x = torch.randn(1, 2, 5, 9)
    rounded = x.bfloat16().double().requires_grad_()
    exact = third(of_one(by_torch), rounded, [], through_modes=False)[0]
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = of_one(attention)(x)
        c = torch.ones_like(y)
        (g,) = torch.autograd.grad(y, x, c, create_graph=True)
        found = third(of_one(attention), x, [])[0]
    (expected,) = torch.autograd.grad(of_one(by_torch)(rounded), rounded, c.double())
    assert (g - expected).abs().max() <= 2 * torch.finfo(torch.bfloat16).eps * expected.abs().max()
    assert (found - exact).abs().max() <= 8 * torch.finfo(torch.bfloat16).eps * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_errs_by_its_own_rounding(dtype):
    inputs = [t.detach().to(dtype).requires_grad_() for t in tensors(rows=32, columns=32)]
    exact = by_torch(*[t.double() for t in inputs])
    y = attention(*inputs)
    assert y.dtype == dtype
    assert (y - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
    assert torch.autograd.grad(y.sum(), inputs[0])[0].dtype == dtype


def test_scores_that_would_overflow():
    q, k, v = (t.float() for t in tensors())
    assert torch.isfinite(attention(1e15 * q, 1e15 * k, v)).all()


def test_what_is_refused():
    q, k, v = tensors()
    with pytest.raises(ValueError, match="query, key, value: got shapes"):
        attention(q, k, v[..., :3, :])
    with pytest.raises(ValueError, match="block_bytes: got 0"):
        attention(q, k, v, block_bytes=0)


def linear_graph(op, x, probes=None):
    """y, g = Jᵀu and q = J g, with their graphs; several u at once with ``probes``."""
    y = op(x)
    u = torch.ones_like(y if probes is None else y.expand(probes, *y.shape)).requires_grad_()

    def product(of, by, along):
        return torch.autograd.grad(of, by, along, create_graph=True)[0]

    with products_only():
        g = product(y, x, u) if probes is None else torch.func.vmap(lambda one: product(y, x, one))(u)
    with products_only(cotangents=True):
        return y, g, product(g, u, g)


def kept_matrices(op, *, length=64, width=4, probes=None):
    x = torch.randn(1, 2, length, 3 * width, requires_grad=True)
    return kept_bytes(lambda: linear_graph(of_one(op), x, probes)) / (2 * length**2 * 4)


def test_which_matrices_are_kept(monkeypatch):
    monkeypatch.undo()
    vectors = 3 * 8  # at most, of the size of q
    assert 1 < kept_matrices(attention, length=256, width=8) < 1 + vectors * 8 / 256  # P
    assert 3 < kept_matrices(attention, length=128, width=32) < 3 + 6  # S, its tangent and its cotangent
    for width in (8, 32):
        assert kept_matrices(attention, length=33 * width, width=width) < vectors / 33  # at most 32 times the size of q
    assert kept_matrices(by_torch) > 4


def test_matrices_are_not_kept_in_vain(monkeypatch):
    keep(monkeypatch, KEPT)
    assert kept_matrices(attention, length=48, width=24) > 6
    for name in ("Scores", "_Keeping"):
        monkeypatch.setattr(module, name, None)
    with frugal():
        assert kept_matrices(attention, length=48, width=24) < 5
    with torch.no_grad():
        of_one(attention)(torch.randn(1, 1, 5, 9, requires_grad=True))


def test_several_probes_share_the_scores(monkeypatch):
    """Each keeps a tangent and a cotangent of its own, and no scores; or nothing of its own beside P."""
    found = []
    for what in (KEPT, HALF, RECOMPUTED):
        keep(monkeypatch, what)
        found.append([kept_matrices(attention, length=96, width=48, probes=n) for n in (1, 4)])
    kept, half, recomputed = found
    assert 2.9 < kept[0] - recomputed[0] < 3.1
    assert kept[1] - recomputed[1] < 9.1
    assert 0.9 < half[0] - recomputed[0] < 1.1
    assert half[1] - recomputed[1] < 1.1


def test_a_recomputed_loss_keeps_no_matrix(monkeypatch):
    def f(x):
        return torch.nn.functional.scaled_dot_product_attention(*x.chunk(3, dim=-1))

    x = torch.randn(2, 5, 9, dtype=torch.float64, requires_grad=True)
    options = {"estimator": georeg.Hutchinson(2)}
    found = []
    for recompute in (False, True):
        if recompute:
            for name in ("Scores", "_Keeping"):
                monkeypatch.setattr(module, name, None)
        loss = georeg.IsometryLoss(**options, recompute=recompute)(f, x, generator=torch.Generator().manual_seed(0)).loss
        found.append((loss.detach(), *torch.autograd.grad(loss, x)))
    torch.testing.assert_close(*found)


def test_the_work_is_counted(kept):
    """In matrix products of an isometry step, by its passes."""
    x = torch.randn(2, 4, 16, 24, requires_grad=True)
    product = 2 * 8 * 16 * 16 * 8  # multiply and add
    pullback, pushforward, backward = {KEPT: (4, 4, 21), HALF: (4, 4, 27), RECOMPUTED: (5, 5, 30)}[kept]
    state = {}

    def taken(name, run):
        def keep():
            state[name] = run()

        return flops(keep) / product

    op = of_one(attention)
    assert taken("y", lambda: op(x)) == 2
    u = torch.ones_like(state["y"]).requires_grad_()
    with products_only():
        assert taken("g", lambda: torch.autograd.grad(state["y"], x, u, create_graph=True)[0]) == pullback
    with products_only(cotangents=True):
        pushed = taken("q", lambda: torch.autograd.grad(state["g"], u, state["g"], create_graph=True)[0])
    assert pushed == pushforward
    total = sum(t.square().sum() for t in state.values())
    assert taken("loss", lambda: total.backward()) == backward
