"""Errors that are the user's to mend: one line, no traceback."""


class UsageError(Exception):
    """A wrong argument, option or configuration key: exit code 2."""


class RunError(Exception):
    """Something in the data, a model folder or a run stands in the way: exit code 1."""
