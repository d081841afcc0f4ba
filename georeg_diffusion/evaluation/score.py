"""What a score is: numbered pieces of work, and a result that says how it was measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor

from georeg import Estimate
from georeg_diffusion.errors import RunError

if TYPE_CHECKING:
    from georeg_diffusion.evaluation.setting import Setting


class OutOfTimeError(RunError):
    """The time that was given is over before something expensive was built; a later call goes on from there."""


@dataclass(frozen=True)
class Result:
    """One number with its protocol, as ``metrics.json`` holds it.

    Attributes:
        value: the score; None where it could not be measured, with the reason in ``protocol``.
        ci: 95 % confidence interval, None where there is none to be had (the protocol says why).
        n: what was averaged over: images, pairs, samples.
        seed: of all noise.
        protocol: how it was measured, complete enough to be repeated by somebody else.
        details: further numbers, as JSON can hold them, such as a curve over t for the report.

    Example:
        >>> from georeg import Estimate
        >>> from georeg_diffusion.evaluation.score import Result
        >>> result = Result.of(Estimate(2.0, 0.1, 64), seed=0, protocol="mean over 64 pairs")
        >>> [round(end, 3) for end in result.ci], result.n
        ([1.804, 2.196], 64)
    """

    value: float | None
    ci: tuple[float, float] | None
    n: int
    seed: int
    protocol: str
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, estimate: Estimate, *, seed: int, protocol: str, details: dict[str, Any] | None = None) -> Result:
        """From an estimate with its standard error: ± 1.96 of it."""
        error = estimate.stderr
        ci = None if error is None else (estimate.value - 1.96 * error, estimate.value + 1.96 * error)
        return cls(estimate.value, ci, estimate.n, seed, protocol, details or {})


class Score(ABC):
    """One score of one model, accumulated over numbered pieces of work; ``@register("score", name)`` makes it known.

    Laws: the pieces may be worked off in several sittings, with :meth:`state` saved in between and loaded by
    :meth:`load_state` into a new object; the result does not depend on the batch size, because every sample draws from
    a seed of its own; :meth:`compute` after only some of the pieces is the score of those, with its n.

    Attributes:
        name: in ``--scores`` and ``metrics.json``.
        label: in tables.
        lower_is_better: None where neither is.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    lower_is_better: ClassVar[bool | None]

    @classmethod
    @abstractmethod
    def of(cls, setting: Setting) -> Self:
        """The score of a model, at the sizes of the setting's protocol.

        Raises:
            RunError: something that it needs is missing; the message names the remedy.
        """

    @abstractmethod
    def pieces(self) -> int:
        """Number of pieces of work."""

    @abstractmethod
    def update(self, piece: int) -> None:
        """Work off one piece; they come in order."""

    @abstractmethod
    def compute(self) -> Result:
        """The score of the pieces so far."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What has been accumulated, as tensors on the CPU."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
