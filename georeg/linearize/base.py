"""What a linearisation is, and what is checked about a map before one is taken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from georeg.kernels.compiling import as_written
from georeg.kernels.mode import in_functorch as in_functorch
from georeg.shared import Shared

Map = Callable[[Tensor], Tensor]


class Linearization(ABC):
    """A map f at a batch of points: its value, and products with its Jacobian J and with Jᵀ.

    Probe axes come first: ``v`` is ``(k, B, *event of x)``, ``w`` is ``(k, B, *event of f(x))``. By contract
    f acts on each sample alone, so one product serves the whole batch.

    Attributes:
        x: the points ``(B, ...)``, part of the graph.
        value: f(x) ``(B, ...)``, part of the graph.
        chunk_size: probes per vectorised product; None for all at once, 1 for a plain loop, which is also
            taken where a kernel of the map cannot be vectorised.
        reason: why this engine was chosen, for the repr.
        num_jvps, num_vjps: products taken so far, one for each probe.

    Law: ⟨w, J v⟩ = ⟨Jᵀ w, v⟩ for all v, w.

    Raises:
        ValueError: from a product, probes of another shape than stated.

    Example:
        >>> import torch, georeg
        >>> lin = georeg.linearize(torch.square, torch.tensor([[3.0, 1.0]]))       # J = diag(6, 2)
        >>> lin.value.tolist(), lin.jvp(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])).squeeze(1).tolist()
        ([[9.0, 1.0]], [[6.0, 0.0], [0.0, 2.0]])
        >>> lin.num_jvps, lin.num_vjps
        (2, 0)
    """

    def __init__(self, x: Tensor, value: Tensor, chunk_size: int | None = None, reason: str = "") -> None:
        self.x, self.value, self.chunk_size, self.reason = x, value, chunk_size, reason
        self._vectorised = True
        self.num_jvps = self.num_vjps = 0

    @abstractmethod
    def _jvp(self, v: Tensor) -> Tensor: ...

    @abstractmethod
    def _vjp(self, w: Tensor) -> Tensor: ...

    @as_written
    def jvp(self, v: Tensor) -> Tensor:
        """Pushforward J v of tangent vectors ``(k, B, *event of x)``: ``(k, B, *event of f(x))``."""
        return self._product("v", v, self.x, self.value, self._jvp, "num_jvps")

    @as_written
    def vjp(self, w: Tensor) -> Tensor:
        """Pullback Jᵀ w of cotangent vectors ``(k, B, *event of f(x))``: ``(k, B, *event of x)``."""
        return self._product("w", w, self.value, self.x, self._vjp, "num_vjps")

    def _product(
        self, name: str, probes: Tensor, like: Tensor, out: Tensor, product: Callable[[Tensor], Tensor], counter: str
    ) -> Tensor:
        if probes.ndim != like.ndim + 1 or probes.shape[1:] != like.shape:
            raise ValueError(
                f"{name}: got shape {tuple(probes.shape)}, expected (k, {', '.join(map(str, like.shape))}): probes come "
                f"first; add an axis with {name}.unsqueeze(0) for a single one"
            )
        setattr(self, counter, getattr(self, counter) + len(probes))
        if not len(probes):
            return out.new_zeros(0, *out.shape)
        # A checkpointed map runs again inside a product, and must then choose the attention it chose before.
        with outside_inference_mode(), differentiable_attention():
            return product(graph_ready(probes.to(like.dtype)))

    def _in_chunks(self, probes: Tensor, one: Callable[[Tensor], Tensor], many: Callable[[Tensor], Tensor]) -> Tensor:
        """Products with ``(k, ...)`` probes: ``many`` takes several at once, ``one`` a single one."""
        size = self.chunk_size or len(probes)
        if self._vectorised and size > 1 and len(probes) > 1:
            try:
                return torch.cat([many(chunk) for chunk in probes.split(size)])
            except RuntimeError:
                # Some kernels have no batching rule (GroupNorm's second derivative on torch 2.13 among them). If
                # the cause is another one, the loop meets it again and raises it.
                self._vectorised = False
        return torch.stack([one(probe) for probe in probes])

    def __repr__(self) -> str:
        options = f"chunk_size={self.chunk_size}" + (f", {self.reason}" if self.reason else "")
        return f"{type(self).__name__}({tuple(self.x.shape)} -> {tuple(self.value.shape)}, {options})"


def check_points(x: Tensor) -> None:
    """Refuse what has no derivative: anything but a floating-point tensor with a batch axis."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: got {type(x).__name__}, expected a torch.Tensor of points (B, ...)")
    if not x.is_floating_point():
        raise TypeError(f"x: got dtype {x.dtype}, expected a floating-point tensor; convert with x.float()")
    if x.ndim == 0:
        raise ValueError("x: got a scalar, expected a batch of points (B, ...)")


def check_value(x: Tensor, y: Any) -> Tensor:
    """Refuse a map whose output is not one floating-point tensor with x's batch axis."""
    if not isinstance(y, Tensor):
        raise TypeError(
            f"f: returned {type(y).__name__}, expected one tensor (B, ...); wrap it, as in `lambda x: f(x)[0]` "
            "or `lambda x: f(x).sample`"
        )
    if not y.is_floating_point():
        raise TypeError(f"f: returned dtype {y.dtype}, expected a floating-point tensor: integers have no derivative")
    if y.ndim == 0 or len(y) != len(x):
        raise ValueError(
            f"f: returned shape {tuple(y.shape)} for {len(x)} points, expected ({len(x)}, ...): f acts on each sample alone"
        )
    return y


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Leave inference mode, in which nothing can be differentiated; whether results carry a graph is unchanged."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def graph_ready(x: Tensor) -> Tensor:
    """x, or a copy of it when it was born in inference mode and so can enter no graph."""
    return x.clone() if x.is_inference() else x


differentiable_attention = Shared(lambda: sdpa_kernel(SDPBackend.MATH))
"""Attention by plain matrix products: torch's fused kernels have no second derivative.

Shared, because a capture leaves it at h, which may be inside a checkpointed block that entered it later."""
