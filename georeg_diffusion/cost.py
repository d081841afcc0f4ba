"""What a training step costs: work and peak memory, counted also without computing, and seconds."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Step = Callable[[], Tensor]
"""Makes a loss, of which the backward pass is then taken."""


class PeakBytes(TorchDispatchMode):
    """The most bytes of tensor storages, made within it, that are alive at once.

    A dispatch mode sees them made and freed, on the meta device as anywhere; what a kernel uses within itself is not seen.

    Example:
        >>> import torch
        >>> from georeg_diffusion.cost import PeakBytes
        >>> with PeakBytes() as tracker:
        ...     for _ in range(3):
        ...         x = torch.ones(1000, device="meta")      # the next one is made before the last one goes
        >>> tracker.peak
        8000
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(t.untyped_storage()) for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in before:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._alive:
            return

        def freed(_: Any) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


class _NoModules(nullcontext[None]):
    """Torch's counter tracks modules by hooks that refuse an autograd.grad inside the forward pass; totals need none."""

    parents = frozenset({"Global"})


_aten = torch.ops.aten
# Torch's counter has formulas for its attention kernels on a GPU, and takes that on a CPU to be free.
_UNCOUNTED = {
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(
        g, q, k, v
    ),
}


def flops_of(run: Callable[[], object]) -> int:
    """Matrix products and convolutions of whatever ``run`` does, in floating-point operations.

    Example:
        >>> import torch
        >>> from georeg_diffusion.cost import flops_of
        >>> flops_of(lambda: torch.ones(2, 3, device="meta") @ torch.ones(3, 5, device="meta"))        # 2·2·3·5
        60
    """
    counter = FlopCounterMode(display=False, custom_mapping=_UNCOUNTED)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with counter:
        run()
    return int(counter.get_total_flops())


def work_of(step: Step) -> int:
    """Matrix products and convolutions of a step with its backward pass, in floating-point operations.

    Example:
        >>> import torch
        >>> from georeg_diffusion.cost import work_of
        >>> weight = torch.ones(3, 5, device="meta", requires_grad=True)
        >>> work_of(lambda: (torch.ones(2, 3, device="meta") @ weight).sum())        # 2·2·3·5 forward, as much backward
        120
    """
    return flops_of(lambda: step().backward())


def peak_bytes_of(step: Step) -> int:
    """Peak of a step with its backward pass, gradients of the parameters included and the parameters left out."""
    with PeakBytes() as tracker:
        step().backward()
    return tracker.peak


def seconds_of(*steps: Step, repeats: int, clock: Callable[[], float] = time.process_time) -> list[float]:
    """Seconds of steps with their backward passes by a clock, each the median, after one to warm up.

    They take turns, so that whatever else the machine does meets all of them alike.

    Args:
        steps: to time.
        repeats: of each, of which the median is taken.
        clock: by default the CPU time of this process.

    Example:
        >>> import torch
        >>> from georeg_diffusion.cost import seconds_of
        >>> x = torch.ones(1000, requires_grad=True)
        >>> len(seconds_of(lambda: x.sum(), lambda: x.exp().sum(), repeats=3))
        2
    """

    def trained(step: Step) -> Callable[[], None]:
        return lambda: step().backward()

    return [statistics.median(found) for found in times_of(*map(trained, steps), repeats=repeats, clock=clock)]


def times_of(*runs: Callable[[], object], repeats: int, clock: Callable[[], float] = time.process_time) -> list[list[float]]:
    """Seconds of whatever runs do, each repeat's, in turns, after one to warm up.

    Example:
        >>> from georeg_diffusion.cost import times_of
        >>> [len(times) for times in times_of(lambda: sum(range(10)), lambda: None, repeats=3)]
        [3, 3]
    """
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats + 1):
        for run, found in zip(runs, times, strict=True):
            started = clock()
            run()
            found.append(clock() - started)
    return [found[1:] for found in times]
