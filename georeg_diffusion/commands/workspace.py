"""What every command on a trained model does around its work: claim a folder, load the model, record the run."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from georeg_diffusion.bundle import Bundle, load
from georeg_diffusion.commands.options import ModelOptions
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.evaluation.weights import weights_hash
from georeg_diffusion.files import refuse_file, write_json
from georeg_diffusion.options import as_plain, flag_of
from georeg_diffusion.progress import console

# These may differ when an unfinished run is taken up again: they do not change what is computed.
_FREE = ("output_dir", "overwrite", "max_minutes", "device", "batch_size")


class UnfinishedError(Exception):
    """Leaves a workspace without marking its run as finished, so that the same command goes on with it."""


@dataclass
class Workspace:
    """A claimed output folder and what was asked for.

    Attributes:
        folder: where results go.
        command: such as ``"sample"``.
        config: the options.
        device, dtype: of the networks.
        resumed: whether an unfinished run of the same options is being continued.
        models: path and hash of each model that was opened, for run.json.
        files: names of the files written so far, for run.json.
    """

    folder: Path
    command: str
    config: ModelOptions
    device: torch.device
    dtype: torch.dtype
    resumed: bool
    models: dict[str, dict[str, str]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def open(self, path: str) -> Bundle:
        """Load a model, frozen, in evaluation mode, on the device and in the precision that were asked for.

        Raises:
            RunError: naming what is missing or not supported.
        """
        bundle = load(_only_model_in(path)).to(self.device, self.dtype)
        bundle.network.eval().requires_grad_(False)
        self.models[path] = {"path": str(path), "sha256": weights_hash(bundle.network)}
        return bundle

    def path(self, name: str) -> Path:
        """A file to write, recorded in run.json; its folder exists."""
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name not in self.files:
            self.files.append(name)
        return target


@contextmanager
def workspace(config: ModelOptions, command: str) -> Iterator[Workspace]:
    """Claim the output folder, and write run.json there at the start and once the block has ended well.

    A finished run is never overwritten without ``--overwrite``; an unfinished one of the same options goes on
    (``resumed``); a folder of another run or of foreign files is refused. A block that raises :class:`UnfinishedError` stays
    unfinished, and the error goes no further.

    Raises:
        UsageError: the folder cannot be claimed; an unknown device.
    """
    folder = config.output_dir or Path("outputs") / command
    arguments = {name: value for name, value in as_plain(config).items() if name != "overwrite"}
    device = device_of(config.device)
    before = _claim(folder, command, arguments, overwrite=config.overwrite)
    resumed = before is not None and not config.overwrite
    work = Workspace(folder, command, config, device, getattr(torch, config.dtype), resumed)
    record = {
        "command": f"georeg-diffusion {command}",
        "finished": False,
        "arguments": arguments,
        "seed": config.seed,
        "device": str(device),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("georeg", "torch", "diffusers")},
        },
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", record)
    start = time.monotonic()
    try:
        yield work
    except UnfinishedError:
        return
    except BaseException as error:
        is_refused = isinstance(error, UsageError | RunError) or _is_bare(folder)
        if not work.files and not resumed and is_refused:  # before it wrote anything: leave the folder as it was
            _restore(folder, before)
        raise
    for name in _stale(folder, before, work.files):
        name.unlink()
    record |= {
        "finished": True,
        "seconds": round(time.monotonic() - start, 2),
        "models": list(work.models.values()),
        "files": work.files,
    }
    write_json(folder / "run.json", record)
    console.print(f"Results are in {folder}", highlight=False)


def _claim(folder: Path, command: str, arguments: dict[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """Make sure that the folder is new, empty or ours; the record of the run in it that is replaced or continued."""
    refuse_file(folder)
    record_file = folder / "run.json"
    if not record_file.is_file():
        if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise UsageError(f"--output-dir: {folder} is not empty and holds no run of ours; choose another folder")
        return None
    try:
        record = dict(json.loads(record_file.read_text()))
        before, is_finished, owner = dict(record["arguments"]), bool(record["finished"]), record["command"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"cannot read {record_file}: {error!r}; choose another --output-dir or delete the folder") from error
    if owner != f"georeg-diffusion {command}":
        raise UsageError(f"--output-dir: {folder} holds a run of `{owner}`; choose another folder")
    if overwrite:
        return record
    if is_finished:
        raise UsageError(f"--output-dir: {folder} holds a finished run; choose another folder or pass --overwrite")
    changed = [name for name in arguments if name not in _FREE and arguments[name] != before.get(name)]
    if changed:
        differences = ", ".join(f"{flag_of(name)} {before.get(name)} → {arguments[name]}" for name in changed)
        raise UsageError(
            f"--output-dir: {folder} holds an unfinished run of other options ({differences}); repeat those to go on with "
            "it, choose another folder, or pass --overwrite"
        )
    return record


def _restore(folder: Path, before: dict[str, Any] | None) -> None:
    if before is not None:
        write_json(folder / "run.json", before)
    elif _is_bare(folder):  # otherwise what was kept for later belongs to this record
        (folder / "run.json").unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _is_bare(folder: Path) -> bool:
    """Whether there is nothing in a folder but a record."""
    return not any(entry.name != "run.json" and not entry.name.startswith(".") for entry in folder.iterdir())


def _stale(folder: Path, before: dict[str, Any] | None, written: list[str]) -> list[Path]:
    """Files of the replaced run that the new one has not written."""
    names = [str(name) for name in (before or {}).get("files", [])]
    targets = [folder / name for name in names if name not in written]
    # Names come from a file: nothing outside the folder may be touched.
    return [t for t in targets if t.is_file() and t.resolve().is_relative_to(folder.resolve())]


def device_of(name: str | None) -> torch.device:
    """The device that ``--device`` names, by default a GPU where there is one.

    Raises:
        UsageError: it cannot be used here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # which the meta device has not
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"--device: got {name!r}, which cannot be used here: {first}") from error
    return device


def _only_model_in(path: str) -> str:
    """The path itself; for the output folder of ``train``, an error that names the models inside."""
    folder = Path(path)
    if folder.is_dir() and not (folder / "model_index.json").is_file() and not (folder / "config.json").is_file():
        inside = sorted(str(entry.parent) for entry in folder.glob("*/model_index.json"))
        if inside:
            raise RunError(f"{folder} is no model itself but holds some; name one of them: {', '.join(inside)}")
    return path


def names_of(paths: list[str]) -> list[str]:
    """Short names that differ: last parts of the paths, as many as it takes."""
    parts = [[part for part in path.replace("\\", "/").split("/") if part not in ("", ".")] or [path] for path in paths]
    for count in range(1, max(len(p) for p in parts) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({i + 1})" for i, name in enumerate(names)]
