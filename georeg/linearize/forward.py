"""Forward engine: J v by forward-mode differentiation (torch.func), Jᵀw by torch.func.vjp."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from georeg.kernels.compiling import uncompiled
from georeg.linearize.base import Linearization, Map, differentiable_attention
from georeg.random import random_state, replayed


@contextmanager
def _explained() -> Iterator[None]:
    """Say in the map's terms what torch.func refuses in its own."""
    try:
        yield
    except RuntimeError as error:
        if "mutate a captured Tensor" in str(error):
            raise ValueError(
                "f: changes its own buffers as it runs, which forward mode does not allow; a batch norm in training mode "
                "does so and mixes the samples besides: call .eval() on it, or use engine='reverse'"
            ) from error
        if "saved tensor hooks" in str(error):
            raise ValueError(
                "f: uses torch.utils.checkpoint, which torch.func does not support; use engine='reverse', or checkpoint "
                "around the loss instead of inside the map"
            ) from error
        raise


class _ContiguousGroupNorm(TorchFunctionMode):
    """Give GroupNorm a contiguous tangent, without which its forward-mode formula fails ("view size is not compatible")."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (nn.functional.group_norm, torch.group_norm) and args:
            # Not .contiguous(): where the value is contiguous already, that leaves the tangent as it is.
            args = (args[0].clone(memory_format=torch.contiguous_format), *args[1:])
        return func(*args, **(kwargs or {}))


class ForwardLinearization(Linearization):
    """Products by torch.func. f runs again for each chunk of probes, with torch's randomness replayed.

    A map that changes its own buffers as it runs (spectral norm in training mode) changes them at each run.

    The engine keeps no graph of its own, works inside ``torch.func.grad`` and ``vmap``, and is the
    cheaper one for many pushforwards of a map from few dimensions to many.

    Args:
        f: the map.
        x: the points.
        chunk_size, reason: see :class:`Linearization`.
    """

    def __init__(self, f: Map, x: Tensor, *, chunk_size: int | None = None, reason: str = "") -> None:
        self._f = f
        # A dual number cannot be made of an expanded tensor, whose elements share memory.
        x = x if x.is_contiguous() else x.clone()
        self._state = random_state()
        with differentiable_attention(), uncompiled():
            value = f(x)
        super().__init__(x, value, chunk_size, reason)

    def _products(self, product: Callable[[Tensor], Tensor], probes: Tensor) -> Tensor:
        def run(one_or_many: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
            with _explained(), _ContiguousGroupNorm(), replayed(self._state), uncompiled():
                return one_or_many(given)

        many = torch.func.vmap(product, randomness="same")
        return self._in_chunks(probes, lambda p: run(product, p), lambda p: run(many, p))

    def _jvp(self, v: Tensor) -> Tensor:
        return self._products(lambda p: torch.func.jvp(self._f, (self.x,), (p,))[1], v)

    def _vjp(self, w: Tensor) -> Tensor:
        with _explained(), replayed(self._state):
            pullback = torch.func.vjp(self._f, self.x)[1]
        return self._products(lambda p: pullback(p)[0], w)
