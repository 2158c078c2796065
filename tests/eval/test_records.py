"""The record format survives kills, resumes and undefined values."""

import json

import pytest

from eval.records import REQUIRED, RecordWriter, read_records


def record(**change):
    base = dict.fromkeys(("run", "rung", "plan_hash", "protocol", "task", "family"), "x")
    numbers = dict.fromkeys(("params", "seed", "step", "tokens", "rate_per_step"), 1)
    rest = {"exposures_per_example": 0.5, "split": "test", "metric": "score", "value": 0.25}
    return base | numbers | rest | change


def write(path, *records):
    with RecordWriter(path) as writer:
        writer.write(records)


def test_what_is_written_is_read_back_with_the_required_columns_first(tmp_path):
    write(tmp_path / "records.jsonl", record(n=7))
    table = read_records(tmp_path)
    assert tuple(table.columns[: len(REQUIRED)]) == REQUIRED
    assert (table.value[0], table.n[0]) == (0.25, 7)


def test_a_torn_last_line_is_skipped(tmp_path):
    path = tmp_path / "records.jsonl"
    write(path, record(step=1), record(step=2))
    path.write_text(path.read_text()[:-20])
    assert list(read_records(path).step) == [1]


def test_a_resumed_writer_does_not_lose_its_first_record_to_a_torn_line(tmp_path):
    path = tmp_path / "records.jsonl"
    write(path, record(step=1), record(step=2))
    path.write_text(path.read_text()[:-20])
    write(path, record(step=2), record(step=3))
    assert list(read_records(path).step) == [1, 2, 3]


def test_the_last_row_of_a_key_wins(tmp_path):
    path = tmp_path / "records.jsonl"
    write(path, record(value=0.1), record(value=0.2, split="train"))
    write(path, record(value=0.3))
    table = read_records(path).set_index("split")
    assert table.value.to_dict() == {"train": 0.2, "test": 0.3}


def test_subsets_are_different_measurements(tmp_path):
    path = tmp_path / "records.jsonl"
    write(path, record(subset="all", value=0.1), record(subset="no_mirror", value=0.2))
    assert list(read_records(path).value) == [0.1, 0.2]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_undefined_values_are_written_as_null_and_read_as_missing(tmp_path, value):
    path = tmp_path / "records.jsonl"
    write(path, record(value=value))
    assert json.loads(path.read_text())["value"] is None
    assert read_records(path).value.isna().all()


def test_a_record_without_a_required_field_is_refused_by_name(tmp_path):
    bad = record()
    del bad["protocol"]
    with (
        RecordWriter(tmp_path / "records.jsonl") as writer,
        pytest.raises(ValueError, match="lacks protocol"),
    ):
        writer.write([bad])


@pytest.mark.parametrize("value", [True, "0.5", None])
def test_a_value_that_is_not_a_number_is_refused(tmp_path, value):
    with (
        RecordWriter(tmp_path / "records.jsonl") as writer,
        pytest.raises(ValueError, match="must be a number"),
    ):
        writer.write([record(value=value)])


def test_a_line_that_lacks_a_field_is_an_error_with_its_place(tmp_path):
    path = tmp_path / "records.jsonl"
    write(path, record())
    path.write_text(path.read_text() + '{"run": "x"}\n')
    with pytest.raises(ValueError, match=r"records\.jsonl:2 is not a record"):
        read_records(path)


def test_a_folder_gives_the_records_of_every_run_below_it(tmp_path):
    for run in ("b", "a"):
        write(tmp_path / run / "records.jsonl", record(run=run))
    assert list(read_records(tmp_path).run) == ["a", "b"]


def test_a_folder_without_records_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        read_records(tmp_path)


def test_places_variables_and_controls_tell_rows_apart_and_old_rows_do_without(tmp_path):
    place = {"component": "mlp", "position": 0, "variable": "tok1", "held_out": "pairs"}
    changes = [{}, {"component": "residual"}, {"position": 1}, {"variable": "tok2"}]
    changes += [{"held_out": "symbols"}, {"control": "das"}]
    write(tmp_path / "records.jsonl", record(), *(record(**place | change) for change in changes))
    assert len(read_records(tmp_path)) == 1 + len(changes)
    write(tmp_path / "records.jsonl", record(value=0.5), record(**place, value=0.75))
    table = read_records(tmp_path)
    assert len(table) == 1 + len(changes)
    assert table.value.tolist()[-2:] == [0.5, 0.75]
