"""The line that starts a run's ranks: what it says and refuses, and that no shell reads it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import refuses
from rich.console import Console

from data_injection.errors import NO_VALUE
from launch.slurm.torchrun import launch_torchrun, torchrun_command, train_arguments

Write = Callable[..., Path]


def test_one_node_stands_alone_and_several_meet() -> None:
    one = torchrun_command(["train", "a.yaml", "--resume"], nproc=8, bin_folder=Path("/bin"))
    assert one[:3] == ["/bin/torchrun", "--nnodes=1", "--nproc-per-node=8"]
    assert "--standalone" in one
    assert one[-5:] == ["-m", "launch", "train", "a.yaml", "--resume"]
    several = torchrun_command(
        [], nproc=8, nnodes=4, rdzv_endpoint="node01:29400", rdzv_id="1B", max_restarts=3
    )
    assert "--standalone" not in several
    for part in ("c10d", "node01:29400", "1B"):
        assert sum(part in argument for argument in several) == 1
    assert "--max-restarts=3" in several


def test_torchrun_knows_the_options_that_the_line_has() -> None:
    """Its own parser, of the installed version: a renamed option must not wait for a cluster."""
    from torch.distributed.run import config_from_args, get_args_parser

    command = torchrun_command(
        ["train", "a.yaml", "--resume"], nproc=2, nnodes=2, rdzv_endpoint="localhost:29400"
    )
    config, program, arguments = config_from_args(get_args_parser().parse_args(command[1:]))
    assert config.signals_to_handle == "SIGTERM,SIGINT,SIGUSR1"
    assert (config.shutdown_timeout, config.max_restarts) == (600, 0)
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (2, 2, 2)
    assert program == sys.executable  # torchrun's own interpreter
    assert arguments == ["-u", "-m", "launch", "train", "a.yaml", "--resume"]


@pytest.mark.parametrize(
    ("options", "key", "value", "rule"),
    [
        ({"nproc": 0}, "--nproc", 0, "at least 1"),
        ({"nnodes": 0}, "--nnodes", 0, "at least 1"),
        ({"max_restarts": -1}, "--max-restarts", -1, "at least 0"),
        ({"shutdown_timeout": 0}, "--shutdown-timeout", 0, "at least 1"),
        ({"nnodes": 2}, "--nnodes", 2, "--rdzv-endpoint HOST:PORT"),
        ({"rdzv_endpoint": "a:1"}, "--rdzv-endpoint and --rdzv-id", NO_VALUE, "several nodes"),
        ({"nnodes": 2, "rdzv_endpoint": "node01"}, "--rdzv-endpoint", "node01", "HOST:PORT"),
        ({"nnodes": 2, "rdzv_endpoint": "$(id):1"}, "--rdzv-endpoint", "$(id):1", "HOST:PORT"),
        ({"nnodes": 2, "rdzv_endpoint": "a:70000"}, "--rdzv-endpoint", "a:70000", "HOST:PORT"),
        ({"driver": "mine.py; rm"}, "--driver", "mine.py; rm", "a module"),
    ],
)
def test_a_line_that_cannot_work_is_refused_by_option(
    options: dict[str, Any], key: str, value: object, rule: str
) -> None:
    with refuses(key=key, value=value, rule=rule):
        torchrun_command([], **{"nproc": 1} | options)


def test_ranks_that_do_not_divide_the_batch_are_refused_before_anything_starts(
    write_experiment: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = "train.global_train_batch_size 8"
    with refuses(key="--nproc x --nnodes", value=3, rule=rule, remedy="is 2"):
        launch_torchrun(write_experiment(), nproc=3, dry_run=True, console=Console())
    assert capsys.readouterr().out == ""


def test_a_metacharacter_in_a_path_or_name_is_an_argument_not_a_command(
    write_experiment: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = write_experiment()
    odd = experiment.rename(tmp_path / "a $(touch hacked);'b .yaml")
    overrides = ["train.run_name='`touch hacked` & x'", f"train.save_folder={tmp_path}/$(touch y)"]
    launch_torchrun(odd, nproc=2, overrides=overrides, dry_run=True, console=Console(width=20))
    (line,) = capsys.readouterr().out.splitlines()
    words = shlex.split(line)
    assert words[-len(train_arguments(odd, overrides)) :] == train_arguments(odd, overrides)
    # And as a shell reads it: each word comes out as it went in, and nothing ran.
    command = line.replace(words[1], "printf '%s\\n'", 1)
    said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert said.stdout.splitlines() == words[2:]
    assert not (tmp_path / "hacked").exists()
    assert not (tmp_path / "y").exists()


DRIVER = """
import os
from pathlib import Path

from data_injection.tasks.build import TASKS

Path(__file__).with_name("rank" + os.environ["RANK"]).touch()

if __name__ == "__main__":
    from launch.cli import main

    main()
"""


@pytest.mark.slow
def test_a_driver_of_ones_own_runs_on_every_rank_and_no_folder_of_the_run_hides_ours(
    write_experiment: Write, tmp_path: Path
) -> None:
    """From a folder that has a `launch` and an `eval` of its own, with PYTHONPATH alone."""
    mine, here = tmp_path / "mine", tmp_path / "here"
    mine.mkdir()
    (mine / "my_driver.py").write_text(DRIVER)
    for name in ("launch", "eval"):
        (here / name).mkdir(parents=True)
        (here / name / "__init__.py").write_text("raise SystemExit('not this one')")
    command = [sys.executable, "-P", "-m", "launch", "launch", "torchrun", str(write_experiment())]
    command += ["--nproc=2", "--driver=my_driver", "-o", "train.stop_at=2"]
    path = os.pathsep.join(filter(None, [str(mine), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, cwd=here, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert {file.name for file in mine.glob("rank*")} == {"rank0", "rank1"}
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["starts"][0]["world_size"] == 2
    assert "my_driver" in run["command"]
