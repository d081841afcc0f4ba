"""A batch's random draws, and its parts: what the gate needs to send samples different ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

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
    if not len(like):
        return torch.empty_like(like)
    source = list(generator) if isinstance(generator, (list, tuple)) else generator
    noise: Tensor = diffusers.utils.torch_utils.randn_tensor(
        tuple(like.shape), generator=source, device=like.device, dtype=like.dtype
    )
    return noise


def rows_of(value: Any, rows: Tensor, batch: int) -> Any:
    """The given rows of every tensor with B rows in a structure of dicts, lists and tuples; anything else as it is."""

    def pick(tensor: Tensor) -> Tensor:
        if not tensor.ndim or len(tensor) != batch or len(rows) == batch:
            return tensor
        return tensor.index_select(0, rows.to(tensor.device))

    return tree_map_only(Tensor, pick, value)


def out_of_inference_mode(value: Any) -> Any:
    """The structure with a copy of each tensor that was born in inference mode, which cannot enter a graph."""
    return tree_map_only(Tensor, lambda tensor: tensor.clone() if tensor.is_inference() else tensor, value)


def generators_of(generator: Generator, rows: Tensor) -> Generator:
    """The generators of the given rows, where there is one for each sample."""
    if isinstance(generator, (list, tuple)):
        return [generator[i] for i in rows.tolist()]
    return generator
