"""SIGTERM and SIGINT during training: finish the step, write a checkpoint, leave with the conventional exit code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from georeg_diffusion.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether a signal has asked the run to stop.

    Attributes:
        number: of the signal, 0 while there was none.
    """

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, number: int, _: FrameType | None = None) -> None:
        """The signal handler. The first signal is noted; a second one does not wait for the step to end."""
        if self.number:
            raise Interrupted(number)
        self.number = number

    def agreed(self, accelerator: Any) -> int:
        """The signal that any process has received, 0 for none; a scheduler may send it to one process alone."""
        if accelerator.num_processes == 1:
            return self.number
        mine = torch.tensor([self.number], device=accelerator.device)
        return int(accelerator.gather(mine).max())


@contextmanager
def stopping() -> Iterator[Stop]:
    """Note SIGTERM and SIGINT in the block instead of dying of them.

    Example:
        >>> import os, signal
        >>> from georeg_diffusion.training.interrupt import stopping
        >>> with stopping() as stop:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     stop.number == signal.SIGTERM
        True
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread alone
        return
    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def in_worker(_: int) -> None:
    """For a process that loads data: a signal to the whole group is the trainer's to answer, which ends its workers."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
