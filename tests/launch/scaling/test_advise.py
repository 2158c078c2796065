"""`olmo-ext scaling advise` and `mixture` as a user calls them, on committed and made records."""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from refusals import refuses
from typer.testing import CliRunner

from data_injection.errors import ConfigError
from eval.advice.groups import Question, load_groups, parse_size, records_hash
from eval.figures.ordering import ordering, ordering_table
from eval.records import read_records
from launch.scaling.advise import answer
from launch.scaling.mixture import LADDER, calibrate, load_plan
from launch.scaling.verbs import app

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "docs" / "quickstart" / "records.jsonl"
CONTROLS = ROOT / "docs" / "findings" / "controls"
MECHANISM = ROOT / "docs" / "findings" / "mechanism"
TASKS = ROOT / "docs" / "advice" / "quickstart_tasks.yaml"

SIZES = {"small": 1e4, "middle": 4e4, "large": 1.6e5}


def write_runs(folder: Path, *, seeds=(0, 1, 2), sizes=SIZES, rates=(1, 2, 4, 8), **change) -> Path:
    """A staircase: a size doubled twice halves the rate it needs, 4 per step at 40K."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for rung, params in sizes.items():
        for seed in seeds:
            for rate in rates:
                lead = rate / 4 * (params / 4e4) ** 0.5 * (1.15 if seed == 1 else 1.0)
                row = {
                    "run": f"{rung}-s{seed}", "rung": rung, "params": int(params), "seed": seed,
                    "plan_hash": f"{rung}{seed}", "protocol": "mixture", "step": 100,
                    "tokens": 100 * 32 * 64, "task": f"t{rate}", "family": "comparison",
                    "rate_per_step": float(rate), "exposures_per_example": 1.0, "split": "test",
                    "metric": "score", "value": min(1.0, 0.5 * lead), "batch_size": 32,
                }  # fmt: skip
                lines.append(json.dumps(row | change))
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def ask(source: Path, **question) -> list[str]:
    groups, _ = load_groups(source, Question(**question))
    for group in groups:
        answer(group, Question(**question))
    return [line for group in groups for line in group.lines]


def call(*arguments: object):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_the_verb_writes_a_figure_and_a_traceable_file(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    done = call("advise", QUICKSTART, "--size", "w32", "--out", tmp_path, "--json", out)
    assert done.exit_code == 0, done.output
    assert "9 runs, 3 seeds" in done.output
    assert (tmp_path / "advice.png").stat().st_size > 10_000
    told = json.loads(out.read_text())
    assert told["records_sha256"] == records_hash(QUICKSTART)
    assert told["command"]
    assert "commit" in told
    (group,) = told["groups"]
    assert (group["runs"], group["seeds"]) == (9, 3)
    assert group["answers"][0]["low"] < group["answers"][0]["value"] < group["answers"][0]["high"]
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_frequency_means_the_same_in_every_unit(tmp_path: Path) -> None:
    runs = write_runs(tmp_path)
    asked = (("4", "per_step"), ("1/8", "per_sequence"), ("0.001953125", "per_token"))
    found = []
    for frequency, unit in asked:
        groups, _ = load_groups(runs, Question(frequency=frequency, unit=unit))
        answer(groups[0], Question(frequency=frequency, unit=unit))
        found.append(groups[0].answers[0])
    for one in found:
        assert one["status"] == "inside"
        assert one["value"] == pytest.approx(found[0]["value"], rel=1e-4)
        assert one["high"] == pytest.approx(found[0]["high"], rel=1e-4)


def test_upsampling_is_the_threshold_over_the_frequency(tmp_path: Path) -> None:
    runs = write_runs(tmp_path)
    groups, _ = load_groups(runs, Question())
    answer(groups[0], Question(size="middle", frequency="2"))
    first = groups[0].answers[0]
    assert first["upsampling"][0] == pytest.approx(first["value"] / 2)
    assert any("upsampling × " in line for line in groups[0].lines)


def test_a_size_by_name_and_by_number_are_the_same(tmp_path: Path) -> None:
    rows = load_groups(write_runs(tmp_path), Question())[0][0].rows
    assert parse_size("middle", rows) == parse_size("40K", rows) == parse_size("4e4", rows) == 4e4
    for wrong in ("huge", "-3", "4X", "", "nan"):
        with refuses(key="--size", value=wrong, rule="(small, middle, large)"):
            parse_size(wrong, rows)


def test_batches_that_differ_make_per_token_the_unit(tmp_path: Path) -> None:
    write_runs(tmp_path / "a", sizes={"small": 1e4, "middle": 4e4})
    write_runs(tmp_path / "b", sizes={"large": 1.6e5}, batch_size=64, tokens=100 * 64 * 64)
    (group,) = load_groups(tmp_path, Question())[0]
    assert group.unit == "per_token"
    (group,) = load_groups(tmp_path, Question(unit="per_step"))[0]
    assert "not one frequency" in group.note


def test_shorter_gaps_are_priced_where_gaps_were_varied() -> None:
    lines = ask(MECHANISM, frequency="4", response="score")
    assert any("a gap of 1 steps in place of 25" in line and "worth × " in line for line in lines)
    # By learned cells alone the effect is not clear, and is not said.
    assert any("worth in parameters not said" in line for line in ask(MECHANISM, frequency="4"))


def test_complexity_is_a_covariate_where_it_was_varied() -> None:
    said = {}
    for bits in (25, 60):
        groups, _ = load_groups(CONTROLS, Question(bits=bits, run="complexity-*"))
        answer(groups[0], Question(size="w64", bits=bits))
        said[bits] = groups[0].answers[0]
    assert said[25]["status"] == said[60]["status"] == "inside"
    assert said[25]["value"] < said[60]["value"]
    # By so few cells the effect of complexity is not clear, and no factor is given for it.
    lines = ask(CONTROLS, bits=60, run="complexity-*", size="w64")
    assert any("21.4 bits in place of 60: worth in frequency not said" in s for s in lines)


def test_one_frequency_that_rounding_makes_two_is_one(tmp_path: Path) -> None:
    write_runs(tmp_path / "one", rates=(2, 2.0004))
    with refuses(key=f"the records of {tmp_path / 'one'}", rule="frequency has one value only"):
        ask(tmp_path / "one", size="w32")


def test_outside_the_data_there_is_no_number(tmp_path: Path) -> None:
    runs = write_runs(tmp_path)
    lines = ask(runs, size="1B", frequency="100")
    assert any("params 1e+09 was not measured" in line for line in lines)
    assert any("frequency 100 was not measured" in line for line in lines)
    assert any("needs more than" in line for line in ask(runs, frequency="1"))


def test_all_or_none_learned_and_one_seed_are_said(tmp_path: Path) -> None:
    none = write_runs(tmp_path / "none", value=0.1)
    assert any("no cell was learned" in line for line in ask(none, size="middle"))
    every = write_runs(tmp_path / "every", value=0.9)
    assert any("every cell was learned" in line for line in ask(every, size="middle"))
    one = write_runs(tmp_path / "one", seeds=(0,))
    assert any("provisional: 3 runs are too few" in line for line in ask(one, size="middle"))
    two = write_runs(tmp_path / "two", seeds=(0, 1))
    assert "fewer than 3 seeds: provisional" in ask(two, size="middle")[0]


def test_runs_of_one_name_in_two_folders_are_two_runs(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_runs(tmp_path / folder)
    (group,) = load_groups(tmp_path, Question())[0]
    assert (group.surface.num_runs, group.surface.num_seeds) == (18, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--frequency and --size must be given"),
        (("--frequency", "often"), "must be a number"),
        (("--frequency", "0"), "above 0"),
        (("--frequency", "-1"), "negative"),
        (("--size", "w32", "--unit", "per_day"), "--unit must be one of"),
        (
            ("--size", "w32", "--family", "addition"),
            "--family must fit one of",
        ),
        (
            ("--size", "w32", "--protocol", "single"),
            "--protocol must fit one of",
        ),
        (("--size", "w32", "--run", "x*"), "--run must fit one of"),
        (("--size", "w32", "--bits", "3"), "--bits needs records of the complexity"),
        (("--size", "w32", "--response", "loss"), "--response must be one of learned, score"),
        (("--size", "w32", "--json", "/nonexist/x.json"), "there is no folder /nonexist"),
        (("--size", "w32", "--run", "w32*"), "one params only"),
    ],
)
def test_bad_questions_name_key_and_remedy(tmp_path: Path, arguments: tuple, said: str) -> None:
    done = call("advise", QUICKSTART, "--out", tmp_path, *arguments)
    assert isinstance(done.exception, ConfigError), done.output
    assert said in str(done.exception)
    assert "hold no surface" not in str(done.exception) or "params only" in said
    assert not done.output
    assert not list(tmp_path.iterdir()), "nothing is written before the question is understood"


def test_an_estimate_past_the_edge_is_no_claim_about_the_line() -> None:
    """What is printed where the interval crosses the edge, where it does not, and without one."""
    group = load_groups(QUICKSTART, Question(family="comparison"))[0][0]
    edge = group.surface.ranges["frequency"][1]
    centre = group.surface.centre.copy()
    # The same surface as if all frequencies had been 1.4 times as high: w32 needs 9.7.
    centre[1] += math.log(1.4)
    group.surface = replace(group.surface, centre=centre)
    answer(group, Question(size="w32"))
    (said,) = [line for line in group.lines if "(w32)" in line]
    assert f"learned from about {edge:g} per step" in said
    assert "or above, 95% from 6.9" in said
    assert "only above" not in said
    assert group.answers[0]["beyond"] == ""
    group.lines.clear()
    group.surface = replace(group.surface, centre=centre + math.log(2))
    answer(group, Question(size="w32"))
    assert "learned only above" in " ".join(group.lines)
    group.lines.clear()
    group.surface = replace(group.surface, centre=centre, covariance=None)
    answer(group, Question(size="w32"))
    said = " ".join(group.lines)
    assert "or above: the estimate is above the largest frequency" in said
    assert "too few for an interval" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]\n", "records.jsonl:1 is not a record: must be a JSON object, got [1]"),
        ('{"run": "a", "value": 1}\n', "records.jsonl:1 is not a record: lacks"),
    ],
)
def test_what_is_no_record_is_named_by_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "records.jsonl").write_text(text)
    done = call("advise", tmp_path, "--size", "w32")
    assert isinstance(done.exception, ConfigError), done.output
    assert said in str(done.exception)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": None, "learning_rate": 0.01}, "hold no test 'score' of a task"),
        ({"rate_per_step": 0.0}, "rate_per_step is 0 in every record"),
        ({"value": "high"}, ":1 is not a record: value must be a number, got 'high'"),
    ],
)
def test_records_that_say_nothing_are_refused_with_what_they_lack(
    tmp_path: Path, change: dict, said: str
) -> None:
    done = call("advise", write_runs(tmp_path, **change), "--size", "middle")
    assert isinstance(done.exception, ConfigError), done.output
    assert said in str(done.exception)
    assert not (tmp_path / "advice.png").exists()


# -- mixture ---------------------------------------------------------------------------------------


def write_tasks(path: Path, **change: object) -> Path:
    plan = {
        "tasks": [
            {"name": "common", "frequency": "1e-3", "exponent": 1.0, "features": 20},
            {"name": "rare", "frequency": "1/100000", "bits": 30},
        ],
        "bits_per_feature": 5,
        "host": {"exponent": 1.46, "features": 20000},
        "rungs": ["4M", "20M", {"name": "mine", "d_model": 512, "params": 9e7}],
        "features_per_d_model": 2.0,
        "tokens": "1e9",
    }
    path.write_text(yaml.safe_dump(plan | change))
    return path


def test_a_plan_is_printed_with_its_assumptions_and_ways(tmp_path: Path) -> None:
    path, out = write_tasks(tmp_path / "tasks.yaml"), tmp_path / "m.json"
    done = call("mixture", path, "--target", "rare", "--rung", "4M", "--json", out)
    assert done.exit_code == 0, done.output
    assert "2 features per d_model" in done.output
    assert "cheapest first" in done.output
    told = json.loads(out.read_text())
    assert {way["kind"] for way in told["ways"]} == {"frequency", "gap", "width"}
    assert told["plan"]["features_per_d_model"] == 2.0
    assert len(told["table"]) == 2 * 3


def test_the_example_is_calibrated_on_the_committed_records() -> None:
    found = calibrate(load_plan(TASKS), QUICKSTART, Question())
    known = {one.task: one for one in found if one.factor > 0}
    assert set(known) == {"cmp_r8", "cmp_r4"}
    assert all(one.low < one.factor < one.high for one in known.values())
    assert "largest params" in next(one.reason for one in found if one.task == "cmp_r1")


def test_the_documents_plan_is_what_the_verb_prints() -> None:
    text = (ROOT / "docs" / "advice.md").read_text()
    done = call("mixture", TASKS, "--calibrate", QUICKSTART, "--target", "cmp_r2", "--rung", "w32")
    of = ("cmp_r", "  - ", "extra tokens", "are tied")
    lines = [line.strip() for line in done.output.splitlines() if any(one in line for one in of)]
    assert len(lines) > 12
    for line in lines:
        assert line in text


def test_the_ladder_is_that_of_the_configs() -> None:
    for name, (d_model, _) in LADDER.items():
        file = ROOT / "configs" / "olmo_4M_to_4B" / "ladder" / f"{name}.yaml"
        assert yaml.safe_load(file.read_text())["train"]["model"]["d_model"] == d_model


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rungs": ["5M"]}, "no rung of the ladder"),
        ({"rungs": None}, "lists `tasks` and `rungs`"),
        ({"host": None}, "add `host`"),
        ({"hosts": {}}, "hosts is no setting; did you mean host"),
        ({"bits_per_feature": None}, "bits_per_feature"),
        ({"features_per_d_model": None}, "features_per_d_model must be given"),
        ({"tasks": [{"name": "a", "frequency": "0.6/0", "bits": 3}]}, "tasks[0].frequency"),
        ({"tasks": [{"name": "a", "frequency": 1.5, "bits": 3}]}, "must be in [0, 1]"),
        ({"tasks": [{"name": "a", "bits": 3}]}, "frequency"),
        ({"tasks": [{"name": "a", "frequency": 0.1, "bit": 3}]}, "did you mean bits"),
        (
            {"tasks": [{"name": "a", "frequency": 0.1, "bits": 3, "tokens_per_instance": 0}]},
            "tokens_per_instance must be above 0",
        ),
    ],
)
def test_a_plan_that_cannot_be_names_file_key_and_remedy(
    tmp_path: Path, change: dict, said: str
) -> None:
    path = write_tasks(tmp_path / "tasks.yaml", **change)
    done = call("mixture", path)
    assert isinstance(done.exception, ConfigError), done.output
    assert said in str(done.exception)


def test_unknown_targets_and_files_that_are_no_plan_are_refused(tmp_path: Path) -> None:
    done = call("mixture", write_tasks(tmp_path / "t.yaml"), "--target", "x")
    assert isinstance(done.exception, ConfigError)
    assert "no task; the tasks are common, rare" in str(done.exception)
    broken = tmp_path / "broken.yaml"
    for text in ("a: [", "- a", "a: 1"):
        broken.write_text(text)
        error = call("mixture", broken).exception
        assert isinstance(error, ConfigError)
        assert str(error).count(str(broken)) == 1, error
    done = call("mixture", tmp_path / "none.yaml")
    assert isinstance(done.exception, FileNotFoundError)
    assert "docs/advice.md has a mixture" in str(done.exception)
    done = call("mixture", TASKS, "--json", tmp_path / "none" / "x.json")
    assert "there is no folder" in str(done.exception)
    assert not done.output


def test_a_calibration_says_that_it_counts_and_not_the_files_number(tmp_path: Path) -> None:
    stated = tmp_path / "stated.yaml"
    stated.write_text(TASKS.read_text() + "\nfeatures_per_d_model: 2\n")
    done = call("mixture", stated, "--calibrate", QUICKSTART)
    assert "10.2 (mean of 2), in place of the file's 2" in done.output


# -- ordering --------------------------------------------------------------------------------------


def test_the_documents_orderings_are_those_of_all_committed_records() -> None:
    """The result, whatever it is: docs/advice.md holds all sweeps that have one, and counts."""
    text = (ROOT / "docs" / "advice.md").read_text()
    found = [("quickstart", row) for row in ordering_table(read_records(QUICKSTART)).itertuples()]
    for path in sorted((ROOT / "docs" / "findings").glob("*/records.jsonl")):
        frame = read_records(path)
        for sweep, rows in frame.groupby(frame.run.str.split("-").str[0]):
            with suppress(ConfigError):  # bursts, no host text, or one size
                found += [(sweep, row) for row in ordering_table(rows).itertuples()]
    assert {"one_format", "hard_end", "placement"} <= {sweep for sweep, _ in found}
    for sweep, row in found:
        word = "yes" if row.claim else "no"
        line = f"| {row.rows} ({row.runs}) | {row.rho_theory:.3f} | {row.rho_baseline:.3f} | "
        line += f"{row.difference:+.3f} | ± {row.null_high:.3f} | {word} |"
        assert line in text, f"{sweep}: {line}"
    assert len(re.findall(r"^\|.* \| (?:yes|no) \|$", text, re.MULTILINE)) == len(found)
    able = [row for _, row in found if row.null_high > 0]
    ahead = sum(row.difference > row.null_high for row in able)
    behind = sum(row.difference < -row.null_high for row in able)
    assert (len(able), ahead, behind) == (9, 2, 5)
    assert "nine other sets the theory leads by more than chance in two" in " ".join(text.split())
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert "more than chance in two of nine sets, behind in five" in readme


def test_how_far_the_line_moved_is_what_advice_says_of_both_staircases(tmp_path: Path) -> None:
    text = " ".join((ROOT / "docs" / "advice.md").read_text().split())
    for size in ("w32", "w64"):
        steps, tokens = [], []
        for source, runs in ((QUICKSTART, ()), (CONTROLS, ("--run", "mixture-*"))):
            done = call("advise", source, *runs, "--size", size, "--out", tmp_path)
            said = re.search(r"learned from (\S+) per step \(.*, (\S+) per token\)", done.output)
            assert said, done.output
            steps.append(said[1])
            tokens.append(said[2])
        assert " and ".join(steps) in text
        assert " and ".join(tokens) in text


def test_runs_without_host_text_or_of_one_size_have_no_order() -> None:
    frame = read_records(CONTROLS)
    with refuses(key="records", rule="no task whose place"):
        ordering_table(frame[frame.run.str.startswith("alone-")])
    with refuses(key="records", rule="no two sizes", remedy="a sweep over size"):
        ordering_table(frame[frame.run.str.match("mixture-s.-w64")])


def test_the_figure_of_an_order_says_its_difference_and_the_chance() -> None:
    figure = ordering(read_records(QUICKSTART))
    left, right = figure.axes
    (row,) = ordering_table(read_records(QUICKSTART)).itertuples()
    assert f"{row.difference:+.3f}" in right.get_title(loc="left")
    assert f"{row.null_high:.3f}" in right.get_title(loc="left")
    assert f"{row.rho_theory:.3f}" in left.get_xlabel()
    assert sum(len(line.get_xdata()) for line in left.lines) >= row.rows
