"""Each rule in Triton against the same rule in plain PyTorch in float64, over several tiles; what torch is told of them."""

import importlib
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import georeg
from georeg.kernels.attention import Attention, attention
from georeg.kernels.blocks import mask_future_
from georeg.kernels.group_norm import GroupNorm
from georeg.kernels.mode import products_only
from georeg.kernels.triton import is_used, why_not

# N, L, S, D, M: a tile that is not filled, several of them with a rest, more rows than keys.
ATTENTIONS = {"one tile": (2, 5, 4, 3, 2), "several": (1, 70, 75, 8, 20), "tall": (1, 67, 40, 20, 8)}
if torch.cuda.is_available():
    ATTENTIONS |= {"wide": (3, 130, 100, 64, 40), "narrow": (4, 300, 200, 8, 8), "32": (2, 100, 260, 32, 32)}
NORMS = {"one block": (2, 6, 5, 3), "several": (1, 4, 50, 50), "no space": (2, 4)}
if torch.cuda.is_available():
    NORMS |= {"many channels": (3, 48, 9, 7), "a picture": (2, 8, 256, 256)}
EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture
def close(dtype):
    def compare(found, expected):
        if expected is None:
            assert found is None
            return
        assert found.shape == expected.shape
        assert (found.double().cpu() - expected).norm() <= EXACT[dtype] * expected.norm().clamp(min=1)

    return compare


def all_rules(operator, c, tangents, primals, wanted):
    """Every result of every rule, flat."""
    y, stats = operator.forward(*primals)
    yield y
    yield from operator.pullback(c, primals, stats, wanted)
    yield operator.pushforward(tangents, primals, stats)
    for push, pull in ((True, True), (False, True), (True, False), (False, False)):
        pushed, pulled, bent = operator.second(c, tangents, primals, stats, wanted, push=push, pull=pull)
        yield from (pushed, *pulled, *bent)


def run(plain, fast, primals, tangents, wanted, close, device, dtype):
    y, _ = plain.forward(*primals)
    c = torch.randn_like(y)
    expected = all_rules(plain, c, tangents, primals, wanted)

    def given(values):
        return [None if t is None else t.to(device, dtype) for t in values]

    found = all_rules(fast, c.to(device, dtype), given(tangents), given(primals), wanted)
    for a, b in zip(found, expected, strict=True):
        close(a, b)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", ATTENTIONS.values(), ids=ATTENTIONS)
def test_attention(shape, causal, close, device, dtype):
    from georeg.kernels.triton.attention import TritonAttention

    torch.manual_seed(0)
    n, rows, keys, d, m = shape
    shapes = ((n, rows, d), (n, keys, d), (n, keys, m))
    q, k, v, *tangents = (torch.randn(s, dtype=torch.float64) for s in (*shapes, *shapes))
    plain, fast = (kind(0.3, causal, 2**20) for kind in (Attention, TritonAttention))
    run(plain, fast, (q, k, v), tangents, [True] * 3, close, device, dtype)
    log_sums, _ = fast.forward(*(t.to(device, dtype) for t in (q, k, v)))[1]
    scores = mask_future_(0.3 * q @ k.mT, 0) if causal else 0.3 * q @ k.mT
    close(log_sums, scores.logsumexp(-1, keepdim=True))


def test_value_and_tangent_of_attention_in_one_pass(close, device, dtype):
    from georeg.kernels.triton.attention import _value_and_tangent

    torch.manual_seed(0)
    q, k, v, *tangents = (torch.randn(1, 70, 8, dtype=torch.float64) for _ in range(6))
    plain = Attention(0.3, False, 2**20)
    y, stats = plain.forward(q, k, v)
    tensors = (t.to(device, dtype) for t in (q, k, v, *tangents))
    found = _value_and_tangent(*tensors, None, None, 0.3, False, "tf32x3")
    log_sums = (0.3 * q @ k.mT).logsumexp(-1, keepdim=True)
    for a, b in zip(found, (y, log_sums, plain.pushforward(tangents, (q, k, v), stats)), strict=True):
        close(a, b)


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "bare"])
@pytest.mark.parametrize("has_silu", [True, False], ids=["SiLU", "norm"])
@pytest.mark.parametrize("shape", NORMS.values(), ids=NORMS)
def test_group_norm(shape, has_silu, affine, close, device, dtype):
    from georeg.kernels.triton.group_norm import TritonGroupNorm

    torch.manual_seed(0)
    x, v = 3 * torch.randn(shape, dtype=torch.float64) + 1, torch.randn(shape, dtype=torch.float64)
    w, b = torch.randn(2, shape[1], dtype=torch.float64) if affine else (None, None)
    plain, fast = (kind(2, 1e-5, has_silu) for kind in (GroupNorm, TritonGroupNorm))
    run(plain, fast, (x, w, b), (v,), [True, affine, affine], close, device, dtype)
    kept = fast.forward(*(None if t is None else t.to(device, dtype) for t in (x, w, b)))[1]
    for found, expected in zip(kept, plain.forward(x, w, b)[1], strict=True):
        close(found.view_as(expected), expected)


def test_group_norm_of_values_far_from_zero(close, device, dtype):
    """Sums of squares of the values themselves would leave no digit of the variance."""
    from georeg.kernels.triton.group_norm import TritonGroupNorm

    x = torch.randn(1, 4, 40, dtype=dtype) + 1e4
    y, _ = TritonGroupNorm(2, 1e-5, False).forward(x.to(device), None, None)
    expected, _ = GroupNorm(2, 1e-5, False).forward(x.double(), None, None)
    # What the rounding of x leaves: an ulp at 1e4, twice, in units of the deviation.
    assert (y.double().cpu() - expected).abs().max() <= 2e4 * torch.finfo(dtype).eps


class Block(nn.Module):
    """What an encoder is made of: a convolution, a norm with SiLU, attention with its projections."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.qkv = nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Linear(4, 12)

    def forward(self, x):
        h = nn.functional.silu(self.norm(self.conv(x))).flatten(2).mT
        heads = self.qkv(h).unflatten(-1, (2, 6)).transpose(1, 2).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(*heads).sum(1).flatten(1)


def test_the_loss_of_a_network_and_its_gradient(device, dtype, monkeypatch):
    torch.manual_seed(0)
    network, x = Block().to(device, dtype), torch.randn(2, 2, 3, 3, dtype=dtype, device=device)

    def gradients():
        loss = georeg.IsometryLoss(domain=georeg.Sphere())(network, x, generator=torch.Generator(device).manual_seed(1)).loss
        return loss, *torch.autograd.grad(loss, list(network.parameters()))

    assert is_used(x)
    found = gradients()
    monkeypatch.setenv("GEOREG_TRITON", "0")
    assert not is_used(x)
    tolerance = {torch.float64: (1e-10, 1e-12), torch.float32: (2e-3, 1e-5)}[dtype]
    torch.testing.assert_close(found, gradients(), rtol=tolerance[0], atol=tolerance[1])


def test_work_cannot_hide(device, dtype):
    """Products of an L × S matrix with something of width D cost 2·N·L·S·D, however they are computed."""
    n, rows, keys, d = 2, 5, 4, 3
    q = torch.randn(n, rows, d, device=device, dtype=dtype, requires_grad=True)
    k = torch.randn(n, keys, d, device=device, dtype=dtype, requires_grad=True)
    one = 2 * n * rows * keys * d

    def counted(run):
        with FlopCounterMode(display=False) as counter:
            result = run()
        return result, counter.get_total_flops() / one

    y, work = counted(lambda: attention(q, k, k))
    assert work == 2  # S, P v
    u = torch.randn_like(y, requires_grad=True)
    with products_only():
        (g,), work = counted(lambda: torch.autograd.grad(y, q, u, create_graph=True))
    assert work == 7  # S and E, by rows and by keys; V for q, k and v
    with products_only(cotangents=True):
        (pushed,), work = counted(lambda: torch.autograd.grad(g, u, g, create_graph=True))
    assert work == 5  # S, Ṡ of two, Ṗ v, P v̇
    _, work = counted(lambda: torch.autograd.grad(pushed.sum(), [q, k]))
    # The derivative of T: S, Ṡ of two, E and F thrice; ∂q and ∂k of two, ∂v; V toward g. That of g: the same, but
    # T toward u in the place of V.
    assert work == (15 + 5 + 3) + (15 + 5 + 2)


def test_work_cannot_hide_in_the_first_use(device, dtype):
    """The module with the formulas is imported by the first call, here within the counter."""
    code = (
        "import torch; from torch.utils.flop_counter import FlopCounterMode\n"
        "from georeg.kernels.attention import attention\n"
        f"q = torch.randn(2, 5, 3, device='{device}', dtype={dtype}, requires_grad=True)\n"
        "with FlopCounterMode(display=False) as counter: attention(q, q, q)\n"
        "print(counter.get_total_flops())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 2 * (2 * 2 * 5 * 5 * 3)


def test_torch_knows_what_the_operators_return(device, dtype):
    for name in ("attention", "group_norm"):
        importlib.import_module(f"georeg.kernels.triton.{name}")
    q, k, v, c, log_sums = (torch.randn(1, 4, n, device=device, dtype=dtype) for n in (3, 3, 2, 2, 1))
    x, w, stats = (torch.randn(s, device=device, dtype=dtype) for s in ((2, 4, 3), (4,), (2, 2)))
    ops, kinds = torch.ops.georeg, ("test_schema", "test_faketensor")
    nothing = (None,) * 5
    for name, arguments in (
        ("attention_forward", (q, k, v, *nothing, 0.5, False, "tf32x3")),
        ("attention_forward", (q, k, v, q, k, v, c, log_sums, 0.5, False, "tf32x3")),
        ("attention_backward", (q, k, v, c, q, k, v, c, log_sums, log_sums, 0.5, False, "tf32x3", True, True)),
        ("attention_backward", (q, k, v, c, *nothing[:3], c, log_sums, log_sums, 0.5, False, "tf32x3", False, True)),
        ("group_norm_stats", (x, 2, 1e-5)),
        ("group_norm_values", (x, w, None, stats, stats, x, x, True, [True, True, True, True])),
        ("group_norm_values", (x, w, w, stats, stats, None, None, True, [True, False, False, False])),
    ):
        torch.library.opcheck(getattr(ops, name).default, arguments, test_utils=kinds)


def test_why_not(device, monkeypatch):
    x = torch.ones(2, device=device)
    assert why_not(x) is None
    assert "float16" in why_not(x.half())
    assert "on meta" in why_not(x.to("meta"))
    monkeypatch.setenv("GEOREG_TRITON", "0")
    assert why_not(x) == "GEOREG_TRITON=0"
    monkeypatch.delenv("GEOREG_TRITON")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert (why_not(torch.ones(2)) or "").startswith("kernels are for CUDA")
    monkeypatch.setattr("georeg.kernels.triton.support._has_triton", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert why_not(torch.ones(2)) == "triton is not installed"
