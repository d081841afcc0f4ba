"""Expensive things, built when they are first needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from georeg_diffusion.errors import RunError, UsageError

T = TypeVar("T")


class Once(Generic[T]):
    """A thing that is built at its first use and kept; so is the error, because what failed would fail again slowly.

    Args:
        build: makes it.

    Example:
        >>> from georeg_diffusion.evaluation.once import Once
        >>> thing = Once(lambda: print("built") or 3)
        >>> thing(), thing()
        built
        (3, 3)
    """

    def __init__(self, build: Callable[[], T]) -> None:
        self._build = build
        self._made: list[T] = []
        self._error: RunError | UsageError | None = None

    @classmethod
    def missing(cls, reason: str) -> Once[T]:
        """One that cannot be had.

        Args:
            reason: what is missing, and the remedy.
        """

        def fail() -> T:
            raise RunError(reason)

        return cls(fail)

    def __call__(self) -> T:
        if self._error is not None:
            raise self._error
        if not self._made:
            try:
                self._made.append(self._build())
            except (RunError, UsageError) as error:
                self._error = error
                raise
        return self._made[0]
