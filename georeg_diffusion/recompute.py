"""Gradient checkpointing that chooses the same attention when it runs again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from georeg.linearize.base import differentiable_attention


@contextmanager
def same_attention_when_recomputed(network: nn.Module) -> Iterator[None]:
    """Within it, blocks that diffusers checkpoints keep differentiable attention where they ran with it.

    Their recomputation comes with ``loss.backward()``, outside of every context of the forward pass, and PyTorch refuses
    one that saves other tensors than the first run did.
    """
    with ExitStack() as restore:
        for module in network.modules():
            original = vars(module).get("_gradient_checkpointing_func")  # a module's own getattr takes its time to miss
            if original is None or hasattr(original, "keeps_attention"):
                continue
            module._gradient_checkpointing_func = _keeping(original)  # type: ignore[assignment]
            restore.callback(setattr, module, "_gradient_checkpointing_func", original)
        yield


def _keeping(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    def run(block: Callable[..., Any], *args: Any) -> Any:
        if torch.backends.cuda.flash_sdp_enabled():
            return checkpoint(block, *args)

        def differentiable(*inputs: Any) -> Any:
            with differentiable_attention():
                return block(*inputs)

        return checkpoint(differentiable, *args)

    run.keeps_attention = True  # type: ignore[attr-defined]
    return run
