"""Errors that are the user's to mend: one line, no traceback."""


class UsageError(Exception):
    """A wrong argument, option or configuration key: exit code 2."""


class RunError(Exception):
    """Something in the data, a model folder or a run stands in the way: exit code 1."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop: exit code 128 + its number.

    Args:
        number: of the signal.
        message: what was saved, and what goes on from it.
    """

    def __init__(self, number: int, message: str | None = None) -> None:
        super().__init__(message or "interrupted; run the same command again to go on from what was saved")
        self.number = int(number)
