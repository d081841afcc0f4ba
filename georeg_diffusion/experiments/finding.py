"""What an experiment found: tables, pictures and what became of the paper's claims."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from georeg import Estimate
from georeg_diffusion.report.table import number

VERDICTS = {True: "✓", False: "✗", None: "unclear"}
_STYLES = {True: "green", False: "red", None: "dim"}
_GAP = 2  # between columns


@dataclass(frozen=True)
class Cell:
    """A number in a table.

    Attributes:
        value: None is shown as a dash.
        stderr: its standard error.
        better: whether it is an improvement beyond its standard error; None where that is unclear or not asked.
        published: whether it is the paper's, of another data set, and not measured here.
        signed: whether it is shown with its sign, as a difference.
        before: shown before it, with an arrow.
    """

    value: float | None
    stderr: float | None = None
    better: bool | None = None
    published: bool = False
    signed: bool = False
    before: float | None = None

    @classmethod
    def of(cls, estimate: Estimate | None, *, better: bool | None = None, signed: bool = False) -> Cell:
        """Of a mean over seeds."""
        return cls(None) if estimate is None else cls(estimate.value, estimate.stderr, better, signed=signed)

    def __str__(self) -> str:
        value = self.value
        if value is not None and self.stderr:  # a digit more than the error supports
            value = round(value, 1 - math.floor(math.log10(self.stderr)))
        text = number({"value": value, "stderr": self.stderr})
        if self.before is not None:
            return f"{number({'value': self.before})} → {text}"
        return f"+{text}" if self.signed and self.value is not None and self.value > 0 else text


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: above it.
        columns: their heads.
        rows: each as long as the columns, of texts and numbers.
        caption: below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell | str, ...], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"rows: got one of {len(row)} cells, expected {len(self.columns)}, one for each column")

    def rich(self, width: int = 80) -> RichTable:
        """For a terminal of some width; what is not measured here is dim."""
        table = RichTable(
            title=self.title or None,
            caption=self.caption or None,
            title_justify="left",
            caption_justify="left",
            title_style="bold",
            header_style="bold",
            pad_edge=False,
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=(0, 1, 0, 0),
        )
        for index, (column, room) in enumerate(zip(self.columns, self._room(width), strict=True)):
            justify: Literal["left", "right"] = "right" if self._is_number(index) else "left"
            table.add_column(Text(column), justify=justify, overflow="fold", width=room)
        for row in self.rows:
            table.add_row(*(Text(str(cell), style=_style(cell)) for cell in row))
        return table

    def parts(self, width: int) -> list[Table]:
        """Tables that fit a terminal of some width with no number broken; each begins with the columns of text in front.

        Example:
            >>> from georeg_diffusion.experiments.finding import Cell, Table
            >>> table = Table("a title", ("score", "base", "isometric"), (("FID", Cell(6.61), Cell(12.94)),))
            >>> [part.columns for part in table.parts(80)]
            [('score', 'base', 'isometric')]
            >>> [(part.title, part.columns) for part in table.parts(17)]
            [('a title', ('score', 'base')), ('', ('score', 'isometric'))]
        """
        least, count = self._least(), len(self.columns)
        labels = range(next((i for i in range(count) if self._is_number(i)), count))
        groups: list[list[int]] = [[]]
        for i in range(len(labels), count):
            if groups[-1] and _across(least, [*labels, *groups[-1], i]) > width:
                groups.append([])
            groups[-1].append(i)
        found = []
        for n, group in enumerate(groups):
            chosen = [*labels, *group]
            columns, *rows = (tuple(row[i] for i in chosen) for row in (self.columns, *self.rows))
            caption = self.caption if n == len(groups) - 1 else ""
            found.append(Table("" if n else self.title, columns, tuple(rows), caption))
        return found

    def _least(self) -> list[int]:
        """Width of each column that leaves words and numbers whole."""

        def pieces(cell: Cell | str) -> list[str]:
            return [str(cell)] if isinstance(cell, Cell) else cell.split() or [""]

        return [max(len(piece) for cell in column for piece in pieces(cell)) for column in self._by_column()]

    def _by_column(self) -> list[tuple[Cell | str, ...]]:
        """Cells of each column, its head first."""
        return list(zip(self.columns, *self.rows, strict=True))

    def _room(self, width: int) -> list[int | None]:
        """Width of each column, so that words stay whole where there is room; rich breaks them evenly in all columns."""
        whole, found = [max(len(str(cell)) for cell in column) for column in self._by_column()], self._least()
        spare = width - _across(found, range(len(found)))
        if spare < 0:
            return [None] * len(found)
        for _ in range(min(spare, sum(whole) - sum(found))):
            found[max(range(len(found)), key=lambda i: whole[i] - found[i])] += 1
        return list(found)

    def markdown(self) -> str:
        """As GitHub shows it; the paper's numbers are in italics."""
        lines = [self.columns, tuple("---:" if self._is_number(i) else "---" for i in range(len(self.columns)))]
        lines += [tuple(_in_markdown(cell) for cell in row) for row in self.rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"**{self.title}**\n\n{body}\n" + (f"\n{self.caption}\n" if self.caption else "")

    def csv(self) -> str:
        """Numbers in full, each column of numbers followed by one of their standard errors."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        heads: list[str] = []
        for i, column in enumerate(self.columns):
            heads += [column, f"{column} (standard error)"] if self._is_number(i) else [column]
        writer.writerow(heads)
        for row in self.rows:
            pairs = [_in_csv(cell, is_number=self._is_number(i)) for i, cell in enumerate(row)]
            writer.writerow([value for pair in pairs for value in pair])
        return out.getvalue()

    def _is_number(self, column: int) -> bool:
        return any(isinstance(row[column], Cell) for row in self.rows)


@dataclass(frozen=True)
class Claim:
    """Something that the paper says, and whether it held here.

    Attributes:
        text: as the paper claims it.
        holds: decided from numbers and their standard errors; None where they do not decide.
        evidence: those numbers.
    """

    text: str
    holds: bool | None
    evidence: str

    def rich(self) -> Text:
        """For the terminal."""
        mark = Text(f"{VERDICTS[self.holds]:>7}  ", style=_STYLES[self.holds])
        return Text.assemble(mark, self.text, (f": {self.evidence}", "dim"))


@dataclass(frozen=True)
class Finding:
    """All that an experiment found.

    Attributes:
        tables: as the paper prints them, with its numbers beside ours.
        pictures: files.
        claims: of the paper.
        notes: what a reader must know: protocols, what differs from the paper.
    """

    tables: tuple[Table, ...] = ()
    pictures: tuple[Path, ...] = ()
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()

    def as_json(self, folder: Path) -> dict[str, Any]:
        """As finding.json in a folder holds it, with pictures relative to that."""
        record = asdict(self)
        return record | {"pictures": [str(picture.relative_to(folder)) for picture in self.pictures]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any], folder: Path) -> Finding:
        """What :meth:`as_json` gave.

        Raises:
            KeyError, TypeError: it is something else.
        """
        return cls(
            tables=tuple(_table(one) for one in record["tables"]),
            pictures=tuple(folder / name for name in record["pictures"]),
            claims=tuple(Claim(**one) for one in record["claims"]),
            notes=tuple(record["notes"]),
        )


def _table(record: Mapping[str, Any]) -> Table:
    rows: Sequence[Sequence[Any]] = record["rows"]
    cells = tuple(tuple(Cell(**cell) if isinstance(cell, dict) else str(cell) for cell in row) for row in rows)
    return Table(record["title"], tuple(record["columns"]), cells, record["caption"])


def _across(widths: Sequence[int], columns: Sequence[int]) -> int:
    """Of a table with these columns."""
    return sum(widths[i] for i in columns) + _GAP * (len(columns) - 1)


def _style(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return ""
    return "dim italic" if cell.published else {True: "green", False: "red", None: ""}[cell.better]


def _in_markdown(cell: Cell | str) -> str:
    text = str(cell).replace("|", "\\|")
    return f"*{text}*" if isinstance(cell, Cell) and cell.published and cell.value is not None else text


def _in_csv(cell: Cell | str, *, is_number: bool) -> list[Any]:
    if isinstance(cell, Cell):
        value = str(cell) if cell.before is not None else "" if cell.value is None else cell.value
        return [value, "" if cell.stderr is None else cell.stderr]
    return [cell, ""] if is_number else [cell]
