"""`fused()`: a model's own operators replaced for as long as it lasts, with the same results."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import georeg
from georeg.kernels import attention, first_order, fused, linear
from georeg.linearize import linearize_graph
from georeg.linearize.forward import _ContiguousGroupNorm

from .cases import copied, products


class Block(nn.Module):
    """Every operator that is replaced, and some that are not."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Linear(4, 4)
        self.out, self.plain_norm = nn.Conv2d(4, 3, 3, stride=2), nn.GroupNorm(2, 4)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x):
        h = self.linear(F.silu(self.norm(self.conv(x))).flatten(2).mT)
        q = h.unflatten(-1, (2, 2)).transpose(1, 2)
        h = F.scaled_dot_product_attention(q, q.flip(-1), q * 2).transpose(1, 2).flatten(2)
        return self.out(torch.tanh(self.plain_norm(h.mT.unflatten(-1, x.shape[2:]))))


def points(batch=2, dtype=torch.float64):
    torch.manual_seed(0)
    return torch.randn(batch, 2, 5, 5, dtype=dtype)


@pytest.fixture
def block():
    return Block().double()


def names(y):
    """Of the nodes of y's graph."""
    found, waiting = set(), [y.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return {node.name() for node in found}


def moments(f, x, side, run, chunk_size=1):
    """τ₁, τ₂ and the gradient of a function of them, from a graph that was made inside or outside of fused()."""
    x = x.clone().requires_grad_()
    with run, sdpa_kernel(SDPBackend.MATH):
        y = f(x)
    estimator = georeg.Hutchinson(num_probes=2, side=side)
    out = georeg.IsometryLoss(estimator=estimator).of(
        linearize_graph(x, y, chunk_size=chunk_size), generator=torch.Generator().manual_seed(0)
    )
    parameters = [*f.parameters(), x]
    found = torch.autograd.grad(out.loss + y.square().mean(), parameters, allow_unused=True)
    return out.moments.trace, out.moments.trace_sq, *found


@pytest.mark.parametrize("chunk_size", [1, None])
@pytest.mark.parametrize("side", ["domain", "codomain"])
def test_the_loss_and_its_gradients_are_torchs(block, side, chunk_size):
    x = points()
    expected = moments(block, x, side, sdpa_kernel(SDPBackend.MATH))
    torch.testing.assert_close(moments(block, x, side, fused(), chunk_size), expected, rtol=1e-9, atol=1e-11)


def test_it_replaces_operators_while_it_lasts_and_leaves_nothing_behind(block):
    x = points().requires_grad_()
    before = names(block(x))
    with fused():
        inside = names(block(x))
    assert "ConvolutionBackward0" not in inside
    assert names(block(x)) == before
    assert "ConvolutionBackward0" in before
    with pytest.raises(ZeroDivisionError), fused():
        raise ZeroDivisionError
    assert names(block(x)) == before


def test_it_may_be_entered_twice(block):
    x = points().requires_grad_()
    expected = block(x)
    with fused(), fused():
        torch.testing.assert_close(block(x), expected)
    assert "ConvolutionBackward0" in names(block(x))


@pytest.mark.parametrize(
    ("shape", "is_ours"), [((2, 3, 128, 8), True), ((2, 3, 128, 9), False), ((2, 3, 127, 8), False), ((1, 1, 513, 8), False)]
)
def test_narrow_attention_is_ours_where_torchs_is_slow(shape, is_ours):
    query, key, value = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3))
    attend = F.scaled_dot_product_attention
    expected = attend(query, key, value, is_causal=True, scale=0.3)
    with first_order():
        y = attend(query, key, value=value, is_causal=True, scale=0.3)
        convolved = F.conv2d(query, query[:1, :, :3, :3])
    assert ("_ValueBackward" in names(y)) == is_ours
    assert "ConvolutionBackward0" in names(convolved)
    c = torch.randn_like(y)
    found, torchs = (torch.autograd.grad(out, (query, key, value), c) for out in (y, expected))
    torch.testing.assert_close((y, *found), (expected, *torchs), rtol=1e-12, atol=1e-12)


def test_narrow_attention_keeps_nothing_that_it_can_compute_again():
    query = torch.randn(1, 2, 128, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()), lambda _: None), first_order():
        F.scaled_dot_product_attention(query, query, query)
    assert max(kept) <= query.numel()


def test_first_order_around_fused_and_without_gradients(block):
    query = torch.randn(1, 2, 128, 8)
    with first_order():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            F.scaled_dot_product_attention(query, query, query)
        assert counter.get_total_flops() == 0, "torch's fused kernel, which it does not count, and no products of ours"
        with fused():
            assert "_ConvolutionBackward" in names(block(points()))
        assert "ConvolutionBackward0" in names(block(points()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_torchs_dtypes_and_gradients(block, dtype):
    block.float()
    x = points(dtype=torch.float32).requires_grad_()

    def run(enabled=True):
        with torch.autocast("cpu", dtype, enabled=enabled):
            y = block(x)
        return y, *torch.autograd.grad(y.float().square().sum(), [x, *block.parameters()])

    exact, torchs = run(enabled=False), run()
    with fused():
        found = run()
    assert [t.dtype for t in found] == [t.dtype for t in torchs]
    assert found[0].dtype == dtype
    ours, theirs = (sum((a - b).square().sum() for a, b in zip(each, exact, strict=True)) for each in (found, torchs))
    assert ours <= 4 * theirs


def test_a_leaf_under_autocast_is_still_skipped_by_products():
    layer, x = nn.Conv2d(2, 2, 3), points(dtype=torch.float32)

    def work(dtype):
        with FlopCounterMode(display=False) as counter, torch.autocast("cpu", dtype, enabled=dtype is not None):
            georeg.linearize(layer, x).vjp(torch.ones(1, 2, 2, 3, 3))
        return counter.get_total_flops()

    assert work(torch.bfloat16) == work(None)


def test_torch_func_inside_and_outside(block):
    x = points()
    v = torch.randn(3, *x.shape, dtype=x.dtype)

    def loss(weight, p):
        y = torch.func.functional_call(block, {"conv.weight": weight}, (p,))
        return y.square().sum()

    def run():
        with sdpa_kernel(SDPBackend.MATH):
            push = torch.func.vmap(lambda d: torch.func.jvp(block, (x,), (d,))[1])(v)
            mixed = torch.func.grad(lambda w: torch.func.jvp(lambda p: loss(w, p), (x,), (v[0],))[1])(block.conv.weight)
            return push, mixed, torch.func.vmap(torch.func.grad(loss, argnums=1), in_dims=(None, 0))(block.conv.weight, v)

    with _ContiguousGroupNorm():  # without which torch's own forward mode fails
        expected = run()
    with fused():
        found = run()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("older", [False, True])
def test_a_checkpointed_region_is_left_to_torch(block, older, monkeypatch):
    """It runs again in a backward pass that does not see the mode, and must save the same tensors."""
    if older:  # torch 2.6 does not show its hooks on saved tensors
        monkeypatch.delattr(torch._C._autograd, "_top_saved_tensors_default_hooks", raising=False)
    x = points().requires_grad_()
    expected = torch.autograd.grad(block(x).square().sum(), list(block.parameters()))
    with fused():
        y = checkpoint(block, x, use_reentrant=False)
    found = torch.autograd.grad(y.square().sum(), list(block.parameters()))
    torch.testing.assert_close(found, expected)


def test_what_runs_without_gradients_is_torchs_own(block):
    x = points()
    with torch.no_grad():
        expected = block(x)
        with fused():
            assert torch.equal(block(x), expected)


@pytest.mark.parametrize("dtype", [torch.complex64])
def test_what_the_rules_do_not_cover_is_left_to_torch(dtype):
    x, weight = torch.randn(1, 2, 4, 4, dtype=dtype, requires_grad=True), torch.randn(2, 2, 3, 3, dtype=dtype)
    with fused():
        assert "_ConvolutionBackward" not in names(F.conv2d(x, weight))


def test_keywords_and_errors_are_torchs():
    x, weight = points().requires_grad_(), torch.randn(3, 2, 3, 3, dtype=torch.float64)
    with fused():
        torch.testing.assert_close(F.conv2d(input=x, weight=weight, padding="same"), F.conv2d(x, weight, padding=1))
        with pytest.raises(RuntimeError, match="channels"):
            F.conv2d(x, weight[:, :1])
        with pytest.raises(RuntimeError, match="type|dtype"):
            F.conv2d(x, weight.float())
        with pytest.raises(RuntimeError, match="divisible by num_groups"):
            F.group_norm(x, 3)
        with pytest.raises(ValueError, match="more than 1 value"):
            F.group_norm(x[:1, :, 0, 0], 2)


def test_a_compiled_map(block):
    x = points().requires_grad_()
    compiled = torch.compile(block, backend="eager")
    with sdpa_kernel(SDPBackend.MATH), fused():
        torch.testing.assert_close(compiled(x), block(x))
    torch._dynamo.reset()


def test_inside_a_product_a_point_that_serves_as_a_weight_keeps_its_gradient():
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    image = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    lin = georeg.linearize(lambda w: F.conv2d(image, w).transpose(0, 1), x)
    w = torch.randn(1, 2, 1, 3, 3, dtype=torch.float64)
    (expected,) = torch.autograd.grad(F.conv2d(image, p := x.clone().requires_grad_()).transpose(0, 1), p, w[0])
    torch.testing.assert_close(lin.vjp(w)[0], expected)


def test_a_silu_behind_a_changed_norm_is_torchs():
    """Only the very output of the last group norm is taken for one, and only as that norm left it."""
    norm, x = nn.GroupNorm(2, 4).double(), torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    expected = F.silu(norm(x) * 2), F.silu(norm(x) + 1), F.silu(norm(x))
    with fused():
        changed = norm(x)
        changed.mul_(2)
        found = F.silu(changed), F.silu(norm(x) + 1), F.silu(norm(x), inplace=True)
    torch.testing.assert_close(found, expected)


class OverPixels(nn.Module):
    """Attention over the pixels of an image, as a U-Net has it."""

    def __init__(self, channels, heads):
        super().__init__()
        self.heads, self.norm = heads, nn.GroupNorm(2, channels)
        self.projections = nn.ModuleList(nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x):
        pixels = self.norm(x).flatten(2).mT
        q, k, v = (p(pixels).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in self.projections[:3])
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.projections[3](y).mT.unflatten(2, x.shape[2:])


@pytest.mark.parametrize(
    ("kept", "copies"), [((2, 32), 6), ((10**6, 32), 2), ((10**6, 0), 2)], ids=["kept", "P kept", "recomputed"]
)
def test_attention_copies_no_pixels_to_lay_them_out(kept, copies, monkeypatch):
    """Only u here and y, which the rule keeps for itself; products of S side by side are taken apart. What all that
    computes is torch's."""
    monkeypatch.setattr(linear, "LEAST_WORK", 0)
    for name, value in zip(("WIDTH", "LENGTH"), kept, strict=True):
        monkeypatch.setattr(attention, name, value)
    torch.manual_seed(0)
    block = OverPixels(8, 2).double()
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    u, c = torch.randn(2, *x.shape, dtype=x.dtype)
    parameters, found = list(block.parameters()), []

    def step():
        found.append(torch.autograd.grad(products(block, x, u.clone().requires_grad_()), [x, *parameters], (c, c, c)))

    with sdpa_kernel(SDPBackend.MATH):
        step()
    with fused():
        assert copied(step) == copies * x.numel()
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layout", ["by channels", "by rows"])
def test_first_order_leaves_pixels_as_they_lie(layout, monkeypatch):
    monkeypatch.setattr(linear, "LEAST_WORK", 0)
    layer, x = nn.Linear(3, 5), torch.randn(2, 3, 4).mT.requires_grad_()
    is_ours = layout == "by channels"
    if not is_ours:
        x = x.detach().contiguous().requires_grad_()
    expected = torch.autograd.grad(layer(x).square().sum(), (x, layer.weight))
    with first_order():
        y = layer(x)
    assert ("_ValueBackward" in names(y)) == y.mT.is_contiguous() == is_ours
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), (x, layer.weight)), expected)


def test_a_layer_behind_a_change_in_place_reads_the_changed_values():
    layer, columns = nn.Linear(3, 5), torch.randn(2, 3, 4).mT
    with fused():
        before = layer(columns)
        columns.mul_(2)
        after = layer(columns)
    torch.testing.assert_close(after - layer.bias, 2 * (before - layer.bias))


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("layout", ["sparse", "inference", "nested"])
def test_layers_take_what_torchs_take(layout):
    layer = nn.Linear(3, 5)
    with torch.inference_mode(layout == "inference"):
        x = torch.randn(2, 3, 4).mT
    if layout == "sparse":
        x = torch.randn(4, 3).to_sparse_csr()
    if layout == "nested":
        x = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)])

    def run():
        try:
            y = layer(x.detach())
        except RuntimeError as error:
            return type(error), str(error)
        return [part.detach() for part in y.unbind()]

    expected = run()
    with fused():
        torch.testing.assert_close(run(), expected)


def test_the_dummy_pullback_of_the_domain_side_costs_nothing():
    """J v without a Jᵀu before it: one pass at u = 0, of which only the graph is wanted."""
    layer, x = nn.Conv2d(2, 2, 3), points(dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        lin = georeg.linearize(layer, x)
    one = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        lin.jvp(torch.ones(1, *x.shape))
    assert counter.get_total_flops() == one


class Seen(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_operators_are_opaque_to_other_modes():
    """Each mode around would be asked about all that a rule looks at: 2,000 times in a step of a small U-Net."""
    norm, layer = nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1)
    x = torch.randn(2, 4, 3, 3)
    with Seen() as seen, fused():
        y = F.silu(norm(layer(x))).square()
    assert seen.names == ["square"]
    assert type(y.grad_fn.next_functions[0][0]).__name__ == "_ValueBackward"
