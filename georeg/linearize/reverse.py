"""Reverse engine: Jᵀw by backward, J v by backward through the graph of Jᵀw."""

from __future__ import annotations

import torch
from torch import Tensor

from georeg.linearize.base import Linearization


def _zeros(inputs: Tensor, cotangent: Tensor, batched: bool) -> Tensor:
    """Zero products, with a graph (a loss of them can still be differentiated) and never NaN."""
    zeros = torch.where(torch.zeros_like(inputs, dtype=torch.bool), inputs, 0)
    return zeros.expand(len(cotangent), *inputs.shape).clone() if batched else zeros


def _grad(outputs: Tensor, inputs: Tensor, cotangent: Tensor, *, create_graph: bool, batched: bool) -> Tensor:
    """∂⟨outputs, cotangent⟩/∂inputs, zero where the outputs do not depend on the inputs at all."""
    if not outputs.requires_grad:
        return _zeros(inputs, cotangent, batched)
    try:
        (product,) = torch.autograd.grad(
            outputs,
            inputs,
            cotangent,
            retain_graph=True,
            create_graph=create_graph,
            is_grads_batched=batched,
            allow_unused=True,
        )
    except RuntimeError as error:
        if "derivative for aten::" in str(error) and "not implemented" in str(error):
            raise RuntimeError(
                f"f: {error} A fused kernel in the map has no second derivative. For attention run the forward pass "
                "inside `torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)` "
                "(georeg.linearize does so itself; linearize_graph cannot)"
            ) from error
        raise
    # Not autograd's materialize_grads, which forgets the axis of the probes.
    return _zeros(inputs, cotangent, batched) if product is None else product


class ReverseLinearization(Linearization):
    """Products by reverse mode over the graph of one forward pass, which the caller may go on using.

    VJP first: g(u) = Jᵀu is linear in u, so J v = ∂⟨g(u), v⟩/∂u for any u. After a ``vjp`` its graph
    serves every ``jvp`` that follows; a ``jvp`` without one builds it at a dummy u = 0 (one more pass).

    Args:
        x: points that require grad and from whose use ``value`` was computed.
        value: f(x).
        chunk_size: see :class:`Linearization`.
    """

    def __init__(self, x: Tensor, value: Tensor, *, chunk_size: int | None = None) -> None:
        super().__init__(x, value, chunk_size)
        self._transposed: tuple[Tensor, Tensor] | None = None

    def _vjp(self, w: Tensor) -> Tensor:
        create_graph = torch.is_grad_enabled()

        def product(u: Tensor, *, batched: bool) -> Tensor:
            if create_graph and not batched:
                # The cotangent joins the graph, so that this very graph can be differentiated for J v.
                u = u if u.requires_grad else u.detach().requires_grad_()
                g = _grad(self.value, self.x, u, create_graph=True, batched=False)
                self._transposed = (u, g)
                return g
            return _grad(self.value, self.x, u, create_graph=create_graph, batched=batched)

        return self._in_chunks(w, lambda u: product(u, batched=False), lambda u: product(u, batched=True))

    def _jvp(self, v: Tensor) -> Tensor:
        create_graph = torch.is_grad_enabled()
        if self._transposed is None:
            with torch.enable_grad():
                u = torch.zeros_like(self.value, requires_grad=True)
                self._transposed = (u, _grad(self.value, self.x, u, create_graph=True, batched=False))
        u, g = self._transposed

        def product(p: Tensor, *, batched: bool) -> Tensor:
            return _grad(g, u, p, create_graph=create_graph, batched=batched)

        return self._in_chunks(v, lambda p: product(p, batched=False), lambda p: product(p, batched=True))
