"""Find a batch norm that makes a map mix its samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge


def upstream(node: Any, stop: Any) -> Iterator[Any]:
    """The nodes of a graph from which ``node`` was computed, itself included, not looking beyond ``stop``."""
    seen, waiting = {node}, [node]
    while waiting:
        current = waiting.pop()
        yield current
        if current is stop:
            continue
        for parent, _ in current.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                waiting.append(parent)


def check_samplewise(x: Tensor, y: Tensor) -> None:
    """Refuse y = f(x) whose graph has a batch norm over the batch between x and y.

    Its statistics couple the samples, so that one product for the whole batch is not the product of each
    sample's Jacobian. Instance norm is the same kernel at a batch of one and passes.

    Raises:
        ValueError: such a batch norm.
    """
    if y.grad_fn is None or y is x:
        return
    source = get_gradient_edge(x).node
    for node in upstream(y.grad_fn, source):
        if (
            node is not source
            and "BatchNorm" in node.name()
            and getattr(node, "_saved_training", False)
            and len(node._saved_input) > 1
            and any(parent is source for parent in upstream(node, source))
        ):
            raise ValueError(
                "f: a batch norm in training mode mixes the samples, so the Jacobian of each sample alone does not exist; "
                "call .eval() on it, or use group norm or layer norm"
            )
