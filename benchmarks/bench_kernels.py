"""Operators inside the loss: ‖Jᵀu‖² + ‖J Jᵀu‖² and its gradient, by georeg's rules and by torch's own operators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import conv2d, group_norm, scaled_dot_product_attention, silu

from georeg.kernels import fused, products_only

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


@pytest.mark.parametrize("case", ["torch", "ours"])
@pytest.mark.parametrize("name", OPERATORS)
def test_kernel(measure, name, case, device, is_smoke):
    operator, full, small = OPERATORS[name]
    values = tensors(operator, small, device, torch.float64)
    found = [
        torch.autograd.grad(loss(operator, *values, ours=ours), values[:2], materialize_grads=True) for ours in (True, False)
    ]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
    at = tensors(operator, small if is_smoke else full, device, torch.float32)
    measure(lambda: loss(operator, *at, ours=case == "ours"), group=f"{name}, {device}", case=case, rounds=10)
