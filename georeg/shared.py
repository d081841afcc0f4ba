"""A context of the whole process that several hold at once, and leave in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Lock
from typing import Any


class Shared:
    """Entered by the first who asks and left by the last.

    A context that puts back what it found may not be left before one inside it: that one would put back what the outer
    had set, for good. This one may.

    Args:
        enter: makes the context.

    Example:
        >>> from contextlib import contextmanager
        >>> from georeg.shared import Shared
        >>> @contextmanager
        ... def said():
        ...     print("on")
        ...     yield
        ...     print("off")
        >>> shared = Shared(said)
        >>> first, second = shared(), shared()
        >>> first.__enter__(), second.__enter__()
        on
        (None, None)
        >>> first.__exit__(None, None, None)  # before the one that was entered inside it
        False
        >>> second.__exit__(None, None, None)
        off
        False
    """

    def __init__(self, enter: Callable[[], AbstractContextManager[Any]]) -> None:
        self._enter = enter
        self._entered = ExitStack()
        self._holders = 0
        self._lock = Lock()  # a network may run in several threads, and what is set is of the process

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._holders:
                self._entered.enter_context(self._enter())
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._entered.close()
