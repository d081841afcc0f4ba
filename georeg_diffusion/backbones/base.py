"""What the rest needs to know about a denoising network: where h is, and what shapes it accepts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from georeg.registry import registered


class Backbone(ABC):
    """A family of denoising networks. A new one is one file here, decorated with ``@register("backbone", name)``."""

    @abstractmethod
    def matches(self, network: Any) -> bool:
        """Whether a network is of this family."""

    @abstractmethod
    def h_module(self, network: Any) -> nn.Module:
        """The submodule whose output is h by default."""

    @abstractmethod
    def stride(self, network: Any) -> int:
        """The number by which height and width must be divisible."""


def backbone_of(network: Any) -> Backbone:
    """The family of a network.

    Raises:
        TypeError: naming the families that are known, and the way round.
    """
    families = registered("backbone")
    for family in families.values():
        backbone: Backbone = family()  # type: ignore[operator]
        if backbone.matches(network):
            return backbone
    raise TypeError(
        f"network: got {type(network).__name__}, whose h-space is not known (known: {', '.join(families)}); "
        "name the submodule yourself, as in HSpace(network, at='mid_block')"
    )
