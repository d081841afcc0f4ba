"""Does a map act on each sample alone? The products with its Jacobian rely on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}


@contextmanager
def _restored(f: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put back the buffers that running f in train mode changes (the running means of a batch norm)."""
    buffers = list(f.buffers()) if isinstance(f, nn.Module) else []
    before = [b.clone() for b in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)


def _suspects(f: Callable[[Tensor], Tensor]) -> str:
    names = [
        f"{name or 'f'} ({type(module).__name__})"
        for name, module in (f.named_modules() if isinstance(f, nn.Module) else ())
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)
    ]
    return f"Here: {', '.join(names)}. " if names else ""


def assert_samplewise(f: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Assert that f(x)[i] depends on x[i] alone, as every loss and diagnostic of georeg supposes.

    The contract is what lets one product serve a whole batch: a batch norm in train mode breaks it, and the
    moments are then those of no map. Checked by changing samples and looking at the others: for each bit of
    the sample's index once those with and once those without it, so every pair is separated, in
    2⌈log₂ B⌉ + 1 runs. Dropout is replayed (the shape stays the same); buffers are put back.

    Args:
        f: the map or module, as it will be used (train or eval mode).
        x: points ``(B, ...)``, B ≥ 2.

    Raises:
        AssertionError: naming a sample that moves with the others, and the batch norms found.
        ValueError: fewer than two samples, or another number of outputs.

    Example:
        >>> import torch, georeg
        >>> georeg.testing.assert_samplewise(torch.nn.LayerNorm(4), torch.randn(3, 4))
        >>> georeg.testing.assert_samplewise(torch.nn.BatchNorm1d(4), torch.randn(3, 4))
        Traceback (most recent call last):
        AssertionError: f: its value at sample ...
    """
    if x.ndim == 0 or len(x) < 2:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected at least two samples (B, ...): one has no others")
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    changed = x + (0.1 + x.detach().abs().mean()) * noise.to(x)
    seed = torch.initial_seed()
    index = torch.arange(len(x), device=x.device)

    def run(points: Tensor) -> Tensor:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            value = f(points)
        if len(value) != len(points):
            raise ValueError(
                f"f: returned shape {tuple(value.shape)} for {len(points)} points, expected ({len(points)}, ...)"
            )
        return value.flatten(1)

    with _restored(f):
        reference = run(x)
        for bit in range((len(x) - 1).bit_length()):
            for kept in (index >> bit & 1 == 0, index >> bit & 1 == 1):
                value = run(torch.where(kept.reshape(-1, *(1,) * (x.ndim - 1)), x, changed))
                drift = torch.where(kept, (value - reference).abs().amax(1), 0)
                scale = max(1.0, float(reference.abs().max()))
                worst = int(drift.argmax())
                assert float(drift[worst]) <= _TOLERANCE.get(reference.dtype, 2e-2) * scale, (
                    f"f: its value at sample {worst} moves by {float(drift[worst]):.3g} when only other samples change, "
                    "expected 0: f acts on each sample alone. A batch norm in train mode does this: call f.eval(), or use "
                    "GroupNorm. "
                    f"{_suspects(f)}"
                )
