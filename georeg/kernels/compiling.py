"""What torch.compile is to leave alone: it has derivatives of its own making, once, and J needs two and more."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def as_written(function: Callable[P, R]) -> Callable[P, R]:
    """A function that runs as written also where its caller is compiled: one graph break, and the rest is compiled.

    Example:
        >>> from georeg.kernels.compiling import as_written
        >>> as_written(len)([1, 2])
        2
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        # Asked first: torch.compiler.disable imports the compiler, which takes a second.
        if torch.compiler.is_compiling():
            result: R = torch.compiler.disable(function)(*args, **kwargs)
            return result
        return function(*args, **kwargs)

    return run


def uncompiled() -> AbstractContextManager[Any]:
    """Within it, what torch.compile has compiled runs as it was written: a compiled graph has no second derivative.

    Example:
        >>> from georeg.kernels.compiling import uncompiled
        >>> with uncompiled():
        ...     pass
    """
    # Without the compiler nothing can have been compiled.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
