"""Forward engine: J v by forward-mode differentiation (torch.func), Jᵀw by torch.func.vjp."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from georeg.linearize.base import Linearization, Map, differentiable_attention


@contextmanager
def _replayed(state: Tensor, cuda_state: Tensor | None) -> Iterator[None]:
    """Run with the given random state, so that dropout draws the mask it drew for the value."""
    devices = [torch.cuda.current_device()] if cuda_state is not None else []
    with torch.random.fork_rng(devices):
        torch.set_rng_state(state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state)
        yield


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


class ForwardLinearization(Linearization):
    """Products by torch.func. f runs again for each chunk of probes, with torch's randomness replayed.

    A map that changes its own buffers as it runs (spectral norm in training mode) changes them at each run.

    The engine keeps no graph of its own, works inside ``torch.func.grad`` and ``vmap``, and is the
    cheaper one for many pushforwards of a map from few dimensions to many.

    Args:
        f: the map.
        x: the points.
        chunk_size: probes per vectorised product; None for all at once.
    """

    def __init__(self, f: Map, x: Tensor, *, chunk_size: int | None = None) -> None:
        self._f, self.chunk_size = f, chunk_size
        # A dual number cannot be made of an expanded tensor, whose elements share memory.
        x = x if x.is_contiguous() else x.clone()
        self._state = torch.get_rng_state()
        self._cuda_state = torch.cuda.get_rng_state() if x.is_cuda else None
        with differentiable_attention():
            value = f(x)
        super().__init__(x, value)

    def _chunked(self, product: Callable[[Tensor], Tensor], probes: Tensor) -> Tensor:
        with _explained(), _replayed(self._state, self._cuda_state):
            if len(probes) == 1:
                return product(probes[0]).unsqueeze(0)
            return torch.func.vmap(product, chunk_size=self.chunk_size, randomness="same")(probes)

    def _jvp(self, v: Tensor) -> Tensor:
        return self._chunked(lambda p: torch.func.jvp(self._f, (self.x,), (p,))[1], v)

    def _vjp(self, w: Tensor) -> Tensor:
        with _explained(), _replayed(self._state, self._cuda_state):
            pullback = torch.func.vjp(self._f, self.x)[1]
        return self._chunked(lambda p: pullback(p)[0], w)

    def __repr__(self) -> str:
        return f"ForwardLinearization({tuple(self.x.shape)} -> {tuple(self.value.shape)}, chunk_size={self.chunk_size})"
