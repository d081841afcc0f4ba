"""Progress on the terminal: a bar with its remaining time for everything that lasts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
# One of many processes speaks; errors do not pass here.
console = Console(soft_wrap=True, quiet=os.environ.get("RANK", "0") != "0")

_SECONDS = 30.0
_is_part: ContextVar[bool] = ContextVar("_is_part", default=False)


@contextmanager
def as_parts() -> Iterator[None]:
    """Within it, bars are parts of something larger: gone once they are done; without a terminal, a line every 30 s."""
    token = _is_part.set(True)
    try:
        yield
    finally:
        _is_part.reset(token)


@contextmanager
def progress(description: str, total: int, *, completed: int = 0, enabled: bool = True) -> Iterator[Bar]:
    """A bar that counts to ``total``; where there is no terminal, a line every 10 % of the way."""
    if not enabled:
        yield Bar(None, description, total, completed, quiet=True)
        return
    if not console.is_terminal:
        yield Bar(None, description, total, completed)
        return
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=console, transient=_is_part.get()) as display:
        yield Bar(display, escape(description), total, completed)


class Bar:
    """Counts steps; see :func:`progress`."""

    def __init__(
        self, display: Progress | None, description: str, total: int, completed: int, *, quiet: bool = False
    ) -> None:
        self.display, self.description, self.quiet = display, description, quiet
        self.total, self.completed = total, completed
        self._note, self._spoke = "", time.monotonic()
        self.task = display.add_task(description, total=total, completed=completed, note="") if display else None

    def advance(self, note: str | None = None, *, steps: int = 1) -> None:
        """One step further, or several, with an optional remark beside the bar."""
        before, self.completed = self.completed, self.completed + steps
        self._note = self._note if note is None else note
        if self.display is not None and self.task is not None:
            self.display.update(self.task, advance=steps, note=self._note)
        elif not self.quiet and (self.completed * 10) // self.total > (before * 10) // self.total:
            if _is_part.get() and time.monotonic() - self._spoke < _SECONDS:
                return
            self._spoke = time.monotonic()
            console.print(f"{self.description}: {self.completed}/{self.total}  {self._note}".rstrip(), markup=False)

    def note(self, text: str) -> None:
        """Change the remark beside the bar."""
        self._note = text


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Iterate with a bar."""
    with progress(description, total, enabled=total > 1) as bar:
        for item in items:
            yield item
            bar.advance()
