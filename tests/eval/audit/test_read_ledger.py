"""The ledger as a table: one row for each row of the segments, with what became of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet
from refusals import refuses

from data_injection.ledger import LedgerWriter, Position, read_segments
from data_injection.plan import StepRows
from eval.audit.ledger import SavedCheckpoint, export_ledger, export_path, read_ledger, trace_ledger
from eval.checkpoints.checkpoint import load_plan


def states(folder: Path, position: Position | None, step: int) -> dict[int, list[str]]:
    """State of every row by segment, for a checkpoint at a position."""
    checkpoint = SavedCheckpoint(folder / "step", step, {}, position=position)
    ledger = trace_ledger(read_segments(folder), checkpoint)
    names = np.array(["effective", "abandoned", "pending"])
    return {n: names[ledger.states(s)].tolist() for n, s in ledger.segments.items()}


def take(ledger: LedgerWriter, *steps: int) -> None:
    one = np.zeros(1, dtype=np.int64)
    for step in steps:
        ledger.append(step, StepRows(one, one, one, one))


def start(folder: Path, step: int, parent: Position | None) -> LedgerWriter:
    return LedgerWriter(folder, start_step=step, parent=parent, header={})


E, A, P = "effective", "abandoned", "pending"


def test_rows_are_effective_abandoned_or_pending_by_the_lineage(tmp_path: Path) -> None:
    with start(tmp_path, 0, None) as one:
        take(one, 0, 1)
        two_steps = one.seal(2)
        take(one, 2)
    assert states(tmp_path, two_steps, 2) == {0: [E, E, P]}
    with start(tmp_path, 2, two_steps) as two:
        # From here on the row of step 2 in segment 0 belongs to no weights any more.
        assert states(tmp_path, two_steps, 2) == {0: [E, E, A], 1: []}
        take(two, 2, 3)
        assert states(tmp_path, two_steps, 2) == {0: [E, E, A], 1: [P, P]}
        four_steps = two.seal(4)
    assert states(tmp_path, four_steps, 4) == {0: [E, E, A], 1: [E, E]}
    # Of the earlier weights, what the run has trained since is still to come.
    assert states(tmp_path, two_steps, 2) == {0: [E, E, A], 1: [P, P]}


def test_a_start_that_went_on_from_an_earlier_checkpoint_is_no_continuation(
    tmp_path: Path,
) -> None:
    with start(tmp_path, 0, None) as one:
        take(one, 0)
        first = one.seal(1)
        take(one, 1)
        second = one.seal(2)
    with start(tmp_path, 1, first) as two:  # the checkpoint of step 2 was away at that time
        take(two, 1)
    assert states(tmp_path, first, 1) == {0: [E, A], 1: [P]}
    assert states(tmp_path, second, 2) == {0: [E, E], 1: [A]}


def test_without_a_checkpoint_the_last_start_is_pending(tmp_path: Path) -> None:
    for _ in range(2):
        with start(tmp_path, 0, None) as one:
            take(one, 0, 1)
    assert states(tmp_path, None, 0) == {0: [A, A], 1: [P, P]}


def test_a_segment_that_was_never_begun_does_not_hide_what_is_pending(tmp_path: Path) -> None:
    with start(tmp_path, 0, None) as one:
        take(one, 0)
    (tmp_path / "segment-00001.bin").touch()
    assert states(tmp_path, None, 0) == {0: [P], 1: []}


def test_the_effective_rows_of_a_resumed_run_are_the_plan(resumed_run: Path) -> None:
    table = read_ledger(resumed_run)
    plan = load_plan(resumed_run)
    effective = table[table.effective]
    assert len(table) == 40
    assert (table.effective == (table.state == "effective")).all()
    for step, rows in effective.groupby("step"):
        planned = plan.at(int(step))
        assert set(rows.slot) == set(planned.slots)
        by_slot = rows.set_index("slot").loc[planned.slots]
        assert (by_slot.example.to_numpy() == planned.examples).all()
        assert (by_slot.task_index.to_numpy() == planned.tasks).all()
        assert by_slot.task.tolist() == [plan.tasks[i].name for i in planned.tasks]
        assert (by_slot.position.to_numpy() == int(step) * 8 + planned.slots).all()
    assert effective.segment.eq(np.where(effective.step < 8, 0, 1)).all()
    abandoned = table[table.state == "abandoned"]
    assert set(abandoned.segment) == {0}
    assert set(abandoned.step) == {8, 9, 10, 11}


def test_an_earlier_checkpoint_has_fewer_effective_rows(resumed_run: Path) -> None:
    assert read_ledger(resumed_run, checkpoint=4).effective.sum() == 10
    with refuses(key=resumed_run, rule="no checkpoint after step 3", remedy="[0, 4, 8, 12]"):
        read_ledger(resumed_run, checkpoint=3)


def test_a_run_without_a_ledger_says_so(bare_run: Path, tmp_path: Path) -> None:
    shutil.copytree(bare_run, tmp_path / "run", symlinks=True)
    shutil.rmtree(tmp_path / "run" / "ledger")
    with pytest.raises(FileNotFoundError, match="no ledger"):
        read_ledger(tmp_path / "run")


def test_the_exports_hold_the_table_and_where_it_is_from(resumed_run: Path, tmp_path: Path) -> None:
    table = read_ledger(resumed_run)
    for name in ("l.parquet", "l.csv"):
        path = export_path(resumed_run, str(tmp_path / name))
        export_ledger(resumed_run, path, command="olmo-ext audit")
        read = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        assert read.astype(table.dtypes.to_dict()).equals(table), name
    metadata = parquet.read_schema(tmp_path / "l.parquet").metadata
    assert metadata[b"run"] == b"tiny"
    assert metadata[b"plan_hash"].decode() == load_plan(resumed_run).hash
    assert metadata[b"command"] == b"olmo-ext audit"
    assert b"commit" in metadata
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.csv", "l.parquet"]
    assert export_path(resumed_run, "parquet") == resumed_run / "ledger.parquet"


def test_an_export_that_fails_leaves_the_earlier_file(
    resumed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "l.csv"
    path.write_text("before")

    def fail(*args: object, **kwargs: object) -> None:
        path.with_name(next(iter(args[1:])).name).write_text("half")  # type: ignore[attr-defined]
        raise OSError("full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    with pytest.raises(OSError, match="full"):
        export_ledger(resumed_run, path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("l.csv", "before")]


def test_another_ending_is_refused(resumed_run: Path) -> None:
    with refuses(key="--export", value="ledger.xlsx", rule="parquet, csv"):
        export_path(resumed_run, "ledger.xlsx")
