"""Operators inside the loss: ‖Jᵀu‖² + ‖J Jᵀu‖² and its gradient, by georeg's rules and by torch's own operators.

On a GPU ours are Triton's, and are timed in plain PyTorch too.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import conv2d, group_norm, scaled_dot_product_attention, silu

from georeg.kernels import fused, products_only
from georeg.kernels.triton.support import SWITCH

Operator = Callable[..., Tensor]
OPERATORS: dict[str, tuple[Operator, list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    # the operator, its shapes at full size (points first, then a weight), and those of the check
    "convolution, 128 channels at 16²": (lambda x, w: conv2d(x, w, padding=1), [(8, 128, 16, 16), (128, 128, 3, 3)],
                                         [(2, 4, 5, 5), (4, 4, 3, 3)]),
    "GroupNorm + SiLU, 64 channels at 32²": (lambda x, w: silu(group_norm(x, 4, w)), [(8, 64, 32, 32), (64,)],
                                             [(2, 8, 5, 5), (8,)]),
    "attention, 16 heads at 16²": (lambda x, w: scaled_dot_product_attention(x * w, x, x), [(8, 16, 256, 8), (8,)],
                                   [(2, 2, 7, 4), (4,)]),
}  # fmt: skip
ON_A_GPU: dict[str, tuple[Operator, list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    "GroupNorm + SiLU, 256 channels at 64²": (lambda x, w: silu(group_norm(x, 32, w)), [(32, 256, 64, 64), (256,)],
                                              [(2, 64, 9, 9), (64,)]),
    **{f"attention, 16 heads of {d} at {size}²":
       (lambda x, w: scaled_dot_product_attention(x * w, x, x), [(8, 16, size**2, d), (d,)], [(2, 2, 70, d), (d,)])
       for d in (8, 32, 64) for size in (16, 32)},
}  # fmt: skip
CASES = {"torch": {}, "ours": {}, "ours, no Triton": {SWITCH: "0"}}


def loss(operator: Operator, x: Tensor, w: Tensor, u: Tensor, *, ours: bool) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        if not ours:
            y = operator(x, w)
            (g,) = torch.autograd.grad(y, x, u, create_graph=True)
            (q,) = torch.autograd.grad(g, u, g, create_graph=True)
        else:
            with fused():
                y = operator(x, w)
            with products_only():
                (g,) = torch.autograd.grad(y, x, u, create_graph=True)
            with products_only(cotangents=True):
                (q,) = torch.autograd.grad(g, u, g, create_graph=True)
    return g.square().sum() + q.square().sum()


def tensors(operator: Operator, shapes: list[tuple[int, ...]], device: str, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    x, w = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes)
    return [x, w, torch.randn_like(operator(x, w)).requires_grad_()]


def gradients(operator: Operator, values: list[Tensor], *, ours: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(operator, *values, ours=ours), values[:2], materialize_grads=True)


def check(operator: Operator, shapes: list[tuple[int, ...]], device: str) -> None:
    """The gradient is torch's own, in float64, and on a GPU in float32, in which alone Triton computes."""
    values = tensors(operator, shapes, device, torch.float64)
    expected = gradients(operator, values, ours=False)
    torch.testing.assert_close(gradients(operator, values, ours=True), expected, rtol=1e-9, atol=1e-11)
    if device == "cuda":
        narrow = [v.detach().float().requires_grad_() for v in values]
        with torch.backends.cudnn.flags(allow_tf32=False):
            for found, exact in zip(gradients(operator, narrow, ours=True), expected, strict=True):
                assert (found.double() - exact).norm() <= 1e-4 * exact.norm()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [*OPERATORS, *ON_A_GPU])
def test_kernel(measure, name, case, device, is_smoke, monkeypatch):
    if device == "cpu" and (name in ON_A_GPU or "Triton" in case):
        pytest.skip("for a GPU")
    for variable, value in CASES[case].items():
        monkeypatch.setenv(variable, value)
    operator, full, small = (OPERATORS | ON_A_GPU)[name]
    check(operator, small, device)
    at = tensors(operator, small if is_smoke else full, device, torch.float32)
    measure(lambda: loss(operator, *at, ours=case != "torch"), group=f"{name}, {device}", case=case, rounds=10)
