"""The record format survives kills, resumes and undefined values."""

import json
import resource

import pandas as pd
import pytest
from refusals import refuses

from eval.records import REQUIRED, RecordWriter, identity, read_records, record_name
from eval.report.write import load_runs


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


def test_a_record_cut_off_anywhere_is_skipped_and_no_other_is_lost(tmp_path):
    path, whole = tmp_path / "records.jsonl", record(step=2, schedule="even é", value=-1.5e-05)
    write(path, record(step=1), whole)
    first, last = path.read_bytes().splitlines(keepends=True)
    for end in range(1, len(last) - 1):
        path.write_bytes(first + last[:end])
        assert list(read_records(path).step) == [1]
        # An older version ended the torn line and went on behind it.
        path.write_bytes(first + last[:end] + b"\n" + last)
        assert list(read_records(path).step) == [1, 2]


def test_a_resumed_writer_takes_a_torn_line_back(tmp_path):
    path = tmp_path / "records.jsonl"
    write(path, record(step=1), record(step=2))
    before = path.read_bytes()
    for torn in (b'{"run": "x", "ru', b"\0\0\0"):  # a kill; a power cut
        path.write_bytes(before + torn)
        assert list(read_records(path).step) == [1, 2]
        write(path, record(step=3))
        assert path.read_bytes().startswith(before + b'{"run"')
        assert list(read_records(path).step) == [1, 2, 3]


def test_a_last_line_that_only_lacks_its_newline_is_kept(tmp_path):
    path = tmp_path / "records.jsonl"
    write(path, record(step=1))
    path.write_text(path.read_text().rstrip())
    write(path, record(step=2))
    assert list(read_records(path).step) == [1, 2]


@pytest.mark.parametrize("broken", ['{"run": x}', "step 4 of 8", '{"run": "x"} {"run": "y"}'])
def test_a_broken_line_in_the_middle_is_an_error_with_its_place(tmp_path, broken):
    path = tmp_path / "records.jsonl"
    write(path, record(step=1))
    path.write_text(path.read_text() + broken + "\n" + path.read_text())
    with refuses(key=f"{path}:2", rule="JSON", remedy="mend or drop"):
        read_records(path)


def test_a_full_disk_leaves_whole_records(tmp_path):
    path = tmp_path / "records.jsonl"
    write(path, record(step=1))
    before, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    with RecordWriter(path) as writer:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, hard))
            with pytest.raises(OSError, match=r"records\.jsonl"):
                writer.write([record(step=2)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
        writer.write([record(step=2)])
    assert list(read_records(path).step) == [1, 2]


def test_the_last_row_of_a_key_wins(tmp_path):
    path = tmp_path / "records.jsonl"
    write(path, record(value=0.1), record(value=0.2, split="train"))
    write(path, record(value=0.3))
    table = read_records(path).set_index("split")
    assert table.value.to_dict() == {"train": 0.2, "test": 0.3}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *(("subset", ("all", "no_mirror")), ("lag", (1, 2)), ("layer", (0, None))),
        *(("head", ("h1", "h2")), ("head", (0, None)), ("heads", ([0, 1], [0, 2]))),
        *(("threshold", (0.1, 0.2)), ("rank", (0, 1)), ("norm", ("l1", "l2"))),
    ],
)
def test_rows_that_differ_in_any_coordinate_are_two_records_and_two_curves(tmp_path, name, values):
    rows = [record(value=0.1 * i, **{name: value}) for i, value in enumerate(values, start=1)]
    write(tmp_path / "records.jsonl", *rows)
    assert list(read_records(tmp_path).value) == [0.1, 0.2]
    assert len({record_name("mine", row) for row in rows}) == 2


def test_rows_that_differ_in_outcomes_and_what_follows_are_one_record_and_one_curve(tmp_path):
    before = record(value=0.1, low=0.0, null_random=0.3, wall_seconds=2.5, tokens=0, layer=1)
    after = record(value=0.2, high=1.0, null_random=0.1, wall_seconds=3.5, bits=3.0, layer=1.0)
    write(tmp_path / "records.jsonl", before, after)
    assert list(read_records(tmp_path).value) == [0.2]
    assert record_name("mine", before) == record_name("mine", after)


def test_a_row_read_back_is_the_measurement_that_was_written(tmp_path):
    rows = [record(value=0.1, n=3), record(value=0.2, layer=0), record(value=0.3, head="h")]
    write(tmp_path / "records.jsonl", *rows)
    read = [row for _, row in read_records(tmp_path).iterrows()]
    assert [identity(row) for row in read] == [identity(row) for row in rows]
    assert [identity(row) for row in pd.DataFrame(rows).to_dict("records")] == (
        [identity(row) for row in rows]
    )


def test_curves_are_named_as_they_were():
    row = record(task="cmp", subset="all", majority=0.4, corpus_hash="c", learning_rate=1e-3)
    assert record_name("task_eval", row) == "olmo_ext/task_eval/cmp/test/all/score"
    row = record(task="cmp", split="all", group="layers", layer=2.0, metric="cos_g", n=4)
    assert record_name("interference", row) == "olmo_ext/interference/cmp/all/layers/layer2/cos_g"
    row = record(task="", split="train", metric="train_loss")
    assert record_name("task_eval", row) == "olmo_ext/task_eval/train/train_loss"
    row = record(task="cmp", subset="burst", burst=3, lag=0, burst_step=7, metric="score_lag")
    assert record_name("retention", row).endswith("cmp/test/burst/burst=3/lag=0/score_lag")


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
    with refuses(key=f"{path}:2", rule="is not a record", remedy="mend or drop"):
        read_records(path)


def test_a_folder_gives_the_records_of_every_run_below_it(tmp_path):
    for run in ("b", "a"):
        write(tmp_path / run / "records.jsonl", record(run=run))
    assert list(read_records(tmp_path).run) == ["a", "b"]


def test_two_runs_of_a_name_do_not_replace_each_other_and_a_copy_changes_nothing(tmp_path):
    """The same sweep with another weight decay, which is no coordinate: one row of two was left."""
    rows = [record(value=0.3), record(value=0.11), record(value=float("nan"), metric="bits")]
    for name in ("try0", "copy"):
        write(tmp_path / name / "records.jsonl", *rows)
    assert list(read_records(tmp_path).value[:1]) == [0.11]
    assert len(read_records(tmp_path)) == 2
    write(tmp_path / "try1" / "records.jsonl", record(value=0.99))
    where = tmp_path / "try1" / "records.jsonl"
    with refuses(key=f"{where}: run", value="x", rule=("try0", "0.11", "0.99"), remedy="load_runs"):
        read_records(tmp_path)
    assert list(load_runs(tmp_path)[0].query("metric == 'score'").value) == [0.11, 0.11, 0.99]


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


@pytest.mark.parametrize("metric", ["cos_g_nt", "norm_g_r", "overlap", "budget", "host_step"])
def test_a_row_of_before_and_one_that_says_its_precision_are_one_measurement(metric):
    row = {"metric": metric, "step": 3, "value": 0.1}
    assert identity(row | {"split_error": 1e-7, "precision": "fp32"}) == identity(row)
    other = row | {"metric": "mine"}
    assert identity(other | {"precision": "fp32"}) == identity(other)  # the run's, in every record
    # Somebody's own coordinate stays one.
    assert identity(other | {"split_error": 1e-7}) != identity(other)
