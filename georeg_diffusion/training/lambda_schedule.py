"""The weight of the isometry loss over a training: λ·s((k+½)/N) at step k of N, with one shape s for each schedule.

A weight follows from the number of its step alone, so that a run that goes on has the weights of one that nothing stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable

_WARMUP = 0.2
_EARLY = 0.5

_SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "warmup": lambda done: min(done / _WARMUP, 1.0),
    "linear-decay": lambda done: 1.0 - done,
    "cosine-decay": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "early": lambda done: float(done <= _EARLY),
}

SCHEDULES = tuple(_SHAPES)
"""Names of the schedules."""


def lambda_factor(schedule: str, step: int, steps: int) -> float:
    """s((k+½)/N), by which λ is multiplied at step k of N; where it is 0, the step costs what it does without isometry.

    ============= ============================= ==================================== ============
    schedule      s(u), u = (k+½)/N             what for                             mean over u
    ============= ============================= ==================================== ============
    constant      1                             the paper's                          1
    warmup        min(u/0.2, 1)                 a large λ on a model that was        0.9
                                                trained without
    linear-decay  1 − u                         last steps that serve the images     1/2
    cosine-decay  (1 + cos πu)/2                the same, decided later and faster   1/2
    early         1 while u ≤ 1/2, then 0       the same, at half the extra work     1/2
    ============= ============================= ==================================== ============

    Args:
        schedule: one of :data:`SCHEDULES`.
        step: k, the number of steps taken before this one, in [0, N).
        steps: N, of the whole training.

    Raises:
        ValueError: an unknown schedule, or a step outside the training.

    Example:
        >>> from georeg_diffusion.training.lambda_schedule import lambda_factor
        >>> [lambda_factor("linear-decay", step, 4) for step in range(4)]
        [0.875, 0.625, 0.375, 0.125]
        >>> [lambda_factor("early", step, 4) for step in range(4)]
        [1.0, 1.0, 0.0, 0.0]
    """
    if schedule not in _SHAPES:
        raise ValueError(f"schedule: got {schedule!r}, expected one of {', '.join(SCHEDULES)}")
    if not 0 <= step < steps:
        raise ValueError(f"step: got {step}, expected one from 0 to {steps - 1}, the last of {steps}")
    return _SHAPES[schedule]((step + 0.5) / steps)


def share_of_steps(schedule: str, steps: int = 1000) -> float:
    """The share of the steps at which λ is not 0.

    Raises:
        ValueError: an unknown schedule.

    Example:
        >>> from georeg_diffusion.training.lambda_schedule import share_of_steps
        >>> share_of_steps("early"), share_of_steps("linear-decay")
        (0.5, 1.0)
    """
    return sum(lambda_factor(schedule, step, steps) > 0 for step in range(steps)) / steps
