"""Sweeps: their grid and their bookkeeping. What they find is checked by `make smoke`, in CI."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from refusals import refuses
from rich.console import Console
from waiting import wait_until

from data_injection.errors import ConfigError
from data_injection.lock import is_locked, lock_folder
from launch.grid import Sweep, load_sweep
from launch.runs import Run, plan_runs, plan_sweeps
from launch.sweep import executor
from launch.sweep.executor import ENVIRONMENT, RunFailed, train_all
from olmo_ext.config import save_experiment


def make_run(name: str, folder: Path, *arguments: str, seed: int = 1) -> Run:
    return Run(name, folder / name, arguments, 10, 10_000, {"train": {"seed": seed}})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run("w4", tmp_path, "train", str(tmp_path / "none.yaml"))


def finish(run: Run) -> None:
    checkpoint = run.folder / f"step{run.num_steps}-unsharded"
    checkpoint.mkdir(parents=True)
    for name in ("model.pt", "optim.pt", "train.pt", "config.yaml", "olmo_ext.json"):
        (checkpoint / name).touch()


def test_a_finished_run_is_not_trained_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(run)
    monkeypatch.setattr(executor, "start", None)
    train_all([run], jobs=1, console=Console(quiet=True))


def test_a_run_of_other_settings_is_refused_not_reported_as_this_one(run: Run) -> None:
    run.check_settings()
    replace(run).check_settings()
    with refuses(key=run.folder, rule="other settings", remedy="choose another --out"):
        replace(run, settings={"train": {"seed": 2}}).check_settings()


def test_a_failed_run_shows_the_end_of_its_log_and_stops_the_others(
    run: Run, write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    # Long, but not so that it starts by writing its rows' order for minutes: no signal ends that.
    endless = write_experiment(lambda config: config["train"].update(max_duration=20_000))
    other = make_run("w8", tmp_path, "train", str(endless))
    with pytest.raises(RunFailed, match=r"(?s)w4 ended with status 2.*none.yaml"):
        train_all([other, run], jobs=2, console=Console(quiet=True))
    assert not is_locked(other.folder)  # nobody holds its folder any more
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_sweeps_run_equals_the_same_command_typed(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    """Forked from a process that has imported the engine, or started afresh: the same weights."""
    experiment = write_experiment()
    (run,) = plan_runs(
        Sweep("demo", (experiment,), {"seed": {"s3": {"train.seed": 3}}}), tmp_path / "out"
    )
    train_all([run], jobs=1, console=Console(quiet=True))
    told = json.loads((run.folder / "run.json").read_text())
    assert told["command"] == shlex.join(["olmo-ext", *run.arguments])
    program = Path(sys.executable).with_name("olmo-ext")
    again = [a.replace(str(run.folder), str(tmp_path / "typed")) for a in run.arguments]
    subprocess.run([str(program), *again], env=os.environ | ENVIRONMENT, check=True)
    ours, theirs = (
        torch.load(folder / "step12-unsharded" / "model.pt", weights_only=True)
        for folder in (run.folder, tmp_path / "typed")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_progress_is_that_of_the_latest_start(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    told = run.folder / "progress.json"
    monkeypatch.setattr(executor, "fork_server", MagicMock())
    assert executor.start(run).step == 0
    told.write_text('{"step": 7}')
    started = executor.start(run)
    assert started.step == 0  # what an earlier start told of is lost: there is no checkpoint
    told.write_text('{"step": 3}')
    assert started.step == 3
    finish(run)
    assert executor.start(run).step == 10  # nothing said yet: where it goes on


def test_children_run_on_one_thread_and_offline() -> None:
    assert ENVIRONMENT["OMP_NUM_THREADS"] == "1"
    assert ENVIRONMENT["HF_HUB_OFFLINE"] == "1"


def sweep_file(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def test_a_sweeps_grid_is_every_combination_named_by_its_labels(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    write_experiment()
    path = sweep_file(
        tmp_path,
        """
name: demo
experiments: [experiment.yaml]
set: {train.max_duration: 6, injection.tasks.0.schedule.rate: 1}
axes:
  rate:
    r2: {injection.tasks.0.schedule.rate: 2}
    rq: {injection.tasks.0.schedule.rate: 1/4}
  seed: {s1: {train.seed: 1}, s2: {train.seed: 2, injection.seed: 2}}
""",
    )
    runs = plan_runs(load_sweep(path), tmp_path / "out", overrides=["train.seed=9"])
    assert [run.name for run in runs] == [
        "demo-r2-s1",
        "demo-r2-s2",
        "demo-rq-s1",
        "demo-rq-s2",
    ]
    assert [run.folder for run in runs[:1]] == [tmp_path / "out" / "r2-s1"]
    assert {run.num_steps for run in runs} == {6}
    assert [run.settings["train"]["seed"] for run in runs] == [9] * 4  # the command line has it
    assert [run.settings["plan"]["seed"] for run in runs] == [0, 2, 0, 2]
    schedules = [run.settings["plan"]["tasks"]["cmp"]["schedule"] for run in runs]
    assert schedules[0] == schedules[1]
    assert schedules[0] != schedules[2]


@pytest.mark.parametrize(
    ("text", "key", "rule", "value"),
    [
        ("- a\n", "", "must have the keys", ["a"]),
        ("experimets: [a.yaml]\naxes: {}\n", "", "must have the keys", ["experimets"]),
        ("axes: {a: {b: {}}}\n", ": experiments", "must list", None),
        ("experiments: [a.yaml]\n", ": axes", "must map", None),
        ("experiments: [a.yaml]\naxes: {seed: [1, 2]}\n", ": axes.seed", "must map labels", [1, 2]),
        (
            "experiments: [a.yaml]\naxes: {seed: {s1: 3}}\n",
            ": axes.seed",
            "must map labels",
            {"s1": 3},
        ),
        ("experiments: [a.yaml]\nset: 3\naxes: {s: {s1: {}}}\n", ": set", "must map", 3),
        ("{", "", "is not YAML", ...),
    ],
)
def test_a_sweep_file_that_cannot_be_one_is_refused(
    tmp_path: Path, text: str, key: str, rule: str, value: object
) -> None:
    with pytest.raises(ConfigError) as refused:
        load_sweep(file := sweep_file(tmp_path, text))
    assert (refused.value.key, refused.value.value) == (f"{file}{key}", value)
    assert rule in refused.value.rule


def test_a_missing_sweep_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no sweep file"):
        load_sweep(tmp_path / "none.yaml")


@pytest.mark.parametrize("label", ["a/b", "a-b", "$(touch x)", "a b", "", "..", ".hidden"])
def test_a_label_that_is_no_part_of_a_name_is_refused(label: str) -> None:
    with refuses(key="sweep demo: a label", value=label, rule="a part of run names"):
        Sweep("demo", (Path("a.yaml"),), {"seed": {label: {}}}).points()


@pytest.mark.parametrize("axis", [{}, {1: {}, "1": {}}])
def test_an_axis_without_labels_or_with_two_of_one_text_is_refused(axis: dict) -> None:
    with refuses(key="sweep demo: axes.seed", value=[*axis], rule="labels, all different"):
        Sweep("demo", (Path("a.yaml"),), {"seed": axis}).points()


def test_an_axis_setting_of_a_whole_list_is_not_overridden_by_the_sweeps_for_a_part() -> None:
    sweep = Sweep(
        "demo",
        (Path("a.yaml"),),
        {"task": {"t": {"injection.tasks": [{"name": "b"}], "train.seed": 1}}},
        {"injection.tasks": [], "injection.tasks.0.name": "a"},
    )
    assert list(sweep.points()[0].settings)[-2:] == ["injection.tasks", "train.seed"]


def test_a_setting_that_is_no_plain_value_is_refused(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    import datetime

    day = datetime.date(2026, 1, 1)
    axes = {"seed": {"s1": {"train.run_name": day}}}
    with refuses(key="sweep demo: train.run_name", value=day, rule="text", remedy="in quotes"):
        plan_runs(Sweep("demo", (write_experiment(),), axes), tmp_path / "out")


def test_other_callbacks_are_other_settings(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    """A finished run without the asked measurements must not pass as the one asked for."""
    sweep = Sweep("demo", (write_experiment(),), {"seed": {"s1": {}}})
    (before,) = plan_runs(sweep, tmp_path / "out")
    (after,) = plan_runs(sweep, tmp_path / "out", overrides=["callbacks.task_eval.every=3"])
    before.check_settings()
    with refuses(key=after.folder, rule="other settings"):
        after.check_settings()


MASK, FSDP = "train.data.generate_attention_mask=true", "train.distributed_strategy=fsdp"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["train.load_path=/one/step6-unsharded"], ["train.load_path=/other/step6-unsharded"]),
        (["train.load_path=/one/step6-unsharded"], []),
        ([MASK], []),
        ([FSDP, "train.fsdp.precision=pure"], [FSDP]),
    ],
)
def test_what_changes_a_runs_weights_is_of_its_settings_and_of_an_older_folders_config(
    one: list[str], other: list[str], write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    """A finished run from elsewhere must not pass as the one asked for."""

    def plan(overrides: list[str]) -> Run:
        sweep = Sweep("demo", (write_experiment(),), {"seed": {"s1": {}}})
        return plan_runs(sweep, tmp_path / "out", overrides=overrides)[0]

    run, another = plan(one), plan(other)
    run.check_settings()
    run.check_settings()
    with refuses(key=another.folder, rule="other settings"):
        another.check_settings()
    # As a folder was written before these were told.
    told = run.log.with_name("settings.json")
    told.write_text(json.dumps(plan([o for o in one if o == FSDP]).settings))
    with refuses(key=run.folder, rule="other settings"):
        run.check_settings()
    save_experiment(run.experiment.train, run.folder / "config.yaml")
    run.check_settings()


@pytest.mark.slow
def test_a_sweep_that_is_terminated_takes_its_runs_along(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    write_experiment(lambda config: config["train"].update(max_duration=20_000))
    text = "experiments: [experiment.yaml]\naxes: {seed: {s1: {}}}\n"
    program = Path(sys.executable).with_name("olmo-ext")
    out = tmp_path / "out"
    sweep = subprocess.Popen([program, "sweep", sweep_file(tmp_path, text), "--out", out])
    wait_until((out / "sweep" / "s1" / "records.jsonl").exists)
    sweep.terminate()
    assert sweep.wait(timeout=600) == 143
    with lock_folder(out / "sweep" / "s1"):  # held by the run as long as it lives
        pass


BURST = "{twin: burst, step: 6}"
FROM = "sweep sweep: init_from"


def twins(folder: Path, none: str = BURST, more: str = "") -> Sweep:
    text = f"""
experiments: [experiment.yaml]
set: {{injection.tasks: [{{name: cmp, num_symbols: 10, schedule: {{kind: window, start: 6}}}}]}}
axes:
  twin:
    none: {{init_from: {none}, injection.tasks: []}}
    burst: {{injection.tasks.0.schedule.rate: 2 {more}}}
  seed: {{s1: {{train.seed: 1}}, s2: {{train.seed: 2}}}}
"""
    return load_sweep(sweep_file(folder, text))


def test_a_twin_begins_with_its_siblings_checkpoint(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    write_experiment()
    runs = plan_runs(twins(tmp_path), tmp_path / "out")
    assert [run.name for run in runs][::2] == ["sweep-none-s1", "sweep-burst-s1"]
    twin, parent = runs[1], runs[3]
    assert f"train.load_path={parent.folder}/step6-unsharded" in twin.arguments
    assert (twin.num_tokens, parent.num_tokens) == (6 * 128, 12 * 128)
    assert twin.parent == parent
    assert (twin.waits, parent.waits) == (True, False)
    (parent.folder / "step6-unsharded").mkdir(parents=True)
    assert not twin.waits


@pytest.mark.parametrize(
    ("none", "more", "key", "value", "said"),
    [
        ("{twin: burst, step: 5}", "", "train.save_interval_unsharded", 6, "of step 5"),
        ("{twin: burst, step: 12}", "", "train.max_duration", 12, "above 12"),
        ("{twin: bust, step: 6}", "", FROM, {"twin": "bust", "step": 6}, "labels of the sweep's"),
        ("{twin: burst}", "", FROM, {"twin": "burst"}, "a step above 0"),
        ("{step: 6}", "", FROM, {"step": 6}, "must give labels"),
        ("burst", "", FROM, "burst", "must give labels"),
        ("{twin: none, step: 6}", "", f"{FROM}.step", 6, "above 6, where none-s1 begins"),
        (BURST, ", init_from: {twin: none, step: 7}", f"{FROM}.step", 6, "above 7"),
        (
            BURST,
            ", injection.tasks.0.schedule.start: 5",
            "injection.tasks[0].schedule",
            "2 instances before it",
            "at step 6 or later",
        ),
        (
            BURST,
            ", train.model.n_layers: 2",
            "train.load_path",
            "out/burst-s1/step6-unsharded",
            "another model (train.model, n_layers: 1 now, 2 then)",
        ),
        (
            BURST,
            ", train.save_num_unsharded_checkpoints_to_keep: 1",
            "train.save_interval_unsharded",
            6,
            "keep all",
        ),
    ],
)
def test_a_checkpoint_that_the_sibling_will_not_leave_is_refused(
    none: str,
    more: str,
    key: str,
    value: Any,
    said: str,
    write_experiment: Callable[..., Path],
    tmp_path: Path,
) -> None:
    write_experiment()
    value = tmp_path / value if key == "train.load_path" else value
    with refuses(key=key, value=value) as error:
        plan_runs(twins(tmp_path, none, more), tmp_path / "out")
    assert said in f"{error.value.rule}; {error.value.remedy}"
    with refuses(key="sweep sweep: only", value=["none-s1"], rule="burst-s1 too"):
        replace(twins(tmp_path), only=("none-s1",)).points()


def test_sweeps_of_one_name_are_refused(tmp_path: Path) -> None:
    sweep = Sweep("demo", (Path("a.yaml"),), {"seed": {"s1": {}}})
    with refuses(key="sweeps", rule="['demo']", remedy="rename"):
        plan_sweeps([sweep, sweep], tmp_path)


def test_experiments_of_one_file_name_are_refused() -> None:
    sweep = Sweep("demo", (Path("ladder/4M.yaml"), Path("paper/4M.yaml")), {"seed": {"s1": {}}})
    with refuses(key="sweep demo: experiments", value=["4M", "4M"], rule="file names"):
        sweep.points()


def test_a_point_that_cannot_run_is_named_before_any_run_starts(
    write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    axes = {"rate": {"r2": {}, "r99": {"injection.tasks.0.schedule.rate": 99}}}
    key, of = "injection.tasks[0].schedule", "sweep demo, run r99: "
    with refuses(key=key, value=99, rule="at most 8 instances", of=of):
        plan_runs(Sweep("demo", (write_experiment(),), axes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


CONFIRM = Path(__file__).parent.parent.parent.parent / "configs" / "confirm"


def test_the_findings_sweeps_have_three_seeds_and_names_of_their_own() -> None:
    sweeps = [load_sweep(p) for p in sorted(CONFIRM.glob("*.yaml")) if p.stem != "experiment"]
    assert len({sweep.name for sweep in sweeps}) == len(sweeps) > 8
    for sweep in sweeps:
        assert len(sweep.axes["seed"]) >= 3
        points = sweep.points()
        assert len({point.labels for point in points}) == len(points)
