"""The h-space of a denoising network, by hooks: early exit, capture from a forward pass of your own, injection."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import georeg
from georeg.kernels import fused
from georeg.kernels.compiling import uncompiled
from georeg.linearize.base import differentiable_attention
from georeg.random import Generator
from georeg.regularizer import Regularizer
from georeg.shared import Shared
from georeg_diffusion.backbones import backbone_of, family_of, run_network, unwrapped
from georeg_diffusion.recompute import same_attention_when_recomputed


class _Reached(Exception):  # noqa: N818 (control flow, not an error: the encoder is done)
    pass


_fused = Shared(fused)


@contextmanager
def _as_written(network: nn.Module) -> Iterator[None]:
    """Let what torch.compile has compiled run as it was written, and checkpointed blocks run again as they first did."""
    is_compiled = any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in network.modules())
    with uncompiled() if is_compiled else nullcontext(), same_attention_when_recomputed(network):
        yield


class Capture:
    """What a captured forward pass left behind: x_t, h, and the graph between them.

    Attributes:
        x: the network's input, a tensor that requires grad.
        h: the h-space feature computed from it.
    """

    def __init__(self) -> None:
        self._x: Tensor | None = None
        self._h: Tensor | None = None

    @property
    def x(self) -> Tensor:
        if self._x is None:
            raise RuntimeError("x: the network has not run inside `with HSpace(network).capture()` yet")
        return self._x

    @property
    def h(self) -> Tensor:
        if self._h is None:
            raise RuntimeError("h: the network has not run inside `with HSpace(network).capture()` yet")
        return self._h

    def isometry(
        self, loss: Regularizer | None = None, *, groups: Tensor | None = None, generator: Generator = None, **options: Any
    ) -> georeg.LossOutput:
        """The isometry loss of the encoder x_t ↦ h, from this very forward pass.

        Args:
            loss: a georeg loss that you keep (needed for ``momentum``); by default a new
                ``georeg.IsometryLoss(domain=georeg.Sphere(), normalize=True, **options)``.
            groups: labels ``(B,)`` such as timestep bins, see :class:`georeg.IsometryLoss`.
            generator: seeds the probes.
            **options: arguments of :class:`georeg.IsometryLoss`, such as ``domain`` and ``estimator``.
        """
        if loss is None:
            loss = georeg.IsometryLoss(**{"domain": georeg.Sphere(), "normalize": True, **options})
        elif options:
            raise TypeError(f"loss: got a loss and the options {sorted(options)}, expected one or the other")
        return loss.of_graph(self.x, self.h, groups, generator=generator)


class HSpace:
    """The map x_t ↦ h inside a denoising network.

    Args:
        network: any module called as ``network(sample, timestep, **conditioning)``.
        at: dotted name of the submodule whose output is h; None takes the family's default, the middle
            block of a U-Net.

    Hooks live only inside ``encode``, ``capture`` and ``inject`` and are removed after an exception too.

    Raises:
        TypeError: a network of no known family, without ``at``.
        ValueError: ``at`` names no submodule; a network without a middle block, without ``at``.

    Example:
        >>> import torch
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion import HSpace
        >>> unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        ...     norm_num_groups=4, block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2)
        >>> x, t = torch.randn(2, 1, 8, 8), torch.tensor([10, 900])
        >>> HSpace(unet).encode(x, t).shape
        torch.Size([2, 16, 4, 4])
        >>> with HSpace(unet).capture() as c:
        ...     prediction = unet(x, t).sample
        >>> c.isometry().loss.requires_grad
        True
    """

    def __init__(self, network: nn.Module, at: str | None = None) -> None:
        self.network = network
        if at is None:
            self.module = backbone_of(network).h_module(unwrapped(network))
        else:
            inner = unwrapped(network)
            names = [name for name, _ in inner.named_modules() if name]
            if at not in names:
                raise ValueError(
                    f"at: got {at!r}, expected the name of a submodule of {type(inner).__name__}, such as "
                    f"{', '.join(name for name in names if '.' not in name)}"
                )
            self.module = inner.get_submodule(at)

    def encode(self, x_t: Tensor, t: Tensor | int, **conditioning: Any) -> Tensor:
        """h ``(B, ...)`` at x_t ``(B, ...)``; nothing behind the h-space module runs."""
        reached: list[Tensor] = []

        def stop(_module: nn.Module, _args: Any, output: Any) -> None:
            reached.append(self._feature(output))
            raise _Reached

        handle = self.module.register_forward_hook(stop)
        try:
            with _as_written(self.network):
                run_network(self.network, x_t, t, conditioning)
        except _Reached:
            return reached[0]
        finally:
            handle.remove()
        raise RuntimeError("at: the network ran to its end without passing the h-space module; name another with at=")

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        """Keep x_t and h of the network's next forward passes (the last one counts), with the graph between them.

        Until h is reached georeg's own operators run in place of torch's (:func:`georeg.kernels.fused`), and inside
        gradient checkpointing attention as plain matrix products, because torch's fused kernels have no second
        derivative; behind it, whatever the model uses. What torch.compile has compiled runs as it was written until
        the block ends: compiled graphs have no second derivative, and pass by hooks that came later.
        """
        captured, network = Capture(), unwrapped(self.network)
        parameter = next(iter(inspect.signature(network.forward).parameters))
        with _as_written(self.network), ExitStack() as hooks, ExitStack() as operators:

            def enter(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
                if not torch.is_grad_enabled():
                    raise RuntimeError("capture: gradients are off (no_grad or inference_mode), expected them on")
                sample = args[0] if args else kwargs[parameter]
                captured._x = sample if sample.requires_grad else sample.detach().requires_grad_()
                captured._h = None
                operators.enter_context(differentiable_attention())
                operators.enter_context(_fused())
                return ((captured._x, *args[1:]), kwargs) if args else (args, {**kwargs, parameter: captured._x})

            def reach(_module: nn.Module, _args: Any, output: Any) -> None:
                # A recomputation by gradient checkpointing passes here again, during backward: it is not a new h.
                if captured._h is None:
                    captured._h = self._feature(output)
                    operators.close()

            for handle in (
                network.register_forward_pre_hook(enter, with_kwargs=True),
                self.module.register_forward_hook(reach),
            ):
                hooks.callback(handle.remove)
            yield captured

    @contextmanager
    def inject(self, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Put edit(h) in the place of h in every forward pass inside the block; what lies behind it sees nothing else.

        An edit that returns h itself only looks on. What torch.compile has compiled runs as it was written until the
        block ends.

        Raises:
            ValueError: from the forward pass, where the edit returns anything but a tensor of h's shape.
        """

        def replace(_module: nn.Module, _args: Any, output: Any) -> Any:
            h = self._feature(output)
            edited = edit(h)
            if edited is h:
                return None
            if not isinstance(edited, Tensor) or edited.shape != h.shape:
                got = f"shape {tuple(edited.shape)}" if isinstance(edited, Tensor) else type(edited).__name__
                raise ValueError(f"edit: returned {got}, expected a tensor of h's shape {tuple(h.shape)}")
            edited = edited.to(h)
            return tuple(edited if part is h else part for part in output) if isinstance(output, tuple) else edited

        handle = self.module.register_forward_hook(replace)
        try:
            with _as_written(self.network):
                yield
        finally:
            handle.remove()

    def _feature(self, output: Any) -> Tensor:
        feature = family_of(self.network).feature(self.module, output)
        if not isinstance(feature, Tensor):
            raise TypeError(f"at: the h-space module returned {type(feature).__name__}, expected a tensor")
        return feature
