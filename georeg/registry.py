"""One registry for everything that can be plugged in: ``@register(kind, name)``, or an entry point.

Contract suites, benchmarks and the command line's choices read it, so a new manifold or estimator
is one new file (or one package that declares an entry point in the group ``georeg.plugins``).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TypeVar

T = TypeVar("T")
_REGISTRY: dict[str, dict[str, object]] = {}
_PLUGINS_LOADED = False


def register(kind: str, name: str) -> Callable[[T], T]:
    """Class decorator that files an object under ``(kind, name)``.

    Args:
        kind: ``"manifold"``, ``"estimator"``, ``"functional"`` or ``"backbone"``.
        name: by which the command line, benchmarks and contract suites know it.

    Raises:
        ValueError: if another object already has that name.

    Example:
        >>> import georeg
        >>> from georeg.registry import lookup
        >>> @georeg.register("example", "mine")
        ... class Mine:
        ...     pass
        >>> lookup("example", "mine") is Mine
        True
    """

    def add(thing: T) -> T:
        there = _REGISTRY.setdefault(kind, {}).setdefault(name, thing)
        if there is not thing:
            raise ValueError(f"name: {kind} {name!r} is already registered by {there!r}; choose another name")
        return thing

    return add


def registered(kind: str) -> dict[str, object]:
    """All objects of a kind by name, those of installed plug-ins included."""
    global _PLUGINS_LOADED
    if not _PLUGINS_LOADED:
        _PLUGINS_LOADED = True
        for plugin in entry_points(group="georeg.plugins"):
            plugin.load()
    return dict(sorted(_REGISTRY.get(kind, {}).items()))


def lookup(kind: str, name: str) -> object:
    """The object registered under ``(kind, name)``.

    Raises:
        ValueError: naming the known choices.
    """
    known = registered(kind)
    if name not in known:
        raise ValueError(f"{kind}: got {name!r}, expected one of {', '.join(known) or 'none registered'}")
    return known[name]
