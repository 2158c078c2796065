"""`olmo-ext audit`: statuses, what is printed, what is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result
from waiting import lines_of_beats

import eval.audit.audit
from launch.cli import app
from launch.terminal import progress_bar


@pytest.fixture(scope="module")
def run(tiny_run: Callable[..., Path]) -> Path:
    return tiny_run()


@pytest.fixture
def spoiled(run: Path, tmp_path: Path) -> Path:
    """A copy whose ledger was cut in its middle."""
    folder = tmp_path / "spoiled"
    shutil.copytree(run, folder, symlinks=True)
    path = folder / "ledger" / "segment-00000.bin"
    path.write_bytes(path.read_bytes()[:-200])
    return folder


def audit(*args: object) -> Result:
    return CliRunner().invoke(app, ["audit", *map(str, args)])


def test_status_0_where_all_agree_with_a_line_for_each_check(run: Path) -> None:
    done = audit(run, "--full")
    assert done.exit_code == 0, done.output
    checks = ("plan", "checkpoints", "segments", "ledger", "exposures", "corpus", "stream")
    lines = done.output.splitlines()
    for check in checks:
        assert [line.split()[:2] for line in lines].count(["ok", check]) == 1, check
    assert lines[-1] == "all that was checked agrees"


def test_status_1_where_something_differs_and_the_json_has_all_of_it(
    spoiled: Path, tmp_path: Path
) -> None:
    target = tmp_path / "audit.json"
    done = audit(spoiled, "--json", target)
    assert done.exit_code == 1
    assert "differs     segments    step12-unsharded: segment 0 is truncated" in done.output
    assert done.output.splitlines()[-1] == "differs: segments, ledger, exposures"
    value = json.loads(target.read_text())
    assert value["status"] == 1
    assert value["step"] == 12
    found = {verdict["check"]: verdict for verdict in value["verdicts"]}
    assert found["segments"]["status"] == "differs"
    assert found["exposures"]["numbers"]["tasks"][0]["planned"] == 24


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere"], "there is no folder nowhere"),
        ([".", "--sample", "3"], "no plan.json"),
        (["RUN", "--step", "5"], "no checkpoint after step 5"),
        (["RUN", "--sample", "0"], "--sample must be at least 1, got 0"),
        (["RUN", "--explain", "12"], "--explain must be a step that was taken"),
        (["RUN", "--export", "xlsx"], "--export must be parquet, csv"),
        (["RUN", "--corpus", "nowhere"], "--corpus nowhere is no folder"),
        (["RUN", "--json", "nowhere/a.json"], "there is no folder nowhere"),
    ],
)
def test_status_2_for_bad_input_with_one_message(
    args: list[str], said: str, run: Path, typed: Callable[..., tuple[int, str, str]]
) -> None:
    status, out, err = typed("audit", *[str(run) if arg == "RUN" else arg for arg in args])
    assert status == 2, out + err
    assert said in " ".join(err.split())
    assert "Traceback" not in err


def test_the_export_is_the_only_thing_written_into_the_run(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder, symlinks=True)
    before = {path.name for path in folder.rglob("*")}
    assert audit(folder, "--full").exit_code == 0
    assert {path.name for path in folder.rglob("*")} == before
    assert audit(folder, "--export", "parquet").exit_code == 0
    assert {path.name for path in folder.rglob("*")} == before | {"ledger.parquet"}


def test_explain_shows_both_texts_and_how_many_rows_more(run: Path) -> None:
    done = audit(run, "--explain", "5", "--rows", "2")
    assert done.exit_code == 0, done.output
    assert "step 5 (counted from 0): 3 of 8 rows carry an example" in done.output
    assert done.output.count("  injected ") == done.output.count("  replaced ") == 2
    assert "and 1 more" in done.output


def test_many_differences_are_cut_short_and_said_so(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder, symlinks=True)
    for order in (folder / "train_data").glob("*.u32"):
        order.write_bytes(bytes(order.stat().st_size))
    done = audit(folder)
    assert done.exit_code == 1
    assert "and 1 more (--json FILE)" in done.output  # 12 steps, of which 1 + 10 are shown


def test_ctrl_c_ends_with_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(eval.audit.audit, "audit_run", interrupt)
    done = audit(run)
    assert done.exit_code == 130
    assert done.output.strip() == "interrupted; nothing was written"


def test_a_bar_is_shown_only_for_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = StringIO()
    console = Console(file=shown, force_terminal=True)
    with monkeypatch.context() as patch, progress_bar(console) as progress:
        patch.setattr("data_injection.beat.monotonic", lambda: 0.0)  # no time passes
        progress("ledger", 1, 2)
    assert "ledger" not in shown.getvalue()
    spoken = lines_of_beats(monkeypatch)
    with progress_bar(console) as progress:
        progress("ledger", 1, 2)
        spoken()
    assert "ledger" in shown.getvalue()
