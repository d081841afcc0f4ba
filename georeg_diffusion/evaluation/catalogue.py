"""All scores, by name, in the order in which they are worked off: the cheap ones first."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import cast

from georeg.registry import registered
from georeg_diffusion import evaluation
from georeg_diffusion.errors import UsageError
from georeg_diffusion.evaluation.score import Score

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
    """Every registered score, those of plug-ins last. A new one is one new file in this folder."""
    for module in iter_modules(evaluation.__path__):
        import_module(f"{evaluation.__name__}.{module.name}")
    known = registered("score")
    names = sorted(known, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    return {name: cast("type[Score]", known[name]) for name in names}


def chosen(names: str | None) -> dict[str, type[Score]]:
    """The scores of a list such as ``"fid,ppl"``, in the order of :func:`scores`; all of them for None.

    Raises:
        UsageError: a name that is not known, or none at all.
    """
    known = scores()
    if names is None:
        return known
    asked = [name.strip().replace("-", "_") for name in names.split(",") if name.strip()]
    for name in asked:
        if name not in known:
            raise UsageError(f"--scores: got {name!r}, expected some of {','.join(known)}")
    if not asked:
        raise UsageError(f"--scores: got {names!r}, expected some of {','.join(known)}")
    return {name: score for name, score in known.items() if name in asked}
