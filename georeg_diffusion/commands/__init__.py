"""The commands of the command line, one a file: its options as a frozen dataclass ``CONFIG``, and ``run(config)``.

A module here imports nothing heavy at its top, so that ``--help`` is there at once; torch and diffusers are
imported inside ``run``.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

_SHARED = ("options", "workspace", "experiment_options")
_FIRST = ("train", "sample", "evaluate", "interpolate", "invert", "edit", "inspect")


def available() -> dict[str, Any]:
    """The command modules by name, in the order of the help page."""
    names = [entry.name for entry in iter_modules(__path__) if entry.name not in _SHARED]
    order = sorted(names, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    return {name.replace("_", "-"): import_module(f"{__name__}.{name}") for name in order}
