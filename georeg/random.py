"""White probe vectors: what is drawn, before any metric colours it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """A part of the probes of a whole batch: what is drawn is the whole, and what is given is the part.

    Attributes:
        source: one generator for the whole batch, or one for each sample.
        batch: B, samples of the whole.
        samples: rows of the part.
        num_probes, probes: K of the whole, and the part of them; None for as many as are asked for.
    """

    source: torch.Generator | Sequence[torch.Generator]
    batch: int
    samples: slice
    num_probes: int | None = None
    probes: slice | None = None

    def draw(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Probes ``(k, b, *event)``, from those ``(K, B, *event)`` of the whole."""
        count = shape[0] if self.num_probes is None else self.num_probes
        columns = self.probes or slice(None)
        if isinstance(self.source, torch.Generator):
            return _normal((count, self.batch, *shape[2:]), like, self.source)[columns, self.samples]
        chosen = self.source[self.samples]
        return _normal((count, len(chosen), *shape[2:]), like, chosen)[columns]


Generator: TypeAlias = torch.Generator | Sequence[torch.Generator] | Part | None
"""One generator for a whole batch, one for each sample (independent of how a batch is split), or torch's own."""

Probe: TypeAlias = Literal["gaussian", "sphere", "rademacher"]
PROBES: tuple[str, ...] = get_args(Probe)


def _normal(shape: tuple[int, ...], like: Tensor, generator: Generator) -> Tensor:
    """Standard normal numbers ``(k, B, ...)``; half precision is drawn in float32 and rounded."""
    dtype = torch.promote_types(like.dtype, torch.float32)

    def draw(size: tuple[int, ...], source: torch.Generator | None) -> Tensor:
        device = like.device
        if source is not None and source.device != device and device.type != "meta":
            return torch.randn(size, generator=source, dtype=dtype, device=source.device).to(device)
        return torch.randn(size, generator=None if device.type == "meta" else source, dtype=dtype, device=device)

    if isinstance(generator, Part):
        return generator.draw(shape, like)
    if generator is None or isinstance(generator, torch.Generator):
        return draw(shape, generator)
    if len(generator) != shape[1]:
        raise ValueError(
            f"generator: got a list of {len(generator)}, expected one torch.Generator for each of the "
            f"{shape[1]} samples; pass a single generator to draw for the whole batch"
        )
    if not generator:
        return draw(shape, None)
    return torch.stack([draw((shape[0], *shape[2:]), g) for g in generator], dim=1)


def fix_norm(w: Tensor, dim: int) -> Tensor:
    """Scale every probe ``w (k, B, *event)`` to Euclidean length √dim."""
    axes = tuple(range(2, w.ndim))
    length = torch.linalg.vector_norm(w, dim=axes, keepdim=True) if axes else w.abs()
    return w * (dim**0.5 / length.clamp_min(torch.finfo(w.dtype).tiny))


def white(shape: tuple[int, ...], like: Tensor, probe: str, generator: Generator) -> Tensor:
    """White probes w ``(k, B, *event)`` with E[w] = 0 and E[w wᵀ] = I.

    Args:
        shape: ``(k, B, *event)``.
        like: gives dtype and device.
        probe: ``"gaussian"``; ``"sphere"``, Gaussian directions of fixed length √d, whose variance
            vanishes where the operator is a multiple of the identity; or ``"rademacher"``, signs,
            which depend on the basis.
        generator: one generator, one for each sample, or None for torch's global one.
    """
    w = _normal(shape, like, generator)
    if probe == "rademacher":
        w = torch.where(w >= 0, 1.0, -1.0).to(w.dtype)
    elif probe == "sphere":
        w = fix_norm(w, w.shape[2:].numel())
    return w.to(like.dtype)


def random_state(generators: Sequence[torch.Generator] = ()) -> list[Tensor]:
    """The state of torch's randomness (of the CPU, and of the current CUDA device where one is in use) and of generators."""
    states = [torch.get_rng_state(), *(g.get_state() for g in generators)]
    return [*states, torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else states


def _restore(states: list[Tensor], generators: Sequence[torch.Generator]) -> None:
    torch.set_rng_state(states[0])
    for generator, state in zip(generators, states[1:], strict=False):
        generator.set_state(state)
    if len(states) > 1 + len(generators):
        torch.cuda.set_rng_state(states[-1])


@contextmanager
def replayed(states: list[Tensor], generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """Draw as from a state of :func:`random_state`, such as the same dropout masks; afterwards go on as before."""
    after = random_state(generators)
    _restore(states, generators)
    try:
        yield
    finally:
        _restore(after, generators)
