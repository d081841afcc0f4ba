"""Find an operator of a map that one engine supports and the other does not."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

from georeg.linearize.samplewise import upstream


def _is_once(function: Any) -> bool:
    # functools.wraps hides the decorator's name, not the file of its code.
    backward = function.backward
    return hasattr(backward, "__wrapped__") and backward.__code__.co_filename == once_differentiable.__code__.co_filename


def once_only(x: Tensor, y: Tensor) -> list[Any]:
    """The autograd functions between x and y = f(x) whose backward is ``once_differentiable``.

    J v by a second backward is out of reach for them, and autograd, asked for it, drops their part without a word.
    """
    if y.grad_fn is None or y is x:
        return []
    nodes = upstream(y.grad_fn, get_gradient_edge(x).node)
    functions = [getattr(node, "_forward_cls", None) for node in nodes]
    return [function for function in functions if function is not None and _is_once(function)]


def forward_only(x: Tensor, y: Tensor) -> str | None:
    """Name of an autograd function that only the forward engine can take: it has a ``jvp`` for torch.func, see above."""
    for function in once_only(x, y):
        if function.jvp is not Function.jvp and function.setup_context is not Function.setup_context:
            return str(function.__name__)
    return None
