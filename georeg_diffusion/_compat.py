"""The one door to diffusers: everything here that needs it imports ``diffusers`` from this module.

PyPI's torchvision beside a CPU build of torch fails at import with ``operator torchvision::nms does not
exist``, and lpips, diffusers and torchmetrics fall with it. On exactly that error, and before any of them
loads, the two missing operators are declared (none of us calls them) and the import is tried again.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch

_MISSING = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_fragment: Any = None  # a torch.library lives as long as the object that declared it


def repair_torchvision() -> None:
    """Import torchvision, declaring its two operators first where a mismatched build lacks them."""
    global _fragment
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return  # not installed: nothing here needs it
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _fragment = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _MISSING:
            _fragment.define(schema)
        importlib.import_module("torchvision")


def _import_diffusers() -> Any:
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise ImportError(
            "georeg_diffusion needs diffusers, which the base install leaves out: pip install 'georeg[diffusion]'"
        ) from error


repair_torchvision()
diffusers: Any = _import_diffusers()
diffusers.utils.logging.disable_progress_bar()  # one for each folder that is read
