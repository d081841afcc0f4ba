"""Run a model with this package's operators in place of torch's own; nothing on the model is changed."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from georeg.kernels.attention import attention
from georeg.kernels.convolution import convolution
from georeg.kernels.group_norm import group_norm, group_norm_silu
from georeg.kernels.linear import is_by_channels, is_dense, linear
from georeg.kernels.mode import frugal, in_functorch

NARROW_WIDTH, NARROW_KEYS = 8, range(128, 513)
"""Heads of at most so many features and so many keys take torch's fused attention on a CPU 1.4 to 1.6 times the time of
this package's. With fewer keys both take as long, with more torch uses several cores better."""


def _in_checkpoint() -> bool:
    """Whether a region of ``torch.utils.checkpoint`` is being run, which runs again in a backward pass that sees no mode."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if top is None:  # an older torch does not show its hooks, but who calls can be seen
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame.f_globals.get("__name__") != "torch.utils.checkpoint":
            frame = frame.f_back
        return frame is not None
    hooks = top(True)
    return hooks is not None and getattr(hooks[0], "__module__", None) == "torch.utils.checkpoint"


def _is_plain(value: Any) -> bool:
    """Whether a rule may have this argument: no subclass of Tensor with an own mind, and only real floating point."""
    return not isinstance(value, Tensor) or (type(value) in (Tensor, nn.Parameter) and value.is_floating_point())


def _unchanged(tensor: Tensor) -> Callable[[Tensor], bool]:
    """Whether another is this very tensor, with nothing written to it since; it is not kept alive."""
    reference, version = weakref.ref(tensor), tensor._version
    return lambda other: reference() is other and other._version == version


class _Replacing(TorchFunctionMode):
    """Replace operators as they are called, where a derivative can be asked for at all."""

    def __init__(self, rules: dict[Any, Callable[..., Tensor]]) -> None:
        super().__init__()
        self._rules = rules

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():  # torch.compile has derivatives of its own, once, and traces this very method
            return func(*args, **kwargs)
        rule = self._rules.get(func)
        if rule is not None:
            # An operator is opaque to other modes, as a kernel is: each would be asked about all that a rule looks at.
            with torch._C.DisableTorchFunction():
                if _can_replace((*args, *kwargs.values())):
                    return rule(*args, **kwargs)
        return func(*args, **kwargs)


class _Fused(_Replacing):
    """All that this package has a rule for."""

    def __init__(self) -> None:
        self._normalised: tuple[Callable[[Tensor], bool], tuple[Any, ...]] | None = None
        super().__init__(
            {
                nn.functional.conv1d: convolution,
                nn.functional.conv2d: convolution,
                nn.functional.conv3d: convolution,
                nn.functional.linear: linear,
                nn.functional.group_norm: self._group_norm,
                nn.functional.silu: self._silu,
                nn.functional.scaled_dot_product_attention: attention,
            }
        )

    def _group_norm(
        self, input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor:
        if input.ndim < 2 or num_groups < 1 or input.shape[1] % num_groups or input.numel() == num_groups:
            return nn.functional.group_norm(input, num_groups, weight, bias, eps)  # torch says what is wrong
        if input.device.type == "cuda" and torch.is_autocast_enabled("cuda"):  # autocast runs it in float32 there
            input = input.to(torch.promote_types(input.dtype, torch.float32))
        z = group_norm(input, num_groups, weight, bias, eps)
        self._normalised = _unchanged(z), (input, num_groups, weight, bias, eps)
        return z

    def _silu(self, input: Tensor, inplace: bool = False) -> Tensor:
        """Of a group norm's output: both as one operator, from that norm's input."""
        if self._normalised is not None and not inplace:
            is_its_output, arguments = self._normalised
            if is_its_output(input):
                return group_norm_silu(*arguments)
        return nn.functional.silu(input, inplace)


def _can_replace(values: tuple[Any, ...]) -> bool:
    return (torch.is_grad_enabled() or in_functorch()) and not _in_checkpoint() and all(map(_is_plain, values))


def fused() -> AbstractContextManager[Any]:
    """Within it, convolutions, large linear layers, group norms (with a SiLU behind them) and attention are this
    package's operators.

    Their derivatives compute and keep no more than is asked for. Values, dtypes (under autocast too) and derivatives of
    every order are torch's own, to rounding. What runs without gradients, on subclasses of ``Tensor`` or inside
    ``torch.utils.checkpoint`` or ``torch.compile`` is left to torch. Backward passes may run after the context has ended.

    Example:
        >>> import torch
        >>> from georeg.kernels import fused
        >>> layer, x = torch.nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
        >>> with fused():
        ...     y = layer(x)
        >>> torch.equal(y, layer(x)), type(y.grad_fn).__name__
        (True, '_ConvolutionBackward')
    """
    return _Fused()


def _narrow(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    is_narrow = (
        query.device.type == "cpu" and query.shape[-1] <= NARROW_WIDTH and query.dtype in (torch.float32, torch.float64)
    )
    if not is_narrow or key.ndim < 2 or key.shape[-2] not in NARROW_KEYS:
        return nn.functional.scaled_dot_product_attention(query, key, value, *args, **kwargs)
    with frugal():
        return attention(query, key, value, *args, **kwargs)


def _by_channels(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    is_ours = input.device.type == "cpu" and is_dense(input) and is_by_channels(input)
    return (linear if is_ours else nn.functional.linear)(input, weight, bias)


def first_order() -> AbstractContextManager[Any]:
    """Within it, this package's operators are used where they are faster than torch's for a single derivative, on a CPU.

    They are attention with heads of at most 8 features and 128 to 512 keys (diffusers' U-Nets have heads of 8 unless told
    otherwise), and large linear layers of what lies by channels, as an image's pixels do. :func:`fused` is for what is
    differentiated twice, and keeps more. What is left to torch there is left to it here.

    Example:
        >>> import torch
        >>> from georeg.kernels import first_order
        >>> q = torch.randn(2, 4, 128, 8, requires_grad=True)
        >>> with first_order():
        ...     y = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        >>> torch.allclose(y, torch.nn.functional.scaled_dot_product_attention(q, q, q), atol=1e-5)
        True
    """
    return _Replacing({nn.functional.scaled_dot_product_attention: _narrow, nn.functional.linear: _by_channels})
