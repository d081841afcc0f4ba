"""Tables, means over seeds, what is decided from them, and the paper's numbers."""

import csv
import io

import pytest
import torch
from rich.console import Console

from georeg import Estimate
from georeg_diffusion.experiments.comparison import Replicated, falls, rises
from georeg_diffusion.experiments.finding import Cell, Table
from georeg_diffusion.experiments.published import published, value_of
from georeg_diffusion.experiments.replicates import is_below_zero, over_seeds, paired


def test_means_and_standard_errors_over_seeds():
    values = torch.randn(7, dtype=torch.float64)
    found = over_seeds(values.tolist())
    assert found.value == pytest.approx(values.mean().item())
    assert found.stderr == pytest.approx((values.var() / 7).sqrt().item())
    assert over_seeds([3.0]).stderr is None
    assert over_seeds([1.0, None]) is None
    assert over_seeds([]) is None


def test_what_a_seed_decides_for_both_cancels_in_differences():
    before = [1.0, 100.0, 10_000.0]
    after = [b - 1 - 0.1 * i for i, b in enumerate(before)]
    assert paired(before, after).value == pytest.approx(-1.1)
    assert paired(before, after).stderr == pytest.approx(0.1 / 3**0.5)
    assert is_below_zero(paired(before, after)) is True
    with pytest.raises(ValueError, match="after: got 2 values, expected 3"):
        paired(before, after[:2])


@pytest.mark.parametrize(
    ("value", "stderr", "expected"), [(-4.31, 1.0, True), (4.31, 1.0, False), (-4.29, 1.0, None), (-5.0, None, None)]
)
def test_a_difference_counts_beyond_students_interval(value, stderr, expected):
    assert is_below_zero(Estimate(value, stderr, 3)) is expected  # 4.303 is tabulated for two degrees of freedom, 95%


def replicated(*values):
    return Replicated({"ppl": values}, {"ppl": "protocol"}, {"ppl": ({},) * len(values)})


@pytest.mark.parametrize(("after", "fell"), [((9.0, 19.1), True), ((11.0, 21.1), False), ((9.0, 22.0), None)])
def test_claims_are_decided_from_numbers(after, fell):
    base, ours = replicated(10.0, 20.0), replicated(*after)
    assert falls("it falls", base, ours, "ppl").holds is fell
    assert rises("it rises", base, ours, "ppl").holds is (None if fell is None else not fell)
    assert "(2 seeds)" in falls("it falls", base, ours, "ppl").evidence


def test_no_claim_holds_by_one_seed_or_without_a_value():
    assert falls("it falls", replicated(10.0), replicated(5.0), "ppl").holds is None
    assert falls("it falls", replicated(10.0, 9.0), replicated(5.0, None), "ppl").holds is None


TABLE = Table(
    "A title",
    ("score", "here", "paper"),
    (("a|b", Cell(1.23456, 0.012), Cell(3.0, before=4.0, published=True)), ("c", Cell(None), "none")),
    "A caption",
)


def test_markdown_escapes_and_marks_what_is_published():
    text = TABLE.markdown()
    assert "| a\\|b | 1.235 ± 0.01 | *4 → 3* |" in text
    assert "| c | — | none |" in text


def test_csv_holds_the_numbers_in_full():
    rows = list(csv.reader(io.StringIO(TABLE.csv())))
    assert rows[0] == ["score", "here", "here (standard error)", "paper", "paper (standard error)"]
    assert rows[1] == ["a|b", "1.23456", "0.012", "4 → 3", ""]
    assert rows[2] == ["c", "", "", "none", ""]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="got one of 1 cells, expected 2"):
        Table("t", ("a", "b"), (("x",),))


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (Cell(1.2824, 0.1), "1.28 ± 0.1"),
        (Cell(-0.1009, 0.0068, signed=True), "-0.1009 ± 0.007"),
        (Cell(58.2, 18.0, signed=True), "+58 ± 20"),
        (Cell(0.5), "0.5"),
        (Cell(None, signed=True), "—"),
        (Cell(float("nan"), 0.1), "nan ± 0.1"),
    ],
)
def test_cells_show_a_digit_more_than_their_error_supports(cell, text):
    assert str(cell) == text


def test_the_papers_numbers():
    assert len(published("table1")) == 4 * 2 * 5
    assert value_of("table1", dataset="LSUN-Church", model="ours", score="ppl") == 1587
    assert value_of("table1", dataset="LSUN-Church", model="ours", score="ls") is None
    assert value_of("table2", model="base", score="ls_radial") == 12.3
    assert value_of("tableI", model="LDM ours", score="vor") == 0.54
    assert len(published("table3")) == 10
    # App. A.2's bytes are a misprint, its megabytes are not
    assert round((3 * 256**2 + 512 * 8**2) * 4 / 2**20, 3) == value_of("costs", score="megabytes")
    with pytest.raises(ValueError, match="which 2 numbers of table2 have"):
        value_of("table2", score="ls")


@pytest.mark.parametrize("width", range(12, 120, 9))
def test_a_table_too_wide_for_the_terminal_goes_on_below_with_no_number_broken(width):
    cells = [Cell(value, error) for value, error in ((0.000311, 4e-5), (1.81, 0.1), (0.07001, 7e-4))]
    table = Table(
        "Title", ("p", "loss", "error", "isometry loss", "log-VoR"), (("0", "plain", *cells), ("1", "ours", *cells))
    )
    parts = table.parts(width)
    assert [name for part in parts for name in part.columns[2:]] == list(table.columns[2:])
    assert all(part.columns[:2] == ("p", "loss") for part in parts)
    assert [part.title for part in parts] == ["Title"] + [""] * (len(parts) - 1)
    assert len(parts) == 1 or width < 70
    console = Console(width=width, file=io.StringIO())
    for part in parts:
        console.print(part.rich(width))
    if width >= 30:
        for cell in cells:
            assert console.file.getvalue().count(str(cell)) == 2
        assert max(map(len, console.file.getvalue().splitlines())) <= width


def test_a_table_of_labels_alone_is_one_part():
    table = Table("", ("a", "b"), (("x", "y"),))
    assert table.parts(1) == [table]
