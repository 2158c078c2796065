"""Numbers and tables as text."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from refusals import refuses

from eval.text import (
    TABLE_SUFFIXES,
    check_target,
    count,
    markdown_table,
    number,
    plural,
    with_interval,
    write_table,
)


def test_numbers_are_written_as_people_read_them():
    written = [number(v) for v in (1024, 12, 0.125, 0, 7.8e-3, 2.4e-8, float("nan"))]
    assert written == ["1,024", "12", "0.125", "0", "7.8e-3", "2.4e-8", "?"]
    assert [count(v) for v in (950, 20480, 3.7e6, 2.1e11, 1.4e12, 2e16)] == (
        ["950", "20.5K", "3.7M", "210B", "1.4T", "2e+16"]
    )


def test_an_interval_stands_behind_its_value_and_nothing_behind_none() -> None:
    assert with_interval(0.5, 0.4, 0.625, digits=3) == "0.500 [0.400, 0.625]"
    assert with_interval(float("nan"), 0.4, 0.6) == "-"


def test_one_is_singular() -> None:
    assert [plural(n, "row") for n in (0, 1, 1024)] == ["0 rows", "1 row", "1,024 rows"]


def test_a_markdown_table_has_a_rule_under_its_head() -> None:
    assert markdown_table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_is_read_back_as_it_was(tmp_path: Path, suffix: str) -> None:
    table = pd.DataFrame({"task": ["cmp", "add"], "value": [0.1, float("nan")]})
    path = write_table(tmp_path / f"out{suffix}", table)
    read = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
    pd.testing.assert_frame_equal(read, table)
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "a.txt", ".csv or .parquet"), (tmp_path / "no/a.csv", "folder")):
        with refuses(key="--out", value=path, rule=why):
            check_target(path, "--out", suffixes=TABLE_SUFFIXES)


def test_a_name_that_a_spreadsheet_would_compute_is_quoted_and_a_number_is_not(
    tmp_path: Path,
) -> None:
    formulas = ["=cmd|' /C calc'!A0", "+1+1", "-2-3", "@SUM(A1)", "cmp-=1"]
    table = pd.DataFrame({"run": formulas, "value": [-1.0, -2.0, 0.5, 3.0, -4.0]})
    lines = write_table(tmp_path / "out.csv", table).read_text().splitlines()[1:]
    assert [line[:2] for line in lines] == ["'=", "'+", "'-", "'@", "cm"]
    assert [float(line.rpartition(",")[2]) for line in lines] == table.value.tolist()
    assert pd.read_parquet(write_table(tmp_path / "out.parquet", table)).run.tolist() == formulas
