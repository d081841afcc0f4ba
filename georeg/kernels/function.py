"""Autograd functions at the price of torch's own operators."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function, forward_ad

from georeg.kernels.mode import in_functorch


class Rule(Function):
    """An autograd function with ``setup_context``, all of whose arguments are given by position.

    ``Function.apply`` works out the signature of ``forward`` at each call, for default arguments that there are none of:
    80 µs of a call that takes 12 without. An isometry step makes hundreds of them, while a GPU waits. Where nothing is
    recorded, in the last backward pass, ``forward`` alone runs.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if in_functorch():
            return super().apply(*args)
        if not torch.is_grad_enabled() and forward_ad._current_level < 0:
            return cls.forward(*args)
        return super(Function, cls).apply(*args)  # type: ignore[misc]  # where torch's own ends
