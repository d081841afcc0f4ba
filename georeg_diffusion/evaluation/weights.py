"""Weights of networks that measure: found on disk or downloaded, read without running code from them, hashed."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.progress import console

_SECONDS = 20.0


def weights_file(url: str, *, what: str, option: str | None = None, given: Path | None = None) -> Path:
    """The file of some weights: the one given, the one in torch's hub cache, or a download into that.

    Args:
        url: where they are published; the file's name in the cache is its last part.
        what: that needs them, for the error.
        option: by which a user names a file.
        given: that file.

    Raises:
        UsageError: the given file does not exist.
        RunError: none is there and it cannot be downloaded: the file, where to put it, and the option.
    """
    name = url.rsplit("/", 1)[1]
    if given is not None:
        if not given.is_file():
            state = "is not a file" if given.exists() else "does not exist"
            raise UsageError(f"{option}: {given} {state}, expected the weights {name} (from {url})")
        return given
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    if target.is_file():
        return target
    console.print(f"Downloading {url}", style="dim", highlight=False)
    digest = re.search(r"-([a-f0-9]{8,})\.", name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _impatient():
            torch.hub.download_url_to_file(url, str(target), digest.group(1) if digest else None, progress=False)
    except (OSError, RuntimeError) as error:
        name_it = f", or name it by {option} FILE" if option else ""
        raise RunError(
            f"{what} needs the weights {name}, which are not at {target} and cannot be downloaded from {url} "
            f"({' '.join(str(error).split()) or type(error).__name__}); put the file there{name_it}"
        ) from error
    return target


@contextmanager
def _impatient() -> Iterator[None]:
    """No answer for 20 seconds is an error; by default a connection that is swallowed hangs for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_weights(file: Path) -> dict[str, Any]:
    """The tensors of a ``.safetensors`` or a torch file; nothing in the file is executed.

    Raises:
        RunError: it holds something else, or is damaged.
    """
    try:
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler raise almost anything, IndexError among it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(f"cannot read the weights {file}: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise RunError(f"cannot use {file}: it holds a {type(state).__name__}, expected tensors by name (a state dict)")
    return state


def fill(network: nn.Module, state: dict[str, Any], *, source: Path | str) -> None:
    """Load weights, all of them and no others.

    Raises:
        RunError: they belong to another network.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = [line.strip() for line in str(error).splitlines()[1:2]] or [str(error)]
        raise RunError(f"{source} does not hold weights of this {type(network).__name__}: {reason[0][:300]}") from error


def weights_hash(network: nn.Module) -> str:
    """SHA-256 of a network's weights, names and values, the same wherever the model lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_hash(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
