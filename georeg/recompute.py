"""Losses of Jacobians at a peak memory that grows with neither the batch nor the probes: two passes, exact gradients.

A functional F of pooled means m_k has ∇F = Σ_k ∂F/∂m_k ∇m_k. So the first pass measures the moments without a graph, a
few (sample, probe) pairs at a time; F of their pooled means gives each moment its weight; and the backward pass runs
the map again for the same pairs and differentiates Σ weight·moment, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from georeg.kernels.mode import frugal, in_functorch
from georeg.linearize import Linearization, Map, linearize
from georeg.linearize.base import outside_inference_mode
from georeg.linearize.reverse import ReverseLinearization
from georeg.random import Generator, Part, random_state, replayed

M = TypeVar("M")
Measure = Callable[[Linearization, Part, int | None], M]
"""From a linearisation of some samples, their randomness, and a number of probes (None: all): the moments."""


@dataclass
class Pairs(Generic[M]):
    """The (sample, probe) pairs of one measurement, and all that makes a second run of them equal the first.

    Args:
        f: the map of the samples in some rows.
        x: points ``(B, ...)``, detached.
        measure: see :data:`Measure`.
        num_probes: K where the moments are means over probes that may be measured apart, otherwise None.
        chunk_size: pairs at a time: that many samples with one probe, or one sample with that many probes.
        generator: seeds the probes; the same ones as without recomputation.
    """

    f: Callable[[slice], Map]
    x: Tensor
    measure: Measure[M]
    num_probes: int | None
    chunk_size: int
    generator: Generator
    starts: list[list[Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        source = self.generator
        if isinstance(source, Part):
            raise TypeError("generator: got a part of another's, expected a torch.Generator or one for each sample")
        if source is None:
            # Torch's own randomness is also the map's (dropout), which differs between chunks: the probes get a source.
            on_device = self.x.device if self.x.device.type in ("cpu", "cuda") else "cpu"
            source = torch.Generator(on_device).manual_seed(int(torch.randint(2**62, ())))
        self.source = source
        self.generators = [source] if isinstance(source, torch.Generator) else list(source)
        self.first_draw = [g.get_state() for g in self.generators]
        self.samples = min(self.chunk_size, max(len(self.x), 1))
        self.autocast = _autocast_state(self.x.device.type)

    def rows(self) -> list[slice]:
        """The samples of each chunk; one empty chunk for no samples."""
        return [slice(i, i + self.samples) for i in range(0, max(len(self.x), 1), self.samples)]

    def parts(self, rows: slice) -> Iterator[tuple[Part, int | None, float]]:
        """Each part of the probes of some samples, with its number of probes and its share of the mean."""
        if self.num_probes is None:
            yield Part(self.source, len(self.x), rows), None, 1.0
            return
        together = max(self.chunk_size // self.samples, 1)
        for first in range(0, self.num_probes, together):
            probes = slice(first, min(first + together, self.num_probes))
            count = probes.stop - first
            yield Part(self.source, len(self.x), rows, self.num_probes, probes), count, count / self.num_probes

    def measured(self, lin: Linearization, rows: slice) -> Iterator[tuple[M, float]]:
        """The moments by each part of the probes, with its share."""
        for part, count, share in self.parts(rows):
            used = slice(None) if isinstance(self.source, torch.Generator) else rows
            for generator, state in zip(self.generators[used], self.first_draw[used], strict=True):
                generator.set_state(state)
            # A linearisation of its own for each part, or the products of the last would wait for those of the next.
            yield self.measure(ReverseLinearization(lin.x, lin.value, chunk_size=count), part, count), share

    def first_pass(self) -> tuple[M, list[Tensor]]:
        """The moments without a graph, and the leaves that the map's value depends on."""
        found: list[M] = []
        leaves: dict[int, Tensor] = {}
        for rows in self.rows():
            self.starts.append(random_state())
            with torch.no_grad(), frugal():
                lin = linearize(self.f(rows), self.x[rows])
                found.append(_over_probes(list(self.measured(lin, rows))))
            leaves |= {id(leaf): leaf for leaf in _leaves(lin.value) if leaf is not lin.x}
            del lin
        return _over_samples(found), list(leaves.values())

    def gradients(self, weights: Tensor, terms: Callable[[M], Tensor], leaves: Sequence[Tensor]) -> list[Tensor | None]:
        """∇ Σ weights·terms with respect to the points ``(B, ...)`` and then each leaf, chunk by chunk."""
        totals: list[Tensor | None] = [None] * len(leaves)
        at_points: list[Tensor] = []
        before = [g.get_state() for g in self.generators]
        with outside_inference_mode(), torch.enable_grad(), self.autocast():
            for rows, state in zip(self.rows(), self.starts, strict=True):
                point = self.x[rows].detach().requires_grad_()
                with replayed(state), frugal():
                    lin = linearize(self.f(rows), point)
                at_point = torch.zeros_like(point)
                for moments, share in self.measured(lin, rows):
                    surrogate = share * (weights[rows] * terms(moments)).sum()
                    if not surrogate.requires_grad:
                        continue
                    # Retained: what the map closes over may have a graph of its own that every chunk needs.
                    found = torch.autograd.grad(surrogate, [point, *leaves], retain_graph=True, allow_unused=True)
                    at_point = at_point if found[0] is None else at_point + found[0]
                    for i, more in enumerate(found[1:]):
                        if more is not None:
                            previous = totals[i]
                            totals[i] = more.clone() if previous is None else previous.add_(more)
                    del moments, surrogate, found
                at_points.append(at_point)
                del lin
        for generator, after in zip(self.generators, before, strict=True):
            generator.set_state(after)
        return [torch.cat(at_points), *totals]


class _Recomputed(torch.autograd.Function):
    """A value whose gradient is found by running the map again."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Callable[[], list[Tensor | None]], x: Tensor, *_: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "recompute: a recomputed loss was differentiated with create_graph=True, but its gradient has no graph; "
                "expected recompute=False where its gradient is differentiated again"
            )
        found = ctx.gradients()
        wanted = ctx.needs_input_grad[2:]
        scaled = [g * outer.to(g.dtype) if g is not None and want else None for g, want in zip(found, wanted, strict=True)]
        return (None, None, *scaled)


def attach(
    value: Tensor, pairs: Pairs[M], weights: Tensor, terms: Callable[[M], Tensor], x: Tensor, leaves: Sequence[Tensor]
) -> Tensor:
    """The value with the gradient of Σ weights·terms, which costs nothing until it is asked for."""
    return _Recomputed.apply(value, lambda: pairs.gradients(weights, terms, leaves), x, *leaves)


def _over_probes(parts: list[tuple[M, float]]) -> M:
    """Moments of some samples by parts of the probes, as means over all of them."""
    first = parts[0][0]
    if len(parts) == 1:
        return first
    shares = [share for _, share in parts]
    joined: dict[str, Any] = {}
    for entry in fields(first):  # type: ignore[arg-type]
        values = [getattr(moments, entry.name) for moments, _ in parts]
        if entry.name == "num_products":
            joined[entry.name] = sum(values)
        elif entry.name.endswith("_stderr"):
            means = torch.stack([getattr(moments, entry.name.removesuffix("_stderr")) for moments, _ in parts])
            weights = means.new_tensor(shares).unsqueeze(-1)
            centred = (means - (weights * means).sum(0)).square()
            joined[entry.name] = ((weights * centred).sum(0) / (len(parts) - 1)).sqrt()
        elif isinstance(values[0], Tensor):
            joined[entry.name] = sum(share * value for share, value in zip(shares, values, strict=True))
    return replace(first, **joined)  # type: ignore[type-var]


def _over_samples(chunks: list[M]) -> M:
    """Moments of all samples, from those of chunks."""
    joined = {}
    for entry in fields(chunks[0]):  # type: ignore[arg-type]
        values = [getattr(moments, entry.name) for moments in chunks]
        if isinstance(values[0], Tensor):
            joined[entry.name] = torch.cat(values)
    return replace(chunks[0], **joined)  # type: ignore[type-var]


def _leaves(value: Tensor) -> list[Tensor]:
    """The leaf tensors that a value was computed from."""
    leaves: list[Tensor] = []
    waiting: list[Any] = [value.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                waiting.append(following)
    return leaves


def _autocast_state(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """The present autocast, to be entered again in the backward pass, where it is not."""
    if not torch.amp.is_autocast_available(device):
        return ExitStack
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=dtype, enabled=enabled)


def refuse_in_functorch() -> None:
    """Refuse what autograd.grad in a backward pass cannot do."""
    if in_functorch():
        raise ValueError("recompute: got True inside a torch.func transform, where it cannot work; expected False")
