"""All scores, by name, in the order in which they are worked off: the cheap ones first."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from georeg.registry import registered
from georeg_diffusion.evaluation.score import Score

_MODULES = ("fid", "kid", "ppl")
_ORDER = (
    "isometry",
    "interpolation",
    "mrtl",
    "inversion",
    "mcn",
    "vor",
    "vor_log",
    "fid",
    "kid",
    "ls",
    "ls_radial",
    "ppl",
)


def scores() -> dict[str, type[Score]]:
    """Every registered score, those of plug-ins last."""
    for module in _MODULES:
        import_module(f"georeg_diffusion.evaluation.{module}")
    known = registered("score")
    names = sorted(known, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    return {name: cast("type[Score]", known[name]) for name in names}
