"""The paper's tables and figures, one a file in :mod:`georeg_diffusion.experiments.paper`, and what they share.

A file there has ``TITLE``, ``SOURCE`` (where in the paper it is), ``DATA`` (``"digits"`` where models are trained, else
``"none"``) and ``run(lab) -> Finding``; ``georeg-diffusion reproduce`` finds it by its name. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from georeg_diffusion.errors import UsageError
from georeg_diffusion.experiments import paper

_ORDER = (
    *("table1", "table2", "table3", "tableI"),
    *("fig1", "fig2", "fig4", "fig5", "fig6", "fig7"),
    *("figI", "figII", "figIII", "figIV", "figV", "figVI", "figVII", "figVIII"),
    "costs",
)


def available() -> tuple[str, ...]:
    """Names of the experiments, in the paper's order.

    Example:
        >>> from georeg_diffusion.experiments import available
        >>> available()[0]
        'table1'
    """
    names = [_name_of(entry.name) for entry in iter_modules(paper.__path__)]
    return tuple(sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)))


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    """Experiments by name, in upper or lower case, each once; ``"all"`` is all of them.

    Raises:
        UsageError: an unknown name, with those that there are.
    """
    known = {one.lower(): one for one in available()}
    asked = []
    for name in names:
        if name.lower() not in (*known, "all"):
            raise UsageError(f"NAME: got {name!r}, expected {', '.join(available())} or all")
        asked.append(name.lower())
    return available() if "all" in asked else tuple(dict.fromkeys(known[name] for name in asked))


def find(name: str) -> ModuleType:
    """The module of an experiment.

    Args:
        name: such as ``"table1"`` or ``"figVIII"``, in upper or lower case.

    Raises:
        UsageError: an unknown name, with those that there are.
    """
    (found,) = chosen([name])
    return import_module(f"{paper.__name__}.{_module_of(found)}")


def _name_of(module: str) -> str:
    """``table_i`` → ``tableI``."""
    stem, _, numeral = module.partition("_")
    return stem + numeral.upper()


def _module_of(name: str) -> str:
    """``tableI`` → ``table_i``."""
    return re.sub(r"([IVX]+)$", lambda numeral: f"_{numeral[1].lower()}", name)
