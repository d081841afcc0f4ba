"""Reverse engine: Jᵀw by backward, J v by backward through the graph of Jᵀw."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from georeg.kernels import products_only
from georeg.linearize.base import Linearization
from georeg.linearize.support import once_only


def _zeros(inputs: Tensor) -> Tensor:
    """Zero products, with a graph (a loss of them can still be differentiated) and never NaN."""
    return torch.where(torch.zeros_like(inputs, dtype=torch.bool), inputs, 0)


def _grad(outputs: Tensor, inputs: Tensor, cotangent: Tensor, *, create_graph: bool) -> Tensor:
    """∂⟨outputs, cotangent⟩/∂inputs, zero where the outputs do not depend on the inputs at all."""
    if not outputs.requires_grad:
        return _zeros(inputs)
    try:
        (product,) = torch.autograd.grad(
            outputs, inputs, cotangent, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
    except RuntimeError as error:
        if "derivative for aten::" in str(error) and "not implemented" in str(error):
            raise RuntimeError(
                f"f: {error} A fused kernel in the map has no second derivative. For attention run the forward pass "
                "inside `torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)` "
                "(georeg.linearize does so itself; linearize_graph cannot)"
            ) from error
        raise
    return _zeros(inputs) if product is None else product


class ReverseLinearization(Linearization):
    """Products by reverse mode over the graph of one forward pass, which the caller may go on using.

    VJP first: g(u) = Jᵀu is linear in u, so J v = ∂⟨g(u), v⟩/∂u for any u. After a ``vjp`` its graph
    serves every ``jvp`` that follows; a ``jvp`` without one builds it at a dummy u = 0 (one more pass).

    Args:
        x: points that require grad and from whose use ``value`` was computed.
        value: f(x).
        chunk_size, reason: see :class:`Linearization`.
    """

    def __init__(self, x: Tensor, value: Tensor, *, chunk_size: int | None = None, reason: str = "") -> None:
        super().__init__(x, value, chunk_size, reason)
        self._transposed: tuple[Tensor, Tensor] | None = None
        self._twice_checked = False

    def _vjp(self, w: Tensor) -> Tensor:
        create_graph = torch.is_grad_enabled()

        def one(u: Tensor) -> Tensor:
            if create_graph:
                # The cotangent joins the graph, so that this very graph can be differentiated for J v.
                u = u if u.requires_grad else u.detach().requires_grad_()
            g = _grad(self.value, self.x, u, create_graph=create_graph)
            if create_graph:
                self._transposed = (u, g)
            return g

        with products_only():
            return self._in_chunks(w, one, _vectorised(self.value, self.x, create_graph))

    def _jvp(self, v: Tensor) -> Tensor:
        create_graph = torch.is_grad_enabled()
        if not self._twice_checked:
            for function in once_only(self.x, self.value):
                raise RuntimeError(
                    f"f: {function.__name__} is once_differentiable, and J v by the reverse engine needs its second "
                    "derivative; write its backward of differentiable operations, or give it a jvp and use engine='forward'"
                )
            self._twice_checked = True
        if self._transposed is None:
            with torch.enable_grad(), products_only(zeros=True):
                u = torch.zeros_like(self.value, requires_grad=True)
                self._transposed = (u, _grad(self.value, self.x, u, create_graph=True))
        u, g = self._transposed
        with products_only(cotangents=True):
            return self._in_chunks(v, lambda p: _grad(g, u, p, create_graph=create_graph), _vectorised(g, u, create_graph))


def _vectorised(outputs: Tensor, inputs: Tensor, create_graph: bool) -> Callable[[Tensor], Tensor]:
    """Products with several cotangents at once.

    Not autograd's is_grads_batched: its vmap, older than torch.func's, silently drops the graph of an autograd function's
    derivative.
    """
    return torch.func.vmap(lambda cotangent: _grad(outputs, inputs, cotangent, create_graph=create_graph), randomness="same")
