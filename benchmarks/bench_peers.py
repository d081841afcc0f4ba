"""The loss of one encoder, with one probe, by everything a user could pick instead: values first, then time and memory.

    ours                        IsometryLoss
    ours, torch's operators     the same without georeg's kernels
    published algorithm         three products by the double-backward trick, each with a forward pass of its own
    IRVAE                       torch.autograd.functional jvp and vjp, create_graph=True, as in Lee et al. 2022
    jacfwd, jacrev              torch.func's dense Jacobians

curvlinops and backpack have no case: their Jacobians are those of the parameters, and carry no gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jvp, vjp

import georeg
from georeg.linearize.base import differentiable_attention

Loss = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
"""τ₁ and τ₂ of each sample, with graph, for a map, points and a probe of J's columns' space (x) or rows' (y)."""


class Encoder(nn.Module):
    """Convolutions, group norms and one attention layer: 3 × 16² to 32 × 4²."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(3, channels, 3, 2, 1), nn.GroupNorm(4, channels), nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(4, channels), nn.SiLU(),
        )  # fmt: skip
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Conv2d(channels, channels // 2, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(x)
        q, k, v = self.qkv(h.flatten(2).mT).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(h + mixed.mT.reshape(h.shape))


def ours(f: nn.Module, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    lin = georeg.linearize(f, x)
    g = lin.vjp(u[None])
    return g.square().flatten(2).sum(-1)[0], lin.jvp(g).square().flatten(2).sum(-1)[0]


def ours_by_torchs_operators(f: nn.Module, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    with differentiable_attention():
        points = x.requires_grad_()
        y = f(points)
        cotangent = u.clone().requires_grad_()
        (g,) = torch.autograd.grad(y, points, cotangent, create_graph=True)
        (q,) = torch.autograd.grad(g, cotangent, g, create_graph=True)
    return _squares(g), _squares(q)


def irvae(f: nn.Module, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    with differentiable_attention():
        pushed = jvp(f, x, v, create_graph=True)[1]
        pulled = vjp(f, x, pushed, create_graph=True)[1]
    return _squares(pushed), _squares(pulled)


def published(f: nn.Module, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    with differentiable_attention():
        a = jvp(f, x, v, create_graph=True)[1]
        pushed = jvp(f, x, v, create_graph=True)[1]
        pulled = vjp(f, x, pushed, create_graph=True)[1]
    return _squares(a), _squares(pulled)


def dense(transform: Callable[..., Callable[[Tensor], Tensor]]) -> Loss:
    def moments(f: nn.Module, x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        with differentiable_attention():
            jacobians = torch.vmap(transform(lambda p: f(p[None])[0].flatten()))(x).flatten(2)
        gram = jacobians @ jacobians.mT
        return gram.diagonal(dim1=1, dim2=2).sum(-1), gram.square().sum((1, 2))

    return moments


def _squares(x: Tensor) -> Tensor:
    return x.square().flatten(1).sum(1)


PEERS: dict[str, tuple[Loss, str]] = {
    "ours": (ours, "y"),
    "ours, torch's operators": (ours_by_torchs_operators, "y"),
    "published algorithm": (published, "x"),
    "IRVAE (autograd.functional)": (irvae, "x"),
    "torch.func.jacrev": (dense(torch.func.jacrev), "all"),
    "torch.func.jacfwd": (dense(torch.func.jacfwd), "all"),
}


@pytest.mark.parametrize("peer", PEERS)
def test_peer(measure, peer, device, is_smoke):
    moments, side = PEERS[peer]
    _agrees_with_the_dense_jacobian(moments, side, device)
    torch.manual_seed(0)
    batch, channels = (2, 8) if is_smoke else (8, 64)
    f = Encoder(channels).to(device)
    x = torch.randn(batch, 3, 16, 16, device=device)
    u = torch.randn_like(x if side == "x" else f(x).detach())

    def step() -> Tensor:
        trace, trace_sq = moments(f, x.detach(), u)
        return trace_sq.mean() / trace.mean() ** 2

    slow = side == "all"
    products = min(x[0].numel(), u[0].numel()) if slow else 2
    measure(
        step,
        group=f"loss of a small encoder, batch {batch}, {device}",
        case=peer,
        rounds=2 if slow else 7,
        products=products,
    )


def _agrees_with_the_dense_jacobian(moments: Loss, side: str, device: str) -> None:
    """In float64, both moments and their gradient by the parameters, with one known probe."""
    torch.manual_seed(0)
    f = Encoder(8).double().to(device)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, device=device)
    probe = torch.randn_like(x if side == "x" else f(x).detach())
    with differentiable_attention():
        J = torch.stack([
            torch.autograd.functional.jacobian(lambda p: f(p).flatten(), x[i : i + 1], create_graph=True).flatten(1)
            for i in range(2)
        ])  # fmt: skip
    flat = probe.flatten(1).unsqueeze(-1)
    if side == "all":
        gram = J @ J.mT
        expected = gram.diagonal(dim1=1, dim2=2).sum(-1), gram.square().sum((1, 2))
    else:
        first = J @ flat if side == "x" else J.mT @ flat
        second = J.mT @ first if side == "x" else J @ first
        expected = first.square().sum((1, 2)), second.square().sum((1, 2))
    found = moments(f, x, probe)
    parameters = list(f.parameters())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        gradients = [
            torch.autograd.grad(m.sum(), parameters, retain_graph=True, materialize_grads=True) for m in (one, other)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)
