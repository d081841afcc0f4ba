"""Where sampling starts: noise that follows from a seed alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def seeded_noise(shape: tuple[int, ...], seeds: Iterable[int]) -> Tensor:
    """Standard normal noise ``(B, *shape)`` on the CPU, row i drawn from seed i alone.

    So a sample does not depend on the batch it was made in, nor on the device.

    Example:
        >>> from georeg_diffusion.sampling.noise import seeded_noise
        >>> bool((seeded_noise((1, 4, 4), [3, 7])[1] == seeded_noise((1, 4, 4), [7])[0]).all())
        True
    """
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, *shape)
