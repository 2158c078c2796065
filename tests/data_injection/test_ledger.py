"""The trained-ledger: what is written comes back, what is damaged is told, lineage is followed."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_injection.ledger import (
    MAX_BLOCK_ROWS,
    ROW,
    SEAL,
    LedgerWriter,
    Position,
    Segment,
    read_segment,
    read_segments,
)
from data_injection.lineage import Lineage, Stretch, is_effective, lineage
from data_injection.plan import StepRows


def rows_of(step: int, num: int = 3) -> StepRows:
    """Rows that tell their step: example = 1000 step + i."""
    i = np.arange(num)
    return StepRows(slots=i * 2 + step % 2, tasks=i % 2, examples=1000 * step + i, offsets=0 * i)


def write(
    folder: Path,
    steps: range,
    *,
    parent: Position | None = None,
    seal_at: tuple[int, ...] = (),
    num: int = 3,
) -> dict[int, Position]:
    """A segment that takes `steps` and is sealed after the given steps; their positions."""
    sealed = {}
    with LedgerWriter(folder, start_step=steps.start, parent=parent, header={"run": "x"}) as ledger:
        for step in steps:
            if step in seal_at:
                sealed[step] = ledger.seal(step)
            ledger.append(step, rows_of(step, num))
        if steps.stop in seal_at:
            sealed[steps.stop] = ledger.seal(steps.stop)
    return sealed


def effective_rows(segments: Mapping[int, Segment], path: Lineage) -> np.ndarray:
    """The rows of a lineage (dtype ROW) in the order in which they were trained."""
    parts = [
        segments[stretch.segment].rows[is_effective(segments[stretch.segment], (stretch,))]
        for stretch in path.stretches
    ]
    return np.concatenate([np.zeros(0, dtype=ROW), *parts])


def steps_in(rows: np.ndarray) -> list[int]:
    return np.unique(rows["step"]).tolist()


# -- writing and reading --------------------------------------------------------------------------


def test_what_is_written_comes_back_row_for_row(tmp_path: Path) -> None:
    write(tmp_path, range(0, 9), seal_at=(4, 9))
    segment = read_segments(tmp_path)[0]
    assert (segment.problems, segment.torn) == ((), 0)
    expected = [
        (step, slot, example, task)
        for step in range(9)
        for slot, task, example in zip(
            rows_of(step).slots, rows_of(step).tasks, rows_of(step).examples, strict=True
        )
    ]
    assert segment.rows.tolist() == expected
    assert (segment.start_step, segment.parent, segment.num_unsealed) == (0, None, 0)
    assert segment.header["run"] == "x"


def test_a_row_takes_at_most_16_bytes_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    write(tmp_path, range(0, 200), seal_at=(100, 200), num=8)
    size = read_segments(tmp_path)[0].path.stat().st_size
    assert size / (200 * 8) <= 16


def test_a_row_is_in_the_file_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    """So that it outlives a killed process; only a power cut can take rows without a seal."""
    ledger = LedgerWriter(tmp_path, start_step=0, parent=None, header={})
    for step in range(3):
        ledger.append(step, rows_of(step))
        segment = read_segment(ledger.path)
        assert steps_in(segment.rows) == list(range(step + 1))
        assert segment.num_unsealed == 3 * (step + 1)
        assert (segment.problems, segment.torn) == ((), 0)
    ledger.close()


def test_a_step_without_rows_adds_nothing_but_is_covered_by_the_seal(tmp_path: Path) -> None:
    ledger = LedgerWriter(tmp_path, start_step=0, parent=None, header={})
    before = ledger.path.stat().st_size
    ledger.append(0, rows_of(0, num=0))
    assert ledger.path.stat().st_size == before
    assert ledger.seal(1) == Position(0, 1)
    ledger.close()
    records = np.frombuffer(ledger.path.read_bytes()[before:], dtype=ROW)
    assert (records["task"][0], records["step"][0], records["slot"][0]) == (SEAL, 1, 0)


def test_long_stretches_without_a_checkpoint_are_sealed_in_blocks(tmp_path: Path) -> None:
    write(tmp_path, range(0, 3), num=MAX_BLOCK_ROWS // 2)
    segment = read_segments(tmp_path)[0]
    assert (segment.problems, segment.torn) == ((), 0)
    assert segment.num_unsealed == MAX_BLOCK_ROWS // 2
    assert len(segment.rows) == 3 * (MAX_BLOCK_ROWS // 2)


def test_segments_are_numbered_and_never_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By number, whatever the clock says."""
    clock = iter([1e9, 5e8, 1.0])
    for number in range(3):
        monkeypatch.setattr("time.time", lambda clock=next(clock): clock)
        write(tmp_path, range(0, number + 1), seal_at=(number + 1,))
    segments = read_segments(tmp_path)
    assert list(segments) == [0, 1, 2]
    assert [len(s.rows) for s in segments.values()] == [3, 6, 9]


def test_a_folder_without_a_ledger_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no ledger in"):
        read_segments(tmp_path / "none")


# -- damage ---------------------------------------------------------------------------------------


def damaged(tmp_path: Path, data: bytes) -> Path:
    folder = tmp_path / "damaged"
    folder.mkdir(exist_ok=True)
    path = folder / "segment-00000.bin"
    path.write_bytes(data)
    return path


@pytest.fixture
def healthy(tmp_path: Path) -> bytes:
    """Blocks of 4, 3 and 2 steps, and one step after the last seal."""
    write(tmp_path / "healthy", range(0, 10), seal_at=(4, 7, 9))
    return (tmp_path / "healthy" / "segment-00000.bin").read_bytes()


def test_every_flipped_bit_is_noticed_and_costs_one_block(tmp_path: Path, healthy: bytes) -> None:
    header = healthy.index(b"\n") + 1
    whole = read_segment(damaged(tmp_path, healthy))
    assert (whole.problems, whole.torn) == ((), 0)
    unsealed = len(healthy) - 3 * ROW.itemsize
    for bit in range(8 * len(healthy)):
        data = bytearray(healthy)
        data[bit // 8] ^= 1 << bit % 8
        segment = read_segment(damaged(tmp_path, bytes(data)))
        if bit // 8 < header:
            assert "first line is damaged" in segment.problems[0]
            assert len(segment.rows) == 0
        elif bit // 8 < unsealed:
            known = lineage({0: segment}, Position(0, 30), step=9).problems
            assert len(segment.problems + known) == 1
            if known:  # the last seal looks like a row: the checkpoint knows better
                assert "no seal at record 29" in known[0]
                continue
            assert "checksum does not hold" in segment.problems[0]
            # The blocks without the bit are read still, and nothing else is.
            lost = set(range(9)) - set(steps_in(segment.rows))
            assert lost in ({0, 1, 2, 3}, {4, 5, 6}, {7, 8})
            kept = np.isin(whole.rows["step"], list(set(range(10)) - lost))
            assert segment.rows.tolist() == whole.rows[kept].tolist()
        else:  # no seal vouches for these: they are compared with the plan instead
            assert segment.num_unsealed == 3 or segment.problems


def test_a_step_that_moved_no_weight_is_marked_and_has_no_rows(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, start_step=0, parent=None, header={}) as ledger:
        ledger.append(0, rows_of(0))
        ledger.skip(1, rows_of(1))
        ledger.append(2, rows_of(2))
        place = ledger.seal(3)
    segments = read_segments(tmp_path)
    assert steps_in(segments[0].rows) == [0, 2]
    assert segments[0].skipped == (1,)
    path = lineage(segments, place, step=3)
    assert (segments[0].problems, path.problems) == ((), ())
    assert segments[0].rows.tolist() == effective_rows(segments, path).tolist()


def test_a_segment_cut_anywhere_is_read_as_far_as_it_goes(tmp_path: Path, healthy: bytes) -> None:
    whole = read_segment(damaged(tmp_path, healthy)).rows
    header = healthy.index(b"\n") + 1
    seals = 0
    for size in range(header, len(healthy)):
        segment = read_segment(damaged(tmp_path, healthy[:size]))
        full, torn = divmod(size - header, ROW.itemsize)
        records = np.frombuffer(healthy[header:], dtype=ROW)[:full]
        seals = int((records["task"] == SEAL).sum())
        assert segment.rows.tolist() == whole[: full - seals].tolist()
        assert (segment.problems, segment.torn) == ((), torn)
        assert segment.num_records == full


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(junk=st.binary(max_size=200), cut=st.integers(0, 600))
def test_no_file_however_mangled_stops_the_reader(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("mangled")
    write(folder, range(0, 10), seal_at=(4, 7, 9))
    path = folder / "segment-00000.bin"
    data = path.read_bytes()
    path.write_bytes(data[:cut] + junk + data[cut:])
    segment = read_segment(path)
    assert junk == b"" or segment.problems or segment.torn or len(segment.rows) > 30


def test_a_block_pasted_from_another_segment_does_not_pass(tmp_path: Path) -> None:
    write(tmp_path, range(0, 4), seal_at=(4,))
    write(tmp_path, range(0, 4), seal_at=(4,))
    paths = [tmp_path / f"segment-0000{i}.bin" for i in (0, 1)]
    one, two = (path.read_bytes() for path in paths)
    header = two.index(b"\n") + 1
    paths[1].write_bytes(two[:header] + one[one.index(b"\n") + 1 :])
    assert "checksum does not hold" in read_segment(paths[1]).problems[0]


def test_a_segment_under_another_number_is_not_taken_for_it(tmp_path: Path) -> None:
    write(tmp_path, range(0, 4), seal_at=(4,))
    (tmp_path / "segment-00000.bin").rename(tmp_path / "segment-00007.bin")
    assert read_segments(tmp_path)[7].problems


# -- lineage --------------------------------------------------------------------------------------


def test_the_effective_ledger_follows_the_weights_and_leaves_out_what_was_abandoned(
    tmp_path: Path,
) -> None:
    """Killed at step 9 with a checkpoint at 6, resumed and killed at 8 with none, resumed, done."""
    first = write(tmp_path, range(0, 9), seal_at=(0, 3, 6))
    write(tmp_path, range(6, 8), parent=first[6], seal_at=())
    third = write(tmp_path, range(6, 12), parent=first[6], seal_at=(12,))
    segments = read_segments(tmp_path)
    path = lineage(segments, third[12], step=12)
    rows = effective_rows(segments, path)
    assert path.problems == ()
    assert path.stretches == (Stretch(0, 0, 6), Stretch(2, 6, 12))
    assert rows["step"].tolist() == [step for step in range(12) for _ in range(3)]


def test_a_checkpoint_put_aside_leads_back_past_its_whole_segment(tmp_path: Path) -> None:
    """Segment 1 saved at 8; that checkpoint was damaged, so segment 2 went on from segment 0's."""
    first = write(tmp_path, range(0, 5), seal_at=(4,))
    write(tmp_path, range(4, 9), parent=first[4], seal_at=(8,))
    third = write(tmp_path, range(4, 6), parent=first[4], seal_at=(6,))
    segments = read_segments(tmp_path)
    path = lineage(segments, third[6], step=6)
    assert [s.segment for s in path.stretches] == [0, 2]
    assert steps_in(effective_rows(segments, path)) == list(range(6))


def test_an_earlier_checkpoint_has_the_lineage_that_was_its_own(tmp_path: Path) -> None:
    first = write(tmp_path, range(0, 9), seal_at=(3, 6))
    write(tmp_path, range(3, 12), parent=first[3], seal_at=(12,))
    segments = read_segments(tmp_path)
    path = lineage(segments, first[6], step=6)
    assert [s.segment for s in path.stretches] == [0]
    assert steps_in(effective_rows(segments, path)) == list(range(6))


def test_a_truncated_or_missing_ancestor_is_told_and_the_rest_still_read(tmp_path: Path) -> None:
    first = write(tmp_path, range(0, 6), seal_at=(6,))
    second = write(tmp_path, range(6, 9), parent=first[6], seal_at=(9,))
    path = tmp_path / "segment-00000.bin"
    path.write_bytes(path.read_bytes()[: -5 * ROW.itemsize])
    segments = read_segments(tmp_path)
    found = lineage(segments, second[9], step=9)
    assert "segment 0 is truncated" in found.problems[0]
    assert set(steps_in(effective_rows(segments, found))) >= {0, 1, 2, 3, 6, 7, 8}
    path.unlink()
    segments = read_segments(tmp_path)
    found = lineage(segments, second[9], step=9)
    assert found.problems == ("segment 0 is missing",)
    assert found.first_step == 6
    assert steps_in(effective_rows(segments, found)) == [6, 7, 8]


def test_a_run_that_began_before_there_was_a_ledger_says_from_where_it_is_known(
    tmp_path: Path,
) -> None:
    sealed = write(tmp_path, range(6, 9), parent=None, seal_at=(9,))
    segments = read_segments(tmp_path)
    assert lineage(segments, sealed[9], step=9).first_step == 6


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_the_effective_ledger_of_any_history_has_every_step_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any number of starts, each from any checkpoint there is, each killed at any step."""
    folder = tmp_path_factory.mktemp("history")
    sealed: dict[int, list[Position | None]] = {0: [None]}
    last: tuple[int, Position] | None = None
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.sampled_from(sorted(sealed)))
        parent = data.draw(st.sampled_from(sealed[start]))
        end = start + data.draw(st.integers(1, 10))
        seals = data.draw(st.sets(st.integers(start + 1, end), max_size=3))
        found = write(folder, range(start, end), parent=parent, seal_at=tuple(seals), num=2)
        for step, position in found.items():
            sealed.setdefault(step, []).append(position)
            last = (step, position)
    if last is None:
        return
    segments = read_segments(folder)
    path = lineage(segments, last[1], step=last[0])
    rows = effective_rows(segments, path)
    assert path.problems == ()
    assert rows["step"].tolist() == [step for step in range(last[0]) for _ in range(2)]
    assert rows["example"].tolist() == [1000 * s + i for s in range(last[0]) for i in range(2)]


# -- the disk refuses -----------------------------------------------------------------------------


def test_a_full_disk_leaves_whole_records_and_says_where(tmp_path: Path) -> None:
    ledger = LedgerWriter(tmp_path, start_step=0, parent=None, header={})
    ledger.append(0, rows_of(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # The kernel writes what fits, 5 bytes, and refuses the rest.
        resource.setrlimit(resource.RLIMIT_FSIZE, (ledger.path.stat().st_size + 5, hard))
        with pytest.raises(OSError, match=r"segment-00000\.bin"):
            ledger.append(1, rows_of(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    ledger.append(1, rows_of(1))
    ledger.seal(2)
    ledger.close()
    segment = read_segment(ledger.path)
    assert (segment.problems, segment.torn) == ((), 0)
    assert steps_in(segment.rows) == [0, 1]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        LedgerWriter(tmp_path / "file" / "ledger", start_step=0, parent=None, header={})
    assert os.listdir(tmp_path) == ["file"]
