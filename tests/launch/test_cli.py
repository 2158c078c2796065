"""The command line: exit status, one message, and the verbs on a real run."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import typer
import warm
from typer.testing import CliRunner

from data_injection.errors import ConfigError
from launch import cli
from launch.terminal import exits
from launch.train import train_as_typed

Write = Callable[..., Path]


def program(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The installed program itself; elsewhere its main() in a process of its own will do."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("olmo-ext")), *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        check=False,
        env=os.environ | {"COLUMNS": "120"},
    )


def olmo_ext(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return warm.run(*args, cwd=cwd, env={"COLUMNS": "120"})


def test_help_answers_without_importing_the_engine() -> None:
    code = "import sys, launch.cli; sys.exit(any(m in sys.modules for m in ('torch', 'olmo')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    done = program("--help")
    for verb in ("quickstart", "prepare", "plan", "train", "eval", "report", "doctor"):
        assert verb in done.stdout


def test_bad_input_ends_with_status_2_and_one_message(
    write_experiment: Write, tmp_path: Path
) -> None:
    done = olmo_ext("train", write_experiment(), "-o", "injection.tasks.0.schedule.rate=99")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "tasks[0].schedule" in done.stderr
    assert not (tmp_path / "run").exists()


def test_train_eval_and_report_work_from_any_folder(
    write_experiment: Write, tmp_path: Path
) -> None:
    # A folder named like a room must not hide the installed package.
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "eval").mkdir(parents=True)
    experiment = write_experiment(lambda c: c["callbacks"].update(task_eval={"every": 6}))
    plan = program("plan", experiment, cwd=elsewhere)
    assert plan.returncode == 0, plan.stderr
    assert "24" in plan.stdout  # 12 steps at rate 2
    typo = olmo_ext("plan", experiment, "-o", "callbacks.task_evl.every=3", cwd=elsewhere)
    assert typo.returncode == 2
    assert "task_eval" in typo.stderr
    trained = olmo_ext("train", experiment, cwd=elsewhere)
    assert trained.returncode == 0, trained.stderr
    # The first adds the breakdown that the callback leaves out, the second nothing.
    evaluated = olmo_ext("eval", tmp_path / "run", cwd=elsewhere)
    assert evaluated.returncode == 0, evaluated.stderr
    again = olmo_ext("eval", tmp_path / "run", cwd=elsewhere)
    said = again.stdout + again.stderr  # what was done beside the progress bar, on stderr
    assert said.count("already there") == 3, said
    report = olmo_ext("report", tmp_path / "run", "--out", tmp_path / "report", cwd=elsewhere)
    assert report.returncode == 0, report.stderr
    names = {p.name for p in (tmp_path / "report").iterdir()}
    assert names >= {"report.html", "heatmap.png", "curves.png", "cells.csv", "records.csv"}


def test_a_report_of_nothing_says_what_to_do(tmp_path: Path) -> None:
    done = olmo_ext("report", tmp_path)
    assert done.returncode == 2
    assert "train a run" in done.stderr


def test_doctor_finds_this_environment_fit() -> None:
    done = olmo_ext("doctor")
    assert done.returncode == 0, done.stdout
    assert "fail" not in done.stdout


def test_quickstart_takes_a_corpus_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []

    def plan_runs(sweep: object, out: Path, *, overrides: list[str]) -> list[object]:
        given.append(overrides)
        raise ConfigError("planned")

    monkeypatch.setattr("launch.sweep.quickstart.plan_runs", plan_runs)
    monkeypatch.setattr("launch.sweep.quickstart.embedded_corpus", None)  # none is made
    words = ["quickstart", "--out", str(tmp_path), "--corpus", "mine"]
    CliRunner().invoke(cli.app, words)
    assert given == [["corpus=mine"]]


def test_quickstart_refuses_a_width_that_cannot_be(tmp_path: Path) -> None:
    pytest.importorskip("olmo")
    done = olmo_ext("quickstart", "--out", tmp_path / "q", "--widths", "10")
    assert done.returncode == 2
    assert "--widths" in done.stderr


def test_the_module_is_the_program() -> None:
    command = [sys.executable, "-m", "launch", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "quickstart" in done.stdout


def test_a_sweeps_child_can_do_nothing_but_train() -> None:
    """It needs no other verb, and so imports none: the circle cli -> executor -> cli is no more."""
    code = "import sys, launch.sweep.executor; sys.exit('launch.cli' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(ValueError, match="a run is `olmo-ext train"):
        train_as_typed(["report", "runs"])


EXAMPLES = [(name, example) for verbs in cli.VERBS.values() for name, (_, example) in verbs.items()]


@pytest.mark.parametrize(("verb", "example"), EXAMPLES)
def test_a_verbs_help_has_an_example_that_it_understands(verb: str, example: str) -> None:
    command = typer.main.get_command(cli.app).commands[verb]
    command.make_context(verb, shlex.split(example))
    done = CliRunner().invoke(cli.app, [verb, "--help"], env={"COLUMNS": "200"})
    assert f"For example: olmo-ext {verb} {example}".rstrip() in done.stdout


def test_a_path_that_is_not_there_is_named_with_its_neighbour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiment.yaml").touch()
    monkeypatch.chdir(tmp_path)
    for typed, meant in (
        ("experimnt.yaml", "did you mean experiment.yaml?"),
        ("runs", "no runs\n"),
    ):
        monkeypatch.setattr(sys, "argv", ["olmo-ext", "train", typed])
        with pytest.raises(SystemExit), exits():
            raise FileNotFoundError(f"no {typed}")
        assert meant in capsys.readouterr().err


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    done = olmo_ext("--debug", "report", tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "load_runs" in done.stderr


def test_the_version_is_the_installed_ones() -> None:
    assert program("--version").stdout == f"olmo-ext {metadata.version('olmo-ext')}\n"
