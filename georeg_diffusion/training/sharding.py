"""FSDP2 (torch's ``fully_shard``): between steps each process keeps a part of the parameters, of Adam and of the average.

The whole objective is one unit. A step gathers the parameters once, before anything runs, and reduces the gradients once,
after everything has. In between each process runs passes of its own (the gate lets other samples through): gathered block by
block, in the passes, processes would wait for partners that never come. It also keeps parameters in place for the second
derivatives. Weights, Adam and average go to checkpoints whole, so that any number of processes can go on from there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from georeg_diffusion.errors import RunError
from georeg_diffusion.objective import ObjectiveOutput

_SWITCH, _META_LOADING = "ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"


def wants_shards(mixed_precision: str = "no") -> bool:
    """Whether accelerate was told to use FSDP2: by its configuration, or ``ACCELERATE_USE_FSDP=true FSDP_VERSION=2``.

    Raises:
        RunError: it was told something that training does not do: FSDP1, offloading, fp16.
    """
    if os.environ.get(_SWITCH, "false").lower() != "true":
        return False
    # Set, transformers would leave text encoders empty on all processes but the first.
    os.environ[_META_LOADING] = "false"
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise RunError(
            f"accelerate: got FSDP version {version}, expected 2 (fsdp_version: 2 in its configuration, or FSDP_VERSION=2): "
            "the first one keeps no parameters that can be differentiated twice"
        )
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise RunError(
            "accelerate: got fsdp_offload_params, expected none: shards stay on their device; leave it out, and save memory "
            "with --gradient-checkpointing, --recompute or --lora"
        )
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true":
        raise RunError("accelerate: got fsdp_activation_checkpointing, expected none; pass --gradient-checkpointing instead")
    if mixed_precision == "fp16":
        raise RunError(
            "--mixed-precision: got fp16 with FSDP2, expected no or bf16: no scaler of gradients was tested there"
        )
    return True


@contextmanager
def own_sharding() -> Iterator[None]:
    """Within it accelerate sets up plain data parallelism, on CPUs as on GPUs: what is sharded, and how, is decided here."""
    before = os.environ.pop(_SWITCH, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[_SWITCH] = before


def distributed(accelerator: Any, objective: nn.Module) -> Any:
    """The objective on its device, made one of several processes: by DDP, or in shards where FSDP2 is asked for.

    In shards, parameters are new ones from here on; an optimiser is made from those.

    Raises:
        RunError: a torch that has no FSDP2 for CPUs.
    """
    if accelerator.num_processes == 1 or not wants_shards():
        return accelerator.prepare(objective)
    if accelerator.device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        raise RunError(f"accelerate: got FSDP2 on CPUs with torch {torch.__version__}, expected a newer torch, or DDP")
    return Shards(accelerator, objective.to(accelerator.device))


class Shards(nn.Module):
    """An objective whose parameters lie in shards outside of its steps.

    Args:
        accelerator: of the run.
        objective: on its device.
    """

    def __init__(self, accelerator: Any, objective: nn.Module) -> None:
        super().__init__()
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        self.autocast = accelerator.autocast
        self.unit: Any = fully_shard(_Unit(objective), mesh=mesh)
        self.is_first = self._was_last = True

    def forward(self, *args: Any, **kwargs: Any) -> ObjectiveOutput:
        """What the objective gives; as under DDP, a step begins with the buffers of the first process."""
        if self.is_first:
            for buffer in self.buffers():
                dist.broadcast(buffer, 0)
        with self.autocast():
            hidden: _Hidden = self.unit(*args, **kwargs)[1]
        return hidden.output

    def synchronise(self, is_last: bool) -> None:
        """Whether the micro-batch that comes is a step's last one, whose backward pass ends with everybody's gradients."""
        self.is_first, self._was_last = self._was_last, is_last
        self.unit.set_requires_gradient_sync(is_last)
        self.unit.set_reshard_after_backward(is_last)


class _Unit(nn.Module):
    """What is sharded; its output shows torch the loss alone.

    By hooks on the tensors that it finds there torch learns that the backward pass begins. The loss's two terms are
    differentiated for the log, by some processes and not by others, who would wait for each other.
    """

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, _Hidden]:
        """The loss, and all."""
        output = self.objective(*args, **kwargs)
        return output.loss, _Hidden(output)


class _Hidden:
    """A box that torch does not look into."""

    def __init__(self, output: ObjectiveOutput) -> None:
        self.output = output


def saved_whole(optimizer: Optimizer) -> Optimizer:
    """The optimiser, whose state is whole when it is saved and cut into shards when it is loaded. All processes save."""

    def cut(chosen: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        parameters = [p for group in chosen.param_groups for p in group["params"]]
        parts = {i: {name: like(value, parameters[i]) for name, value in part.items()} for i, part in state["state"].items()}
        return {**state, "state": parts}

    optimizer.register_state_dict_post_hook(lambda _, state: whole(state))
    optimizer.register_load_state_dict_pre_hook(cut)
    return optimizer


def whole(tree: Any) -> Any:
    """A tensor, or tensors in lists and dictionaries, with shards put together on all processes, which all call.

    Example:
        >>> import torch
        >>> from georeg_diffusion.training.sharding import whole
        >>> whole({"weight": torch.ones(2)})                      # what is not in shards stays as it is
        {'weight': tensor([1., 1.])}
    """
    return tree_map_only(DTensor, lambda t: t.detach().full_tensor(), tree)


def like(value: Any, template: Any) -> Any:
    """The value in shards and on the device of its template, tensor by tensor in lists and dictionaries of the same keys."""
    if isinstance(template, Mapping) and isinstance(value, Mapping):
        return {name: like(part, template.get(name)) for name, part in value.items()}
    if isinstance(template, list) and isinstance(value, list) and len(template) == len(value):
        return [like(part, model) for part, model in zip(value, template, strict=True)]
    if not (isinstance(template, Tensor) and isinstance(value, Tensor) and value.shape == template.shape):
        return value
    moved = value.to(template.device)
    return distribute_tensor(moved, template.device_mesh, template.placements) if isinstance(template, DTensor) else moved


@contextmanager
def gathered(network: nn.Module, values: Mapping[Tensor, Tensor] | None = None) -> Iterator[None]:
    """Within it the network has whole parameters, or in place of some of them other values; all processes enter.

    Args:
        network: with its parameters in shards or not.
        values: for some of its parameters, such as their averages.
    """
    before = gather(network, values)
    try:
        yield
    finally:
        for module, name, parameter in before:
            module._parameters[name] = parameter


def gather(network: nn.Module, values: Mapping[Tensor, Tensor] | None = None) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """As :func:`gathered`, for good; returns the parameters that were replaced, with their places."""
    made: dict[Tensor, nn.Parameter] = {}
    replaced = []
    for module in network.modules():
        for name, parameter in module._parameters.items():
            value = None if parameter is None else (values or {}).get(parameter, parameter)
            if parameter is None or (value is parameter and not isinstance(parameter, DTensor)):
                continue
            if parameter not in made:
                made[parameter] = nn.Parameter(whole(value).detach(), requires_grad=parameter.requires_grad)
            module._parameters[name] = made[parameter]
            replaced.append((module, name, parameter))
    return replaced
