"""First-order view of a map at a batch of points: value, pushforward and pullback."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from georeg.kernels import fused
from georeg.kernels.compiling import as_written, uncompiled
from georeg.linearize.base import (
    Linearization,
    Map,
    check_points,
    check_value,
    differentiable_attention,
    graph_ready,
    in_functorch,
    outside_inference_mode,
)
from georeg.linearize.forward import ForwardLinearization
from georeg.linearize.reverse import ReverseLinearization
from georeg.linearize.samplewise import check_samplewise
from georeg.linearize.support import forward_only

Engine = Literal["auto", "reverse", "forward"]

__all__ = ["Engine", "Linearization", "Map", "linearize", "linearize_graph"]


@as_written
def linearize(
    f: Map, x: Tensor, *, engine: Engine = "auto", chunk_size: int | None = None, detach_x: bool = False
) -> Linearization:
    """Run f once at x and return its value with products by its Jacobian.

    Args:
        f: a callable or ``nn.Module``, (B, ...) ↦ (B, ...), acting on each sample alone. Its attention runs in
            the math form; where ``torch.utils.checkpoint`` (``use_reentrant=False``) wraps attention in it, call
            ``.backward()`` inside ``sdpa_kernel(SDPBackend.MATH)`` too, because f runs again there.
        x: points ``(B, ...)``. A tensor that carries a graph keeps it.
        engine: ``"reverse"`` (one forward pass, double backward), ``"forward"`` (torch.func) or ``"auto"``: reverse,
            except where only the forward engine works, inside a torch.func transform and for a map with an
            autograd function that has a ``jvp`` and a ``once_differentiable`` backward. The repr says why.
        chunk_size: probes per vectorised product; None for all at once.
        detach_x: cut x from the graph it carries.

    Returns:
        A :class:`Linearization` with ``.value (B, ...)``, ``.jvp(v)`` and ``.vjp(w)``; under ``no_grad`` and
        ``inference_mode`` the products carry no graph.

    Raises:
        TypeError: x or f(x) is not one floating-point tensor.
        ValueError: f changes the batch axis, or mixes samples by a batch norm in training mode; unknown engine, or
            the reverse engine inside a torch.func transform; chunk_size below 1.

    Example:
        >>> import torch, georeg
        >>> lin = georeg.linearize(lambda x: x**2, torch.tensor([[3.0, 1.0]]))
        >>> lin.jvp(torch.ones(1, 1, 2)).tolist()
        [[[6.0, 2.0]]]
    """
    if not callable(f):
        raise TypeError(f"f: got {type(f).__name__}, expected a callable or torch.nn.Module")
    check_points(x)
    if engine not in ("auto", "reverse", "forward"):
        raise ValueError(f"engine: got {engine!r}, expected 'auto', 'reverse' or 'forward'")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size: got {chunk_size}, expected a positive number of probes, or None for all at once")
    transformed = in_functorch()
    if transformed and engine == "reverse":
        raise ValueError(
            "engine: got 'reverse' inside a torch.func transform, where autograd.grad does not work; expected 'forward' or "
            "'auto'"
        )
    with outside_inference_mode():
        point = graph_ready(x.detach() if detach_x else x)
        if engine == "forward" or transformed:
            reason = "inside a torch.func transform" if engine == "auto" else "as asked"
            return _forward(f, point, chunk_size, reason)
        with torch.enable_grad(), differentiable_attention(), fused(), uncompiled():
            point = point if point.requires_grad else point.detach().requires_grad_()
            # A view, so that no operator takes a point that is a leaf for one of the map's parameters.
            value = check_value(point, f(point.view_as(point)))
        check_samplewise(point, value)
        name = forward_only(point, value) if engine == "auto" else None
        if name is not None:
            return _forward(f, point, chunk_size, f"{name} can be differentiated backward only once")
    reason = "f's operators can be differentiated twice" if engine == "auto" else "as asked"
    return ReverseLinearization(point, value, chunk_size=chunk_size, reason=reason)


def _forward(f: Map, point: Tensor, chunk_size: int | None, reason: str) -> Linearization:
    lin = ForwardLinearization(f, point, chunk_size=chunk_size, reason=reason)
    check_value(point, lin.value)
    return lin


@as_written
def linearize_graph(x: Tensor, y: Tensor, *, chunk_size: int | None = None) -> Linearization:
    """A linearisation taken from the graph of a forward pass that the caller has already run.

    Args:
        x: the points ``(B, ...)``; they must require grad *before* the forward pass.
        y: f(x), computed from this very tensor x, with attention in its math form.
        chunk_size: probes per vectorised product.

    Raises:
        ValueError: x does not require grad; a batch norm in training mode between x and y.

    Example:
        >>> import torch, georeg
        >>> x = torch.tensor([[3.0, 1.0]], requires_grad=True)
        >>> y = x**2                                  # your own forward pass
        >>> georeg.linearize_graph(x, y).vjp(torch.ones(1, 1, 2)).tolist()
        [[[6.0, 2.0]]]
    """
    check_points(x)
    if not x.requires_grad:
        raise ValueError("x: does not require grad, expected x.requires_grad_() before the forward pass that made y")
    check_samplewise(x, check_value(x, y))
    return ReverseLinearization(x, y, chunk_size=chunk_size, reason="from the graph of y")
