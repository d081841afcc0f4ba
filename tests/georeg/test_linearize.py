"""Both engines against the dense Jacobian and finite differences in float64, and every map that is awkward."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import georeg
from georeg.testing import dense_jacobian
from tests.conftest import gradients

ENGINES = ["reverse", "forward"]


class Block(nn.Module):
    """Convolution, GroupNorm, SiLU and attention: what a U-Net is made of."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.qkv, self.last, self.drop = nn.Linear(4, 12), nn.Conv2d(4, 1, 1), nn.Dropout(dropout)

    def forward(self, x):
        h = self.drop(F.silu(self.norm(self.first(x))))
        b, c, height, width = h.shape
        q, k, v = self.qkv(h.flatten(2).mT).reshape(b, -1, 3, 2, 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, -1, c).mT
        return self.last(F.silu(self.norm(h + mixed.reshape(b, c, height, width))))


class Transposed(nn.GroupNorm):
    """What follows attention: a norm of tokens that were turned back into an image without a copy."""

    def __init__(self):
        super().__init__(2, 4)

    def forward(self, x):
        return super().forward(x.mT.reshape(len(x), 4, 2, 3))


def mlp(n=4, m=3):
    return nn.Sequential(nn.Linear(n, 6), nn.Tanh(), nn.Linear(6, m)).double()


def block(**options):
    return Block(**options).double(), torch.randn(2, 2, 3, 3, dtype=torch.float64)


def scaled(x):
    """A map of scalars: events of shape ()."""
    return torch.sin(2 * x)


MAPS = {
    "mlp": lambda: (mlp(), torch.randn(3, 4, dtype=torch.float64)),
    "block": block,
    "scalar events": lambda: (scaled, torch.randn(5, dtype=torch.float64)),
    "identity": lambda: (lambda x: x, torch.randn(2, 3, dtype=torch.float64)),
    "view": lambda: (lambda x: x.view(-1, 2, 3), torch.randn(2, 6, dtype=torch.float64)),
    "slice": lambda: (lambda x: x[:, 1:], torch.randn(2, 6, dtype=torch.float64)),
    "batch norm in eval": lambda: (nn.Sequential(mlp(), nn.BatchNorm1d(3).double()).eval(), torch.randn(3, 4).double()),
    "instance norm": lambda: (nn.InstanceNorm1d(2), torch.randn(3, 2, 5, dtype=torch.float64)),
    "group norm in attention's layout": lambda: (Transposed().double(), torch.randn(2, 6, 4, dtype=torch.float64)),
    "layer norm": lambda: (nn.LayerNorm(4).double(), torch.randn(3, 4, dtype=torch.float64)),
}


def probes(x, y, k=3):
    return torch.randn(k, *x.shape, dtype=x.dtype), torch.randn(k, *y.shape, dtype=y.dtype)


def dense_products(f, x, v, w):
    J = dense_jacobian(f, x)
    jv = torch.einsum("bmn,kbn->kbm", J, v.reshape(*v.shape[:2], -1)).reshape(w.shape)
    return jv, torch.einsum("bmn,kbm->kbn", J, w.reshape(*w.shape[:2], -1)).reshape(v.shape)


@pytest.mark.parametrize("chunk_size", [1, 2, None])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_products_equal_the_dense_jacobian(name, engine, chunk_size, grad):
    """With and without a graph: torch takes other kernels, with other batching rules, in each case."""
    f, x = MAPS[name]()
    with sdpa_kernel(SDPBackend.MATH):
        v, w = probes(x, f(x))
        jv, jtw = dense_products(f, x, v, w)
    with torch.set_grad_enabled(grad):
        lin = georeg.linearize(f, x, engine=engine, chunk_size=chunk_size)
        torch.testing.assert_close(lin.jvp(v), jv, rtol=1e-10, atol=1e-12)  # without the graph of a vjp
        torch.testing.assert_close(lin.vjp(w), jtw, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(lin.vjp(w[:1]), jtw[:1], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(lin.jvp(v), jv, rtol=1e-10, atol=1e-12)  # with it
    torch.testing.assert_close(lin.value, f(x), rtol=1e-10, atol=1e-12)
    assert (lin.num_jvps, lin.num_vjps) == (6, 4)


@pytest.mark.parametrize("engine", ENGINES)
def test_pushforward_is_the_finite_difference_and_the_law_of_transposition_holds(engine):
    f, x = block()
    lin = georeg.linearize(f, x, engine=engine)
    v, w = probes(x, lin.value, k=2)
    step = 1e-6
    difference = torch.stack([(f(x + step * p) - f(x - step * p)) / (2 * step) for p in v])
    torch.testing.assert_close(lin.jvp(v), difference, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close((w * lin.jvp(v)).sum(), (lin.vjp(w) * v).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("chunk_size", [1, 2, None])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["mlp", "block"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_in_the_parameters_and_in_a_leaf_before_x(name, engine, chunk_size):
    f, x = MAPS[name]()
    leaf = x.clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        v, w = probes(x, f(x))
        point = leaf.tanh()
        wanted = sum(p.square().sum() for p in dense_products(f, point, v, w)) + f(point).square().sum()
        expected = gradients(wanted, [*f.parameters(), leaf])
    point = leaf.tanh()  # a non-leaf x keeps its graph
    lin = georeg.linearize(f, point, engine=engine, chunk_size=chunk_size)
    loss = lin.jvp(v).square().sum() + lin.vjp(w).square().sum() + lin.value.square().sum()
    torch.testing.assert_close(gradients(loss, [*f.parameters(), leaf]), expected, rtol=1e-9, atol=1e-10)


def test_gradients_do_not_confuse_a_probe_that_carries_a_graph():
    """A cotangent that depends on the parameters, as u = L(f(x))w does, is differentiated through."""
    f, x = mlp(), torch.randn(2, 4, dtype=torch.float64)
    lin = georeg.linearize(f, x)
    loss = lin.jvp(lin.vjp(lin.value.unsqueeze(0))).square().sum()
    J = dense_jacobian(f, x)
    expected = (J @ J.mT @ f(x).unsqueeze(-1)).square().sum()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(loss, f.parameters()), gradients(expected, f.parameters()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_detach_x_cuts_the_graph_that_x_carries(engine):
    f = mlp()
    leaf = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    lin = georeg.linearize(f, leaf.tanh(), engine=engine, detach_x=True)
    loss = lin.jvp(torch.ones(1, 2, 4)).square().sum() + lin.value.sum()
    assert not gradients(loss, [leaf]).any()
    assert gradients(loss, f.parameters()).any()


def test_linearize_graph_equals_linearize_and_shares_the_forward_pass():
    f, x = MAPS["mlp"]()
    x.requires_grad_()
    y = f(x)
    lin, own = georeg.linearize_graph(x, y), georeg.linearize(f, x)
    v, w = probes(x, y)
    torch.testing.assert_close(lin.jvp(v), own.jvp(v))
    torch.testing.assert_close(lin.vjp(w), own.vjp(w))
    together = y.sum() + lin.jvp(v).square().sum()
    assert gradients(together, f.parameters()).isfinite().all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "f", [lambda x: torch.ones(2, 5).double(), lambda x: 0 * x, torch.zeros_like], ids=["constant", "times zero", "zeros"]
)
@pytest.mark.parametrize("k", [1, 3])
def test_maps_with_zero_jacobian_give_zeros(f, engine, k):
    x = torch.randn(2, 3, dtype=torch.float64)
    lin = georeg.linearize(f, x, engine=engine)
    v, w = probes(x, lin.value, k)
    assert torch.equal(lin.jvp(v), torch.zeros_like(w))
    assert torch.equal(lin.vjp(w), torch.zeros_like(v))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_map_that_ignores_x_but_has_parameters_gives_zeros(engine):
    bias = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    lin = georeg.linearize(lambda x: 2 * bias, torch.randn(2, 3, dtype=torch.float64), engine=engine)
    assert torch.equal(lin.jvp(torch.ones(2, 2, 3)), torch.zeros(2, 2, 5).double())
    assert torch.equal(lin.vjp(torch.ones(2, 2, 5)), torch.zeros(2, 2, 3).double())


@pytest.mark.parametrize("engine", ENGINES)
def test_no_probes_and_no_samples(engine):
    f = mlp()
    lin = georeg.linearize(f, torch.randn(2, 4, dtype=torch.float64), engine=engine)
    assert lin.jvp(torch.ones(0, 2, 4)).shape == (0, 2, 3)
    empty = georeg.linearize(f, torch.randn(0, 4, dtype=torch.float64), engine=engine)
    for k in (1, 2):
        assert empty.jvp(torch.ones(k, 0, 4)).shape == (k, 0, 3)
        assert empty.vjp(torch.ones(k, 0, 3)).shape == (k, 0, 4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("f", "error", "text"),
    [
        (lambda x: x.argmax(1), TypeError, "returned dtype torch.int64"),
        (lambda x: (x, x), TypeError, r"returned tuple, expected one tensor.*f\(x\)\[0\]"),
        (lambda x: x.sum(), ValueError, r"returned shape \(\) for 2 points"),
        (lambda x: x.mT, ValueError, r"returned shape \(3, 2\) for 2 points"),
    ],
)
def test_outputs_that_have_no_jacobian_are_refused(f, error, text, engine):
    with pytest.raises(error, match=text):
        georeg.linearize(f, torch.randn(2, 3), engine=engine)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((None, torch.ones(2, 3)), TypeError, "f: got NoneType"),
        ((scaled, [1.0]), TypeError, "x: got list"),
        ((scaled, torch.ones(2, dtype=torch.long)), TypeError, r"x: got dtype torch.int64.*x.float\(\)"),
        ((scaled, torch.tensor(1.0)), ValueError, "x: got a scalar"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        georeg.linearize(*arguments)


def test_bad_options_are_refused():
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="engine: got 'backward'"):
        georeg.linearize(scaled, x, engine="backward")
    with pytest.raises(ValueError, match="chunk_size: got 0"):
        georeg.linearize(scaled, x, chunk_size=0)
    with pytest.raises(ValueError, match="x: does not require grad"):
        georeg.linearize_graph(x, scaled(x))
    with pytest.raises(ValueError, match=r"v: got shape \(2, 3\), expected \(k, 2, 3\): probes come first"):
        georeg.linearize(scaled, x).jvp(x)
    with pytest.raises(ValueError, match=r"w: got shape \(1, 2, 4\), expected \(k, 2, 3\)"):
        georeg.linearize(scaled, x).vjp(torch.ones(1, 2, 4))


def test_fused_attention_is_avoided_by_linearize_and_explained_by_linearize_graph():
    f, x = block()
    x.requires_grad_()
    with pytest.raises(RuntimeError, match=r"fused kernel in the map has no second derivative.*SDPBackend.MATH"):
        georeg.linearize_graph(x, f(x)).jvp(torch.ones(1, *x.shape))
    with sdpa_kernel(SDPBackend.MATH):
        y = f(x)
    v = torch.ones(1, *x.shape, dtype=x.dtype)
    torch.testing.assert_close(georeg.linearize_graph(x, y).jvp(v), georeg.linearize(f, x).jvp(v))


@pytest.mark.parametrize("chunk_size", [1, 2, None])
@pytest.mark.parametrize("engine", ENGINES)
def test_dropout_keeps_one_mask_for_the_value_and_all_products(engine, chunk_size):
    """Dropout makes the map linear with a random mask: each product must be with the mask of the value."""
    f = nn.Dropout(0.5).train()
    x = torch.ones(2, 40, dtype=torch.float64)
    lin = georeg.linearize(f, x, engine=engine, chunk_size=chunk_size)
    mask = lin.value.detach()
    assert 0 < (mask == 0).double().mean() < 1
    ones = torch.ones(3, 2, 40, dtype=torch.float64)
    for product in (lin.jvp(ones), lin.vjp(ones), lin.jvp(ones[:1]), lin.vjp(ones[:1])):
        assert torch.equal(product, mask.expand_as(product))


@pytest.mark.parametrize("engine", ENGINES)
def test_random_state_moves_on_exactly_as_by_one_forward_pass(engine):
    f, x = nn.Dropout(0.5), torch.ones(2, 4)
    torch.manual_seed(3)
    f(x)
    after = torch.rand(1)
    torch.manual_seed(3)
    georeg.linearize(f, x, engine=engine).jvp(torch.ones(2, 2, 4))
    assert torch.equal(torch.rand(1), after)


def test_batch_norm_in_training_mode_is_refused():
    f, x = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), torch.randn(5, 4)
    with pytest.raises(ValueError, match=r"batch norm in training mode mixes the samples.*\.eval\(\)"):
        georeg.linearize(lambda p: f(p) * 2, x)
    with pytest.raises(ValueError, match=r"batch norm in training mode.*\.eval\(\)"):
        georeg.linearize(f, x, engine="forward").jvp(torch.ones(1, 5, 4))
    x.requires_grad_()
    with pytest.raises(ValueError, match="batch norm in training mode mixes the samples"):
        georeg.linearize_graph(x, f(x))
    z = f(x)  # a batch norm before the points is none of the map's business
    georeg.linearize(torch.sin, z)
    other = f(torch.randn(5, 4))
    georeg.linearize(lambda p: p[:, :3] + other, x)  # nor is one beside it


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("born_inside", [True, False])
def test_products_without_graph_in_no_grad_and_inference_mode(engine, mode, born_inside):
    f, x = MAPS["mlp"]()
    v, w = probes(x, f(x))
    jv, jtw = dense_products(f, x, v, w)
    with mode():
        if born_inside:
            x, v, w = x.clone(), v.clone(), w.clone()
        lin = georeg.linearize(f, x, engine=engine)
        products = [lin.jvp(v), lin.vjp(w), lin.vjp(w[:1]), lin.jvp(v[:1])]
    for product, expected in zip(products, (jv, jtw, jtw[:1], jv[:1]), strict=True):
        assert not product.requires_grad
        torch.testing.assert_close(product, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_points_born_in_inference_mode_can_be_differentiated_outside(engine):
    f = mlp()
    with torch.inference_mode():
        x, v = torch.randn(2, 4, dtype=torch.float64), torch.randn(1, 2, 4, dtype=torch.float64)
    loss = georeg.linearize(f, x, engine=engine).jvp(v).square().sum()
    assert gradients(loss, f.parameters()).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("engine", ENGINES)
def test_half_precision(dtype, engine):
    f, x = MAPS["block"]()
    with torch.no_grad():
        v, w = probes(x, f(x))
        full = georeg.linearize(f, x, engine=engine)
        half = georeg.linearize(copy.deepcopy(f).to(dtype), x.to(dtype), engine=engine)
        tolerance = 40 * torch.finfo(dtype).eps
        for name, probe in (("jvp", v), ("vjp", w)):
            exact, rounded = getattr(full, name)(probe), getattr(half, name)(probe)
            assert rounded.dtype == dtype
            assert (rounded - exact).norm() < tolerance * exact.norm()


def test_checkpointing_inside_the_map():
    """f runs again inside each product, and inside backward: there the caller chooses the attention."""
    f, x = block(dropout=0.5)
    v, w = probes(x, f(x), k=2)
    results = []
    for map_ in (f, lambda p: checkpoint(f, p, use_reentrant=False)):
        torch.manual_seed(1)
        lin = georeg.linearize(map_, x, chunk_size=1)
        products = lin.vjp(w), lin.jvp(v)
        with sdpa_kernel(SDPBackend.MATH):
            grads = gradients(sum(p.square().sum() for p in products), f.parameters())
        results.append((*products, grads))
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match=r"f: uses torch.utils.checkpoint.*engine='reverse'"):
        georeg.linearize(lambda p: checkpoint(f, p, use_reentrant=False), x, engine="forward").vjp(w)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_retained_once_a_linearisation_is_deleted(engine):
    """The activations of the map die with it, with no_grad and with grad, without the garbage collector."""
    alive = []

    def f(x):
        h = torch.tanh(x)
        alive.append(weakref.ref(h))
        return h.sin()

    gc.disable()
    try:
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                lin = georeg.linearize(f, torch.randn(2, 3), engine=engine)
                product = lin.vjp(torch.ones(2, 2, 3)).detach() + lin.jvp(torch.ones(1, 2, 3)).detach()
            del lin
            assert product.shape == (2, 2, 3)
            assert all(reference() is None for reference in alive)
    finally:
        gc.enable()


def test_the_graph_of_a_vjp_is_reused_by_every_jvp():
    """VJP first: no dummy cotangent, no second pass through the map."""
    calls = 0

    class Counted(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, g):
            nonlocal calls
            calls += 1
            return g

    lin = georeg.linearize(lambda x: Counted.apply(x) ** 2, torch.randn(2, 3))
    lin.vjp(torch.ones(1, 2, 3))
    first = calls
    lin.jvp(torch.ones(1, 2, 3))
    lin.jvp(torch.ones(1, 2, 3))
    assert first == 1
    assert calls <= 3  # the double backward passes the node again; no third graph is built


class OnceDifferentiable(torch.autograd.Function):
    """sin, with a forward derivative, whose backward has none."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx, v):
        return v * ctx.saved_tensors[0].cos()


def test_auto_takes_the_engine_that_the_operators_support_and_says_why():
    x = torch.randn(2, 3, dtype=torch.float64)
    v = torch.randn(2, 2, 3, dtype=torch.float64)
    lin = georeg.linearize(OnceDifferentiable.apply, x)
    torch.testing.assert_close(lin.jvp(v), x.cos() * v)
    torch.testing.assert_close(lin.vjp(v), x.cos() * v)
    assert "Forward" in repr(lin)
    assert "OnceDifferentiable can be differentiated backward only once" in repr(lin)
    assert "Reverse" in repr(georeg.linearize(torch.sin, x))
    assert "can be differentiated twice" in repr(georeg.linearize(torch.sin, x))
    assert "as asked" in repr(georeg.linearize(torch.sin, x, engine="forward"))
    with pytest.raises(RuntimeError, match="once_differentiable"):
        georeg.linearize(OnceDifferentiable.apply, x, engine="reverse").jvp(v)
    said = []
    torch.func.vmap(lambda p: said.append(repr(georeg.linearize(torch.sin, p[None]))) or p)(x)
    assert "inside a torch.func transform" in said[0]
