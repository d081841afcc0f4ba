"""What the rest needs to know about a denoising network: where h is, how it is called, what conditions it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from georeg.registry import registered


class Backbone(ABC):
    """A family of denoising networks. A new one is one file here, decorated with ``@register("backbone", name)``.

    A conditioning is a flat mapping of tensors, one row for each sample, by the names the network's forward gives them.
    """

    @abstractmethod
    def matches(self, network: Any) -> bool:
        """Whether a network is of this family."""

    @abstractmethod
    def h_module(self, network: Any) -> nn.Module:
        """The submodule whose output is h by default."""

    @abstractmethod
    def stride(self, network: Any) -> int:
        """The number by which height and width must be divisible."""

    def inputs(self, x_t: Tensor, t: Tensor | int, conditioning: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of the network's forward."""
        return {"sample": x_t, "timestep": t, **conditioning}

    def feature(self, module: nn.Module, output: Any) -> Any:
        """The part of an h-space module's output that is h: the first of a tuple, unless the family says otherwise."""
        return output[0] if isinstance(output, tuple) else output

    def num_classes(self, network: Any) -> int | None:
        """How many class labels there are; None where the network takes none."""
        return None

    def null_class(self, network: Any) -> int | None:
        """The label that stands for no class in classifier-free guidance; None where there is none."""
        return None

    def takes_text(self, network: Any) -> bool:
        """Whether the network is conditioned on embedded prompts."""
        return False


class Unknown(Backbone):
    """A network of no known family, called as ``network(sample, timestep, **conditioning)``."""

    def matches(self, network: Any) -> bool:
        return True

    def h_module(self, network: Any) -> nn.Module:
        known = ", ".join(registered("backbone"))
        raise TypeError(
            f"network: got {type(network).__name__}, whose h-space is not known (known: {known}); "
            "name the submodule yourself, as in HSpace(network, at='mid_block')"
        )

    def stride(self, network: Any) -> int:
        return 1


def unwrapped(network: Any) -> Any:
    """The network inside what torch.compile, peft and DistributedDataParallel put around it."""
    while True:
        if hasattr(network, "_orig_mod"):
            network = network._orig_mod
        elif isinstance(network, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            network = network.module
        elif type(network).__name__.startswith("Peft") and hasattr(network, "get_base_model"):
            network = network.get_base_model()
        else:
            return network


def family_of(network: Any) -> Backbone:
    """The family of a network, :class:`Unknown` for others."""
    inner = unwrapped(network)
    for family in registered("backbone").values():
        backbone: Backbone = family()  # type: ignore[operator]
        if backbone.matches(inner):
            return backbone
    return Unknown()


def backbone_of(network: Any) -> Backbone:
    """The family of a network.

    Raises:
        TypeError: naming the families that are known, and the way round.
    """
    backbone = family_of(network)
    if isinstance(backbone, Unknown):
        backbone.h_module(network)
    return backbone


def run_network(network: Any, x_t: Tensor, t: Tensor | int, conditioning: Mapping[str, Any]) -> Any:
    """The network's own output at x_t, whatever its family calls its arguments."""
    family = family_of(network)
    if isinstance(family, Unknown):
        return network(x_t, t, **conditioning)
    return network(**family.inputs(x_t, t, conditioning))


def predict(network: Any, x_t: Tensor, t: Tensor | int, conditioning: Mapping[str, Any] | None = None) -> Tensor:
    """The prediction ``(B, C, ...)`` of a network at x_t ``(B, C, ...)``.

    Outputs are taken from ``.sample``, from a tuple or as they are; a learned variance (twice the channels, as in ADM
    and DiT) is left out.
    """
    output = run_network(network, x_t, t, conditioning or {})
    prediction: Tensor = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
    channels = x_t.shape[1]
    return prediction[:, :channels] if prediction.shape[1] == 2 * channels else prediction
