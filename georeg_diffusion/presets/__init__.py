"""Configurations that ship with the package, by name: one YAML file each, with the keys of `train`."""

from __future__ import annotations

from pathlib import Path

from georeg_diffusion.errors import UsageError

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The presets there are, those that need no network first."""
    return sorted((file.stem for file in _FOLDER.glob("*.yaml")), key=lambda name: (not name.startswith("digits"), name))


def path_of(name: str) -> Path:
    """The file of a preset.

    Raises:
        UsageError: an unknown name.
    """
    if name not in names():
        raise UsageError(f"--preset: got {name!r}, expected one of {', '.join(names())}; your own file goes to --config")
    return _FOLDER / f"{name}.yaml"
