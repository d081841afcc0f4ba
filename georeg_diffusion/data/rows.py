"""Rows of tensors on disk: written once, read one at a time, so that memory does not grow with their number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from georeg_diffusion.errors import RunError
from georeg_diffusion.files import replacing, write_json
from georeg_diffusion.progress import progress

_INDEX = "index.json"
_SHARD_BYTES = 2**26
_MAX_ROWS = 2**16

Make = Callable[[range], dict[str, Tensor]]


class Rows:
    """Numbered rows of named tensors, in safetensors shards of one folder.

    Each access opens one shard, copies one row and closes it again: nothing stays in memory, and processes that load
    data share nothing but the files.

    Args:
        folder: that :func:`write_rows` filled.

    Attributes:
        index: ``count``, ``per_shard``, and whatever note was left with them.

    Raises:
        RunError: the folder is not complete.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from georeg_diffusion.data.rows import write_rows
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = write_rows(Path(folder), 5, lambda r: {"x": torch.arange(r.start, r.stop).float()})
        ...     len(rows), rows[3]
        (5, {'x': tensor(3.)})
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.index: dict[str, Any] = json.loads((folder / _INDEX).read_text())
            self._count, self._per_shard = int(self.index["count"]), int(self.index["per_shard"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"cannot read {folder / _INDEX}: {error}; delete {folder} to have it made anew") from error
        self.folder = folder

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self._count:
            raise IndexError(f"index: got {index}, expected 0 to {self._count - 1}")
        shard, row = divmod(index, self._per_shard)
        file = self.folder / _name(shard)
        try:
            with safe_open(file, framework="pt") as opened:
                # A copy: a view would keep the shard mapped.
                return {name: opened.get_slice(name)[row].clone() for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise RunError(f"cannot read {file}: {error}; delete {self.folder} to have it made anew") from error


def write_rows(
    folder: Path,
    count: int,
    make: Make,
    *,
    title: str | None = None,
    batch_size: int = 16,
    note: dict[str, Any] | None = None,
    part: tuple[int, int] = (0, 1),
    wait: Callable[[], None] = lambda: None,
) -> Rows:
    """Rows 0 to ``count`` − 1 in a folder: read where they are there already, otherwise made and written shard by shard.

    What an interruption left whole is kept. Several processes share the work: process r of n writes shards r, r + n, ….

    Args:
        folder: named after a hash of all that the rows depend on.
        count: N, at least 1.
        make: a range of numbers ↦ tensors with a row for each.
        title: on the progress bar; None shows none.
        batch_size: rows made at once.
        note: what else ``index.json`` shall hold.
        part: number of this process, and of all processes.
        wait: returns once all processes have called it.
    """
    rank, world = part
    if not (folder / _INDEX).is_file():
        size = sum(tensor[0].numel() * tensor.element_size() for tensor in make(range(1)).values())
        per_shard = min(max(_SHARD_BYTES // max(size, 1), 1), _MAX_ROWS, max(count, 1))
        shards = range(rank, -(-count // per_shard), world)
        total = sum(min(per_shard, count - shard * per_shard) for shard in shards)
        with progress(title or "", total, enabled=title is not None and rank == 0 and total > 0) as bar:
            for shard in shards:
                rows = range(shard * per_shard, min((shard + 1) * per_shard, count))
                _write_shard(folder / _name(shard), rows, make, batch_size, bar.advance)
        wait()
        if rank == 0:
            write_json(folder / _INDEX, {"count": count, "per_shard": per_shard, **(note or {})})
    wait()
    return Rows(folder)


def _write_shard(file: Path, rows: range, make: Make, batch_size: int, advance: Callable[[], None]) -> None:
    if not _is_whole(file, len(rows)):
        parts = [make(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
        tensors = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
        with replacing(file) as scratch:
            save_file(tensors, scratch)
    for _ in rows:
        advance()


def _is_whole(file: Path, count: int) -> bool:
    try:
        with safe_open(file, framework="pt") as opened:
            return all(opened.get_slice(name).get_shape()[0] == count for name in opened.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return False


def _name(shard: int) -> str:
    return f"rows-{shard:05d}.safetensors"
