"""Pooled gradients over micro-batches: two passes, exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any, TypeVar

import torch

from georeg.pooling import Totals
from georeg.random import random_state, replayed
from georeg.regularizer import Regularizer

T = TypeVar("T")


def accumulate(
    loss: Regularizer[Any], calls: Sequence[Callable[[], T]], *, generators: Sequence[torch.Generator] = ()
) -> Iterator[T]:
    """Run micro-batches so that the gradients of their losses add up to that of the loss of the whole batch.

    A ratio of means is not the mean of the micro-batches' ratios. So a first pass runs every call for its
    detached sums alone, these are pooled over micro-batches (and, once, over ranks), and the second pass
    yields each call's own result with the loss Σ_local Σ_k ∂F/∂m_k·s_k in gradient and F/(number of calls)
    in value. The price is the first pass: the products without their graphs. Both passes see the same
    probes and dropout masks: torch's random state (of the CPU and the current CUDA device) is replayed.

    Args:
        loss: a loss with ``scope="global"``, and with ``num_groups`` if there are groups.
        calls: one per micro-batch; each calls ``loss`` (at any depth, such as in an objective that holds it)
            and returns something to backpropagate. Each runs twice, so it must have no other effect: a batch
            norm in train mode would count the batch twice.
        generators: every ``torch.Generator`` that the calls draw from, to be replayed as well.

    Yields:
        The results of the calls, in order. Backpropagate each before taking the next. Under DDP the gradient
        is averaged over ranks as usual; accelerate divides each loss by the number of micro-batches, so
        multiply by it.

    Raises:
        ValueError: a loss of another scope; no calls.

    Example:
        >>> import torch, georeg
        >>> from functools import partial
        >>> f = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> loss = georeg.IsometryLoss(scope="global", normalize=True)
        >>> micro_batches = torch.randn(12, 3).split([7, 4, 1])
        >>> for out in georeg.accumulate(loss, [partial(loss, f, x) for x in micro_batches]):
        ...     out.loss.backward()
        >>> int(out.count)
        12
    """
    if loss.scope != "global":
        raise ValueError(
            f"loss: got scope={loss.scope!r}, expected scope='global', which pools over micro-batches and ranks"
        )
    if not calls:
        raise ValueError("calls: got none, expected one for each micro-batch")
    states = []
    with loss.collecting() as collected:
        for call in calls:
            states.append(random_state(generators))
            call()
    device = None if loss.running is None else loss.running.weight.device
    none = torch.zeros(loss.num_groups or 1, loss.num_statistics, dtype=torch.float64, device=device)
    nothing = Totals(none, none[:, 0])
    pooled = loss.pool(reduce(add, collected) if collected else nothing, share=1 / max(len(collected), 1))
    for call, state in zip(calls, states, strict=True):
        with loss.given(pooled), replayed(state, generators):
            result = call()
        yield result
