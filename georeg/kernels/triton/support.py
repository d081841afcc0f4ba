"""Where Triton kernels are used, and what their launches share. Imports no Triton: it need not be installed."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SWITCH = "GEOREG_TRITON"
"""Environment variable: 0 leaves Triton alone."""

LIBRARY = torch.library.Library("georeg", "DEF")
"""The kernels are operators of torch's, so that its flop counter, its fake tensors and its profiler see them."""


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _is_interpreted() -> bool:
    """Whether Triton runs kernels by its interpreter, in NumPy, on any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(tensor: Tensor) -> str | None:
    """Why Triton's kernels do not take this tensor; None if they do.

    Example:
        >>> import torch
        >>> from georeg.kernels.triton import why_not
        >>> why_not(torch.ones(2, device="meta"))
        'kernels are for CUDA, the tensor is on meta'
    """
    if tensor.device.type != "cuda" and not (tensor.device.type == "cpu" and _is_interpreted()):
        return f"kernels are for CUDA, the tensor is on {tensor.device.type}"
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0"
    if not _has_triton():
        return "triton is not installed"
    if tensor.dtype != torch.float32 and not (_is_interpreted() and tensor.dtype == torch.float64):
        return f"kernels compute in float32, the tensor is {tensor.dtype}"
    if tensor.device.type == "cuda" and torch.cuda.get_device_capability(tensor.device) < (8, 0) and not torch.version.hip:
        return "kernels need compute capability 8.0"
    return None


def is_used(tensor: Tensor) -> bool:
    """Whether Triton's kernels take this tensor: float32 on CUDA, unless ``GEOREG_TRITON=0``."""
    return why_not(tensor) is None


def operator(schema: str, like: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a launch an operator ``torch.ops.georeg``; ``like`` makes outputs without computing them."""

    def define(launch: Callable[..., Any]) -> Callable[..., Any]:
        name = schema[: schema.index("(")]
        LIBRARY.define(schema)
        LIBRARY.impl(name, launch, "CUDA")
        LIBRARY.impl(name, launch, "CPU")
        torch.library.register_fake(f"georeg::{name}", like, lib=LIBRARY)
        found: Callable[..., Any] = getattr(torch.ops.georeg, name)
        return found

    return define


def accumulator(x: Tensor) -> Any:
    """Triton's type for sums of such numbers."""
    import triton.language as tl

    return tl.float64 if x.dtype == torch.float64 else tl.float32


def pointer(tensor: Tensor | None, like: Tensor) -> Tensor:
    """The tensor, or another one in the place of what a program does not touch."""
    return like if tensor is None or not tensor.numel() else tensor


def power_of_two(number: int) -> int:
    """The least power of two that is no less."""
    return 1 << max(number - 1, 0).bit_length()
