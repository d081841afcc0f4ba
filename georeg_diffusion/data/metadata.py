"""Captions beside a folder of images: ``metadata.jsonl``, as the Hub's image folders have it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from georeg_diffusion.errors import RunError, UsageError

NAME = "metadata.jsonl"
COLUMNS = ("text", "caption", "prompt")
"""Where captions are looked for when no column is named."""

Captions = tuple[str, ...]
"""The captions of one image, of which each draw takes one; empty without any."""


def read_captions(folder: Path, files: Sequence[Path], column: str | None = None) -> list[Captions] | None:
    """The captions of images, from the ``metadata.jsonl`` nearest to each: in its own folder or in one above it.

    A line is ``{"file_name": "0001.png", "text": "a face"}``, with the name relative to the metadata's folder; the text
    may be a list, of which each draw takes one.

    Args:
        folder: of the images.
        files: the images.
        column: key of the caption; None takes ``text``, ``caption`` or ``prompt``, whichever there is.

    Returns:
        One entry for each file, or None without metadata or without such a key in it.

    Raises:
        RunError: a line is not in that format, by its number; or no line names one of the images.
        UsageError: no line has the key that was asked for.
    """
    known: dict[str, Captions] = {}
    keys: set[str] = set()
    count = 0
    # From the root down, so that nearer files win.
    for place in sorted(_places(folder, files), key=lambda place: len(place.parts)):
        for number, record in _records(place / NAME):
            name = record.get("file_name")
            if not isinstance(name, str):
                raise _wrong(place / NAME, number, f"no file_name, but {', '.join(map(repr, record)) or 'nothing'}")
            keys |= set(record)
            count += 1
            chosen = column or next((key for key in COLUMNS if key in record), None)
            if chosen in record:
                known[os.path.normpath(place / name)] = _captions(record[chosen], place / NAME, number)
    if not count:
        if column is not None:
            raise UsageError(f"--caption-column: got {column!r}, but {folder} has no {NAME} with captions")
        return None
    if column is not None and column not in keys:
        raise UsageError(f"--caption-column: got {column!r}, expected one of {', '.join(sorted(keys - {'file_name'}))}")
    if not known:
        return None
    captions = [known.get(os.path.normpath(file), ()) for file in files]
    if not any(captions):
        raise RunError(
            f"--train-data-dir: {NAME} in {folder} captions {len(known):,} files, such as "
            f"{os.path.relpath(next(iter(known)), folder)}, but none of the {len(files):,} images is among them"
        )
    return captions


def _places(folder: Path, files: Sequence[Path]) -> list[Path]:
    """The folders with metadata, the images' own and all above them up to ``folder``."""
    places: set[Path] = set()
    for parent in {file.parent for file in files}:
        while parent not in places:
            places.add(parent)
            if parent in (folder, parent.parent):
                break
            parent = parent.parent
    return [place for place in places if (place / NAME).is_file()]


def _records(file: Path) -> list[tuple[int, dict[str, Any]]]:
    records = []
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"--train-data-dir: cannot read {file}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise _wrong(file, number, f"it is not JSON ({error.msg})") from error
        if not isinstance(record, dict):
            raise _wrong(file, number, f"it holds a {type(record).__name__}")
        records.append((number, record))
    return records


def _captions(value: Any, file: Path, number: int) -> Captions:
    values = value if isinstance(value, list) else [value]
    if value is None or not values:
        return ()
    if not all(isinstance(text, str) for text in values):
        raise _wrong(file, number, f"the caption is {value!r}")
    return tuple(values)


def _wrong(file: Path, number: int, what: str) -> RunError:
    return RunError(
        f'--train-data-dir: {file}, line {number}: {what}; expected {{"file_name": "0001.png", "text": "a caption"}}'
    )
