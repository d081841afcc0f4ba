"""Writing files so that an interruption leaves the old one or the new one, never half of either."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from georeg_diffusion.errors import UsageError


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A scratch path beside ``target`` that takes its place, file or folder, once the block ends well.

    Where it does not, the scratch is removed: a full disk is not filled further.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.stem}.partial{target.suffix}")
    _remove(scratch)
    try:
        yield scratch
    except BaseException:
        _remove(scratch)
        raise
    if scratch.is_dir() and target.exists():
        old = target.with_name(f".{target.name}.old")
        _remove(old)
        os.replace(target, old)
        os.replace(scratch, target)
        _remove(old)
    else:
        os.replace(scratch, target)


def refuse_file(folder: Path, option: str = "--output-dir") -> None:
    """Refuse a folder to write into that is a file, or lies below one.

    Args:
        folder: which may be there or not.
        option: which names it, for messages.

    Raises:
        UsageError: naming the file.
    """
    file = next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None)
    if file is not None:
        below = "" if file == folder else f"{folder} cannot be made: "
        raise UsageError(f"{option}: {below}{file} is a file, expected a folder; choose another one")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_whole(folder: Path) -> bool:
    """Whether no weights and no JSON in a folder were cut off or overwritten by something else.

    Of weights the header is read, which says how long the file must be; a folder without either is whole.
    """
    try:
        for file in folder.rglob("*.safetensors"):
            with safe_open(file, framework="pt"):
                pass
        for file in folder.rglob("*.json"):
            json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError):
        return False
    return True


def write_json(target: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    with replacing(target) as scratch:
        scratch.write_text(json.dumps(content, indent=2) + "\n")
