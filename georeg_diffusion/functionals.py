"""The losses that ``--regularizer`` names: georeg's registered functionals, those of plug-ins included."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import georeg
from georeg.registry import registered

_UNFIT = ("volume",)  # a determinant of d rows, and d is in the thousands


def names() -> tuple[str, ...]:
    """What ``--regularizer`` may be.

    Example:
        >>> from georeg_diffusion.functionals import names
        >>> names()
        ('conformal', 'contractive', 'flat', 'isometry', 'path-length', 'strict')
    """
    return tuple(_by_name())


def make_regularizer(name: str, *, normalize: bool, **options: Any) -> georeg.Regularizer[Any]:
    """A loss by its name.

    Args:
        name: one of :func:`names`.
        normalize: multiply a ratio by d; losses that are no ratios of traces have no such option and ignore it.
        **options: see :class:`georeg.Regularizer`.

    Raises:
        ValueError: an unknown name; an estimator that the loss cannot use.

    Example:
        >>> from georeg_diffusion.functionals import make_regularizer
        >>> type(make_regularizer("path-length", normalize=True)).__name__
        'PathLengthLoss'
    """
    known = _by_name()
    if name.replace("_", "-") not in known:
        raise ValueError(f"regularizer: got {name!r}, expected one of {', '.join(known)}")
    make = known[name.replace("_", "-")]
    if "normalize" in inspect.signature(make).parameters:
        options["normalize"] = normalize
    return make(**options)


def _by_name() -> dict[str, Callable[..., georeg.Regularizer[Any]]]:
    """By names with hyphens, however they were registered."""
    made: dict[str, Any] = registered("functional")
    return {name.replace("_", "-"): make for name, make in made.items() if name not in _UNFIT}
