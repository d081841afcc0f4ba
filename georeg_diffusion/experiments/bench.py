"""Working an experiment off: from its folder where it is finished, else anew; what it found is written down and shown."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from georeg_diffusion.errors import UsageError
from georeg_diffusion.experiments.finding import Finding, Table
from georeg_diffusion.experiments.lab import Lab
from georeg_diffusion.files import refuse_file, replacing, write_json
from georeg_diffusion.progress import console

_MARK = "reproduce.json"


def refuse_foreign(folder: Path, option: str = "--output-dir") -> None:
    """Make sure that a folder is new, empty or ours.

    Args:
        folder: of results, or of models and scores.
        option: which names it, for messages.

    Raises:
        UsageError: a file, or a folder of something else.
    """
    refuse_file(folder, option)
    if (folder / _MARK).is_file():
        return
    if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise UsageError(f"{option}: {folder} is not empty and holds no experiments of ours; choose another folder")


def claim(folder: Path, option: str = "--output-dir") -> None:
    """Mark a folder as ours.

    Args:
        folder: of results, or of models and scores.
        option: which names it, for messages.

    Raises:
        UsageError: a file, or a folder of something else.
    """
    refuse_foreign(folder, option)
    if not (folder / _MARK).is_file():
        write_json(folder / _MARK, {"command": "georeg-diffusion reproduce", "versions": {"georeg": version("georeg")}})


def worked_off(lab: Lab, name: str, module: ModuleType) -> Finding:
    """What an experiment finds, or found the last time with the same recipe and seeds.

    Writes finding.json, tables as Markdown and CSV into the folder of the experiment.

    Args:
        lab: trains and scores.
        name: of the experiment and its folder.
        module: of :mod:`georeg_diffusion.experiments.paper`.
    """
    lab = replace(lab, experiment=name)
    folder, key = lab.folder / name, _key(lab, module)
    known = _known(folder, key)
    if known is not None:
        _write_tables(known, folder)  # which may have been deleted or edited
        return known
    _discard(folder)
    folder.mkdir(parents=True, exist_ok=True)
    finding: Finding = module.run(lab)
    _write_tables(finding, folder)
    record = {"experiment": name, "source": module.SOURCE, "key": key, "recipe": asdict(lab.recipe), "seeds": lab.seeds}
    write_json(folder / "finding.json", _plain({**record, **finding.as_json(folder)}))
    return finding


def _write_tables(finding: Finding, folder: Path) -> None:
    for index, table in enumerate(finding.tables, start=1):
        write_table(table, folder, "table" if len(finding.tables) == 1 else f"table-{index}")


def write_table(table: Table, folder: Path, stem: str) -> None:
    """Write a table as Markdown and as CSV."""
    for suffix, text in ((".md", table.markdown()), (".csv", table.csv())):
        with replacing(folder / f"{stem}{suffix}") as scratch:
            scratch.write_text(text, encoding="utf-8")


def show(
    finding: Finding,
    folder: Path,
    heading: str = "The paper's claims, here (decided where a difference's 95% interval leaves out zero):",
) -> None:
    """Tables, claims, notes and files, on the terminal."""
    for table in finding.tables:
        for n, part in enumerate(table.parts(console.width)):
            if n:
                console.print()
            console.print(part.rich(console.width))
    if finding.claims:
        console.print(f"\n{heading}", style="bold")
        for one in finding.claims:
            console.print(one.rich())
    for note in finding.notes:
        console.print(note, style="dim", markup=False, highlight=False)
    for picture in finding.pictures:
        console.print(f"Picture: {picture}", highlight=False, markup=False)
    console.print(f"Results are in {folder}\n", highlight=False, markup=False)


def _key(lab: Lab, module: ModuleType) -> str:
    """A hash of all that an experiment follows from: its own source and that of the modules which it shares with others."""
    files = [Path(str(module.__file__)), *sorted(Path(__file__).parent.glob("*.*"))]
    sources = hashlib.sha256(b"".join(file.read_bytes() for file in files))
    parts = [
        version("georeg"),
        _plain(asdict(lab.recipe)),
        lab.seeds,
        lab.quick,
        lab.given(),
        sources.hexdigest(),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _discard(folder: Path) -> None:
    """Remove what an experiment found with another recipe, of which nothing may stand beside what it finds now."""
    record_file = folder / "finding.json"
    try:
        pictures = [folder / str(name) for name in json.loads(record_file.read_text())["pictures"]]
    except (OSError, ValueError, KeyError, TypeError):
        pictures = []
    record_file.unlink(missing_ok=True)
    for file in (*pictures, *folder.glob("table*.md"), *folder.glob("table*.csv")):
        file.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _known(folder: Path, key: str) -> Finding | None:
    """What the folder holds, if it is of this key and whole."""
    record_file = folder / "finding.json"
    if not record_file.is_file():
        return None
    try:
        record = json.loads(record_file.read_text())
        if record["key"] != key:
            return None
        finding = Finding.from_json(record, folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged, or of an older version: worked off anew
    return finding if all(picture.is_file() for picture in finding.pictures) else None
