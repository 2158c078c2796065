"""Tables of runs as other programs write them: read as they are meant, or refused in words.

The inputs lie in tests/cases/tables; those of the last test are made here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from refusals import Words, refuses
from typer.testing import CliRunner

from launch.cli import app
from launch.scaling.losses import read_losses
from theory.scaling.runs import Runs

TABLES = Path(__file__).parent / "tables"

REFUSED: dict[str, tuple[str, Words, Words]] = {
    "two_data_sizes_exact": ("", ("tokens", "the values 2.755", "e+08, 7.259", "e+10 in"), ""),
    "two_data_sizes_rounded": ("", ("tokens", "(2: those within 2% count as one)"), ""),
    "extra_value": (": line 2", ("4 values", "3 names (params, tokens, loss)"), "every column"),
    "ragged_one_row": (": line 62", ("4 values", "3 names"), "every column"),
    "comment": (": line 2", ("3 values", "1 names (# from wandb)"), "every column"),
    "semicolon": ("", "semicolons", "with commas"),
    "tab": ("", "tabs", "with commas"),
    "german": ("", "semicolons", ("with commas", "decimal commas")),
    "spaces_header": (": the column name ' tokens'", "spaces", "without"),
    "thousands": ("", ("params", "'4,000,000,000' (thousands signs?"), ""),
    "suffix": ("", ("params", "'4000M' (a suffix? write 4e9"), ""),
    "upper_header": ("", "no column params, tokens, loss, but Params, Tokens, Loss", "rename it"),
    "dup": ("", ("2 rows stand twice", "(1 and 61, 2 and 62)"), ""),
    "const_loss": ("", "not fall with params", ""),
    "empty": ("", "No columns to parse", "a header line"),
    "header_only": ("", ("0 runs", "5 constants"), ""),
    "one_run": ("", ("1 runs", "5 constants"), ""),
    "inf": ("", ("loss must be positive", "1 row (4) it is missing or not"), ""),
    "nan": ("", ("loss must be positive", "1 row (4) it is missing or not"), ""),
    "neg": ("", ("loss must be positive", "1 row (4) it is -1"), ""),
    "zero": ("", ("tokens must be positive", "1 row (4) it is 0"), ""),
    "text": ("", ("loss must be numbers", "1 row (4) it is 'diverged'"), ""),
    "no_header": ("", "column params, tokens, loss, but 4000000000.0, 759057482.1", "--params"),
    "ray": ("", "45 rows stand twice", ""),
}
"""Where in the file, what is wrong there, what to do. A fit says what to do in the rule."""


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_cannot_be_read_as_meant_is_refused_with_what_is_wrong(
    name: str, tmp_path: Path
) -> None:
    arguments = ["scaling", "fit", str(TABLES / f"{name}.csv"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    where, rule, remedy = REFUSED[name]
    with refuses(key=f"{TABLES / name}.csv{where}", rule=rule, remedy=remedy):
        raise done.exception or AssertionError(done.output)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "column", "factor"),
    [("bigints", "tokens", 1e12), ("bits", "loss", 1 / np.log(2)), ("units", "params", 1e-6)],
)
def test_numbers_of_any_size_and_unit_are_read_as_they_stand(
    name: str, column: str, factor: float
) -> None:
    plain, scaled = (read_losses(TABLES / f"{one}.csv").frame[column] for one in ("clean", name))
    np.testing.assert_allclose(scaled.astype(float), plain * factor, rtol=1e-6)


def test_a_byte_order_mark_changes_nothing() -> None:
    plain, marked = (read_losses(TABLES / f"{name}.csv").frame for name in ("clean", "bom"))
    pd.testing.assert_frame_equal(plain, marked)


@pytest.mark.parametrize(
    ("head", "row", "where", "rule", "remedy"),
    [
        ("params,tokens,loss,loss", "1,1,3,3", ": the column name 'loss'", "twice", "rename one"),
        ("params|tokens|loss", "1e8|1e9|3.0", "", "bars", "with commas"),
        ("params,tokens,loss ", "1e8,1e9,3.0", ": the column name 'loss '", "spaces", "without"),
        ("params,tokens,loss", "1e8,25\x0000000000,3.0", "", "NUL bytes", "UTF-8"),
    ],
)
def test_other_separators_and_names_are_named(
    tmp_path: Path, head: str, row: str, where: str, rule: str, remedy: str
) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([head, *[row] * 9]) + "\n")
    with refuses(key=f"{path}{where}", rule=rule, remedy=remedy):
        read_losses(path)


@pytest.mark.parametrize(
    ("head", "row", "message"),
    [
        ("params,tokens,loss", "1 000 000,1e9,3.0", "thousands signs"),
        ("params,tokens,loss", '1e8,1e9,"3,02"', "a decimal comma"),
        ("params,tokens,loss", "1e8,2.5 B,3.0", "a suffix"),
    ],
)
def test_numbers_written_otherwise_are_named(
    tmp_path: Path, head: str, row: str, message: str
) -> None:
    (tmp_path / "runs.csv").write_text("\n".join([head, *[row] * 9]) + "\n")

    def read() -> Runs:
        frame = read_losses(tmp_path / "runs.csv").frame
        return Runs.of(frame.params, frame.tokens, frame.loss)

    with pytest.raises(ValueError, match=message):
        read()


def test_tokens_are_worked_out_of_flops_and_that_is_said(tmp_path: Path) -> None:
    table = pd.read_csv(TABLES / "clean.csv")
    work = (6 * table.params * table.tokens).rename("Training FLOP")
    table.drop(columns="tokens").assign(**{"Training FLOP": work}).to_csv(
        tmp_path / "runs.csv", index=False
    )
    read = read_losses(tmp_path / "runs.csv", names={"flops": "Training FLOP"})
    np.testing.assert_allclose(read.frame.tokens, table.tokens)
    assert read.notes == ("tokens are column Training FLOP / (6 params)",)
    with refuses(key="--tokens and --flops", remedy="give one"):
        read_losses(tmp_path / "runs.csv", names={"flops": "Training FLOP", "tokens": "tokens"})
    with refuses(key=tmp_path / "runs.csv", rule="no column tokens", remedy="--flops"):
        read_losses(tmp_path / "runs.csv")
