"""The map x_t ↦ h of a model under its conditions, whose Jacobian directions are read off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from georeg_diffusion.denoiser import Denoiser
from georeg_diffusion.h_space import HSpace

Encode = Callable[[Tensor], Tensor]


def encoder_at(denoiser: Denoiser, t: Tensor | float, *, at: str | None = None) -> Encode:
    """x_t ``(B, ...)`` ↦ h ``(B, ...)`` at one timestep, from the conditional branch, in float32 or better.

    Args:
        denoiser: the model with its conditions, one row or one for each sample.
        t: the network's timestep.
        at: the submodule whose output is h, see :class:`georeg_diffusion.HSpace`.

    Example:
        >>> import torch
        >>> from georeg_diffusion import Bundle, Denoiser
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.editing.encoder import encoder_at
        >>> unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        ...     norm_num_groups=4, block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2)
        >>> encoder_at(Denoiser(Bundle(unet, diffusers.DDPMScheduler())), 900)(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 16, 4, 4])
    """
    space = HSpace(denoiser.bundle.network, at)
    parameter = next(denoiser.bundle.network.parameters(), None)

    def encode(x: Tensor) -> Tensor:
        inner = x if parameter is None else x.to(parameter)
        conditions = denoiser
        if denoiser.num_rows > 1 and len(x) > denoiser.num_rows:
            # Products with a Jacobian may run several copies of the samples at once, one after the other.
            conditions = denoiser.rows([i % denoiser.num_rows for i in range(len(x))])
        steps = torch.as_tensor(t, device=inner.device).expand(len(x))
        h = space.encode(inner, steps, **conditions.conditioning(len(x), like=inner))
        return h.to(torch.promote_types(x.dtype, torch.float32))

    return encode


@contextmanager
def single_precision(network: nn.Module) -> Iterator[None]:
    """Half-precision weights widened to float32 inside the block, and back to the very same: a Jacobian in half precision
    has no singular vectors worth the name.

    Example:
        >>> import torch
        >>> from georeg_diffusion.editing.encoder import single_precision
        >>> layer = torch.nn.Linear(2, 2).half()
        >>> with single_precision(layer):
        ...     print(layer.weight.dtype)
        torch.float32
        >>> layer.weight.dtype
        torch.float16
    """
    tensors = (*network.parameters(), *network.buffers())
    half = [(tensor, tensor.data) for tensor in tensors if tensor.dtype in (torch.float16, torch.bfloat16)]
    try:
        for tensor, data in half:
            tensor.data = data.float()
        yield
    finally:
        for tensor, data in half:
            tensor.data = data
