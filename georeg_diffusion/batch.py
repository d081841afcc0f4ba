"""A batch's random draws, and its parts: what the gate needs to send samples different ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from georeg.random import Generator
from georeg_diffusion._compat import diffusers


def random_timesteps(batch: int, total: int, generator: Generator = None) -> Tensor:
    """Uniform timesteps ``(batch,)`` in [0, total), on the host."""
    if isinstance(generator, (list, tuple)):
        draws = [torch.randint(total, (1,), generator=g, device=g.device) for g in generator]
        return torch.cat(draws).cpu() if draws else torch.zeros(0, dtype=torch.long)
    device = "cpu" if generator is None else generator.device  # type: ignore[union-attr]
    return torch.randint(total, (batch,), generator=generator, device=device).cpu()  # type: ignore[arg-type]


def random_noise(like: Tensor, generator: Generator = None) -> Tensor:
    """Standard normal noise shaped like a batch."""
    if like.device.type == "meta":
        return torch.empty_like(like)
    source = list(generator) if isinstance(generator, (list, tuple)) else generator
    noise: Tensor = diffusers.utils.torch_utils.randn_tensor(
        tuple(like.shape), generator=source, device=like.device, dtype=like.dtype
    )
    return noise


def rows_of(value: Any, rows: Tensor, batch: int) -> Any:
    """The given rows of a tensor with B rows, also inside dicts, lists and tuples; anything else as it is."""
    if isinstance(value, Tensor) and value.ndim and len(value) == batch:
        return value if len(rows) == batch else value.index_select(0, rows.to(value.device))
    if isinstance(value, dict):
        return {name: rows_of(item, rows, batch) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([rows_of(item, rows, batch) for item in value])
    return value


def out_of_inference_mode(value: Any) -> Any:
    """A copy of what was born in inference mode, which cannot enter a graph; anything else as it is."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {name: out_of_inference_mode(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([out_of_inference_mode(item) for item in value])
    return value


def generators_of(generator: Generator, rows: Tensor) -> Generator:
    """The generators of the given rows, where there is one for each sample."""
    if isinstance(generator, (list, tuple)):
        return [generator[i] for i in rows.tolist()]
    return generator
