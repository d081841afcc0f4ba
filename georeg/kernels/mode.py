"""What a backward pass is for: a Jacobian product needs no gradient of the parameters, whatever autograd believes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

# Counters of the process, not of a thread: on a GPU the backward pass runs in a thread of its own, while the one that
# asked for it waits.
_products = 0
_cotangents = 0
_zeros = 0
_frugal = 0


@contextmanager
def products_only(*, cotangents: bool = False, zeros: bool = False) -> Iterator[None]:
    """Within it, backward passes are Jacobian products: the operators of this package give parameters no gradient.

    ``autograd.grad(outputs, inputs)`` asks for the gradient of the inputs alone, but a Python autograd function is not
    told so, and would compute the parameters' gradients to be thrown away.

    Args:
        cotangents: J·v is being taken as ∂⟨Jᵀu, v⟩/∂u: the points are no function of u, so that gradients with respect
            to cotangents alone are wanted.
        zeros: Jᵀu is being taken at u = 0 for the sake of its graph: every pullback is a zero, at no cost.
    """
    global _products, _cotangents, _zeros
    _products += 1
    _cotangents += cotangents
    _zeros += zeros
    try:
        yield
    finally:
        _products -= 1
        _cotangents -= cotangents
        _zeros -= zeros


@contextmanager
def frugal() -> Iterator[None]:
    """Within it, forward passes keep nothing that a backward pass could compute again."""
    global _frugal
    _frugal += 1
    try:
        yield
    finally:
        _frugal -= 1


def is_frugal() -> bool:
    """Whether memory goes before work."""
    return _frugal > 0


def skips(parameter: Tensor | None) -> bool:
    """Whether a parameter gets no gradient now. One that is computed (it may be from the point) always gets its own.

    A leaf that autocast has cast is still a leaf here.
    """
    return parameter is None or (_products > 0 and (parameter.grad_fn is None or _is_cast_leaf(parameter.grad_fn)))


def _is_cast_leaf(node: Any) -> bool:
    return node.name() == "ToCopyBackward0" and node.next_functions[0][0].name() == "torch::autograd::AccumulateGrad"


def cotangents_only() -> bool:
    """Whether gradients with respect to cotangents alone are wanted."""
    return _cotangents > 0


def zero_cotangents() -> bool:
    """Whether all cotangents are zero, and with them what is pulled back."""
    return _zeros > 0


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors as torch's own operators on the autocast list would take them: autocast does not reach into a Function."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def signed(function: Callable[P, R]) -> Callable[P, R]:
    """The ``forward`` of an autograd function with its signature, which torch would work out anew at each call."""
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function


def in_functorch() -> bool:
    """Whether a torch.func transform (grad, vmap, jvp) is active, inside which autograd.grad does not work."""
    return torch._C._functorch.peek_interpreter_stack() is not None
