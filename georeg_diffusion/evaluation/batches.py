"""Pieces of work, and the batches inside them."""

from __future__ import annotations

from collections.abc import Iterator


def num_pieces(count: int, size: int) -> int:
    """Pieces of at most ``size`` that make up ``count``."""
    return -(-count // size)


def indices(piece: int, count: int, size: int) -> list[int]:
    """Samples of a piece."""
    return list(range(piece * size, min((piece + 1) * size, count)))


def batches(rows: list[int], batch_size: int) -> Iterator[list[int]]:
    """Rows in batches.

    Example:
        >>> from georeg_diffusion.evaluation.batches import batches
        >>> list(batches([4, 5, 6], 2))
        [[4, 5], [6]]
    """
    for first in range(0, len(rows), batch_size):
        yield rows[first : first + batch_size]
