"""A folder in which no step was taken belongs to the corrected command; one with work to nobody."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import refuses

from data_injection.errors import ConfigError
from eval.checkpoints.checkpoint import find_checkpoints
from eval.records import read_records
from olmo_ext.callbacks.task_eval import TaskEval
from olmo_ext.config import ExperimentConfig, load_experiment
from olmo_ext.train import train
from olmo_ext.trainer import ExperimentTrainer

Write = Callable[..., Path]


def die_at_the_start(experiment: ExperimentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(self: ExperimentTrainer) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(ExperimentTrainer, "fit", end)
        with pytest.raises(RuntimeError, match="out of memory"):
            train(experiment)


@pytest.fixture
def died_at_the_start(
    write_experiment: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Path:
    """A run that saved and measured step 0, and ended before its first step."""
    die_at_the_start(load_experiment(write_experiment()), monkeypatch)
    assert find_checkpoints(tmp_path / "run")[-1].step == 0
    return tmp_path / "run"


@pytest.mark.parametrize("resume", [False, True])
def test_a_corrected_command_takes_over_where_no_step_was_taken(
    resume: bool, died_at_the_start: Path, write_experiment: Write
) -> None:
    corrected = load_experiment(write_experiment(), ["train.optimizer.learning_rate=0.003"])
    train(corrected, resume=resume)
    plan = json.loads((died_at_the_start / "plan.json").read_text())
    assert "0.003" in json.dumps(plan)
    assert find_checkpoints(died_at_the_start)[-1].step == 12
    records = read_records(died_at_the_start / "records.jsonl")
    assert set(records.learning_rate) == {0.003}


def test_the_same_command_resumes_there_from_step_0(
    died_at_the_start: Path, write_experiment: Write
) -> None:
    train(load_experiment(write_experiment()), resume=True)
    starts = json.loads((died_at_the_start / "run.json").read_text())["starts"]
    assert starts[1]["resumed_from"].endswith("step0-unsharded")


def test_what_wandb_leaves_is_the_starts_own(
    died_at_the_start: Path, write_experiment: Write
) -> None:
    (died_at_the_start / "wandb_id").write_text("0a1b2c3d")
    (died_at_the_start / "wandb" / "offline-run").mkdir(parents=True)
    corrected = load_experiment(write_experiment(), ["train.optimizer.learning_rate=0.003"])
    train(corrected, dry_run=True)
    train(corrected)
    assert find_checkpoints(died_at_the_start)[-1].step == 12
    assert not (died_at_the_start / "wandb_id").exists()


@pytest.fixture
def begun(write_experiment: Write, tmp_path: Path) -> list[str]:
    """Settings of a run that begins with another's checkpoint of step 6, in the tiny run's folder;
    the other's is beside it."""
    parent = [f"train.save_folder={tmp_path / 'parent'}", "train.max_duration=6"]
    train(load_experiment(write_experiment(), [*parent, "injection.tasks=[]"]))
    window = "[{name: cmp, num_symbols: 10, schedule: {kind: window, rate: 2, start: 8}}]"
    settings = [f"injection.tasks={window}", "callbacks={task_eval: {every: 1}}"]
    return [*settings, f"train.load_path={tmp_path}/parent/step6-unsharded"]


def test_a_run_begun_with_anothers_checkpoint_is_taken_over_too(
    begun: list[str], write_experiment: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its progress says step 6, none of which it took; from step 7 on its folder is kept."""
    file = write_experiment(lambda config: config["callbacks"].pop("progress"))
    die_at_the_start(load_experiment(file, begun), monkeypatch)
    progress = tmp_path / "run" / "progress.json"
    told = json.loads(progress.read_text())
    assert told["step"] == 6
    corrected = load_experiment(file, [*begun, "train.optimizer.eps=1e-3"])
    progress.write_text(json.dumps(told | {"step": 7}))
    with refuses(key="train.save_folder", value=tmp_path / "run", rule="by an earlier run"):
        train(corrected, dry_run=True)
    progress.write_text(json.dumps(told))
    train(corrected)
    assert [one.step for one in find_checkpoints(tmp_path / "run")] == [12]


@pytest.mark.parametrize("resume", [False, True])
def test_a_command_corrected_to_begin_with_a_checkpoint_begins_with_it(
    resume: bool,
    begun: list[str],
    write_experiment: Write,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Not with the step 0 that the start before it has left."""
    die_at_the_start(load_experiment(write_experiment(), begun[:-1]), monkeypatch)
    train(load_experiment(write_experiment(), begun), resume=resume)
    assert [one.step for one in find_checkpoints(tmp_path / "run")] == [12]
    last = json.loads((tmp_path / "run" / "run.json").read_text())["starts"][-1]
    assert last["resumed_from"] == begun[-1].partition("=")[2]


@pytest.mark.parametrize("kept", ["thesis.tex", "step3-unsharded.damaged-ab12cd/model.pt"])
def test_what_is_not_the_starts_own_is_never_taken_over(
    kept: str, died_at_the_start: Path, write_experiment: Write
) -> None:
    (died_at_the_start / kept).parent.mkdir(exist_ok=True)
    (died_at_the_start / kept).write_text("precious")
    with refuses(key="train.save_folder", value=died_at_the_start, rule="by an earlier run"):
        train(load_experiment(write_experiment()))
    assert (died_at_the_start / kept).read_text() == "precious"


def die_after_three_steps(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are evaluated and not saved."""
    evaluate = TaskEval.on_step

    def crash(self: TaskEval, trainer: ExperimentTrainer, metrics: Any) -> None:
        evaluate(self, trainer, metrics)
        if trainer.global_step == 3:
            raise RuntimeError("a cable was pulled")

    with monkeypatch.context() as patch:
        patch.setattr(TaskEval, "on_step", crash)
        with pytest.raises(RuntimeError, match="cable"):
            train(load_experiment(experiment))


def test_steps_that_were_taken_and_not_saved_are_not_taken_over(
    write_experiment: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    die_after_three_steps(write_experiment(), monkeypatch)
    folder = tmp_path / "run"
    with refuses(key="train.save_folder", value=folder, remedy="pass --resume"):
        train(load_experiment(write_experiment(), ["train.seed=3"]))
    with refuses(key=folder, value=[("data_seed", 3, 7), ("train.seed", 3, 7)]):
        train(load_experiment(write_experiment(), ["train.seed=3"]), resume=True)


def test_records_of_steps_are_enough_to_keep_a_folder(
    write_experiment: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No progress is written, no instance was in the ledger yet, no step was saved."""

    def edit(config: dict) -> None:
        schedule = {"kind": "window", "rate": 2, "start": 8, "stop": 10}
        config["injection"]["tasks"] = [{"name": "cmp", "num_symbols": 10, "schedule": schedule}]
        config["callbacks"] = {"task_eval": {"every": 1}, "progress": None}

    die_after_three_steps(write_experiment(edit), monkeypatch)
    with refuses(key="train.save_folder", value=tmp_path / "run", rule="by an earlier run"):
        train(load_experiment(write_experiment(edit)))
    assert read_records(tmp_path / "run").step.max() == 3


def test_a_finished_folder_says_that_it_is_finished_and_what_to_do(write_experiment: Write) -> None:
    folder = train(load_experiment(write_experiment()))
    rule = ("by a run that is finished", "step 12 of 12")
    remedy = (f"olmo-ext report {folder}", "--resume", "another folder")
    with refuses(key="train.save_folder", value=folder, rule=rule, remedy=remedy):
        train(load_experiment(write_experiment()))


@pytest.mark.parametrize(
    "key",
    [
        "time_limit",
        "max_grad_norm",
        "max_grad_norm_ratio",
        "early_stopping_factor",
        "model.clip_qkv",
    ],
)
def test_an_infinite_limit_is_refused_with_null_as_its_remedy(
    key: str, write_experiment: Write
) -> None:
    with refuses(key=f"train.{key}", value=math.inf, remedy="null sets no limit"):
        train(load_experiment(write_experiment(), [f"train.{key}=.inf"]), dry_run=True)
    train(load_experiment(write_experiment(), [f"train.{key}=null"]), dry_run=True)


def test_an_infinite_rate_has_no_null(write_experiment: Write) -> None:
    with pytest.raises(ConfigError) as error:
        train(
            load_experiment(write_experiment(), ["train.optimizer.learning_rate=.inf"]),
            dry_run=True,
        )
    assert "null" not in str(error.value)
