"""What a backward pass is for: a Jacobian product needs no gradient of the parameters, whatever autograd believes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

# Counters of the process, not of a thread: on a GPU the backward pass runs in a thread of its own, while the one that
# asked for it waits.
_products = 0
_cotangents = 0


@contextmanager
def products_only(*, cotangents: bool = False) -> Iterator[None]:
    """Within it, backward passes are Jacobian products: the operators of this package give parameters no gradient.

    ``autograd.grad(outputs, inputs)`` asks for the gradient of the inputs alone, but a Python autograd function is not
    told so, and would compute the parameters' gradients to be thrown away.

    Args:
        cotangents: J·v is being taken as ∂⟨Jᵀu, v⟩/∂u: the points are no function of u, so that gradients with respect
            to cotangents alone are wanted.
    """
    global _products, _cotangents
    _products += 1
    _cotangents += cotangents
    try:
        yield
    finally:
        _products -= 1
        _cotangents -= cotangents


def skips(parameter: Tensor | None) -> bool:
    """Whether a parameter gets no gradient now. One that is computed (it may be from the point) always gets its own."""
    return parameter is None or (_products > 0 and parameter.grad_fn is None)


def cotangents_only() -> bool:
    """Whether gradients with respect to cotangents alone are wanted."""
    return _cotangents > 0
