"""What conditions each training image: its class, or one of its captions embedded; left out now and then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor


class RowsOf(Protocol):
    """Rows of tensors by the names of the network's arguments, such as :class:`georeg_diffusion.data.rows.Rows`."""

    def __getitem__(self, index: int, /) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Conditions:
    """Conditions of images, by their numbers.

    Attributes:
        rows: of tensors by the network's argument names.
        choices: for each image the rows that fit it, of which each draw takes one.
        null: the row that stands for no condition; None where there is none.
        dropout: probability of taking that one instead, which classifier-free guidance needs (Ho and Salimans 2022).

    Raises:
        ValueError: dropout without a null row, or outside [0, 1].

    Example:
        >>> import numpy as np, torch
        >>> from georeg_diffusion.data.conditions import Conditions
        >>> rows = [{"class_labels": torch.tensor(k)} for k in range(3)]
        >>> Conditions(rows, [(1,), (0,)]).draw(0, np.random.default_rng(0))
        ({'class_labels': tensor(1)}, True)
    """

    rows: RowsOf | Sequence[dict[str, Tensor]]
    choices: Sequence[Sequence[int]]
    null: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout: got {self.dropout}, expected a probability")
        if self.dropout and self.null is None:
            raise ValueError(f"dropout: got {self.dropout}, but there is no row for no condition; expected 0")

    def draw(self, index: int, rng: np.random.Generator) -> tuple[dict[str, Any], bool]:
        """The tensors of one draw of image ``index``, and whether its condition was left in."""
        if self.null is not None and rng.random() < self.dropout:
            return self.rows[self.null], False
        choices = self.choices[index]
        return self.rows[int(choices[int(rng.integers(len(choices)))])], True
