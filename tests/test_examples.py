"""A stranger's package, installed beside this one, serves every verb from another folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import warm

from eval.records import read_records

PACKAGE = Path(__file__).parents[1] / "examples" / "olmo_ext_canary"
CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package in a folder of its own; built from a copy, for a build leaves files."""
    copy, target = tmp_path_factory.mktemp("copy") / "canary", tmp_path_factory.mktemp("target")
    shutil.copytree(PACKAGE, copy)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(copy)], check=True, capture_output=True)
    return target


def olmo_ext(
    *args: object, cwd: Path, path: list[Path], ranks: int = 0
) -> subprocess.CompletedProcess[str]:
    search = {"PYTHONPATH": os.pathsep.join(map(str, path))}
    return warm.run(*args, cwd=cwd, env=search, ranks=ranks)


def program(*args: object, cwd: Path, path: list[Path]) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join(map(str, [CHECKOUT, *path]))
    return subprocess.run(
        [str(Path(sys.executable).with_name("olmo-ext")), *map(str, args)],
        capture_output=True, text=True, cwd=cwd, env=os.environ | {"PYTHONPATH": search},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "callback"),
    [
        ("olmo_ext_canary.tasks:Canary", "olmo_ext_canary.callbacks:HeadNorms"),
        ("canary", "head_norms"),
    ],
)
def test_a_package_of_ones_own_serves_every_verb(
    family: str, callback: str, installed: Path, write_experiment: Callable[..., Path]
) -> None:
    def edit(config: dict) -> None:
        config["injection"]["tasks"] = [
            {"name": "leak", "family": family, "num_symbols": 8, "schedule": {"rate": 2}}
        ]
        config["callbacks"] |= {callback: {"every": 4}}

    experiment = write_experiment(edit)
    run = experiment.parent / "run"

    def call(*args: object, path: list[Path]) -> None:
        done = olmo_ext(*args, cwd=experiment.parent, path=path)
        assert done.returncode == 0, done.stdout + done.stderr

    call("plan", experiment, "--no-scan", path=[installed])
    call("train", experiment, "-o", "train.stop_at=6", path=[installed])
    call("train", experiment, "--resume", path=[installed])
    call("audit", run, path=[installed])
    scores = experiment.parent / "scores.csv"
    call("eval", run, "--out", scores, path=[installed])
    assert ",leak," in scores.read_text()

    records = read_records(run)
    assert set(records[records.task == "leak"].family) == {family}
    norms = records[records.metric == "head_norm"]
    assert sorted(zip(norms.step, norms["head"], strict=True)) == [
        (step, head) for step in (4, 6, 8, 12) for head in (0, 1)
    ]
    known = {one["name"]: one for one in json.loads((run / "run.json").read_text())["extensions"]}
    assert set(known) == {family, callback}
    assert known[family] == {
        "name": family,
        "path": "olmo_ext_canary.tasks:Canary",
        "package": "olmo-ext-canary",
        "version": "0.1.0",
    }

    # Without the package every verb says which one it was; audit checks what needs no package.
    for verb, status, said in (
        (["audit", run], 0, f"unknown family {family} (olmo-ext-canary, 0.1.0)"),
        (["eval", run], 2, "olmo-ext-canary==0.1.0"),
        (["train", experiment, "--resume"], 2, "olmo-ext-canary==0.1.0"),
    ):
        done = olmo_ext(*verb, cwd=experiment.parent, path=[])
        told = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == status, told
        assert said in told


DRIVER = """
from data_injection.tasks.build import TASKS
from launch.cli import main
from olmo_ext_canary.tasks import Canary

TASKS["mine"] = Canary
if __name__ == "__main__":
    main()
"""

SRUN = """#!/bin/bash
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""


@pytest.mark.slow
def test_it_reaches_several_ranks_a_sweeps_runs_and_a_batch_script_with_a_driver_of_ones_own(
    installed: Path, write_experiment: Callable[..., Path]
) -> None:
    def edit(config: dict) -> None:
        config["injection"]["tasks"] = [
            {"name": "leak", "family": "canary", "num_symbols": 8, "schedule": {"rate": 2}}
        ]
        config["callbacks"] |= {"head_norms": {"every": 4}}

    experiment = write_experiment(edit)
    folder = experiment.parent

    def check(run: Path, *, steps: set[int], world_size: int, family: str = "canary") -> None:
        records = read_records(run)
        assert set(records[records.metric == "head_norm"].step) == steps
        assert set(records[records.task == "leak"].family) == {family}
        told = json.loads((run / "run.json").read_text())
        assert told["starts"][-1]["world_size"] == world_size

    # Under torchrun itself: the batch script below.
    words = ["train", experiment, "-o", "train.stop_at=6"]
    done = olmo_ext(*words, cwd=folder, path=[installed], ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    check(folder / "run", steps={4, 6}, world_size=2)

    sweep = folder / "grid.yaml"
    sweep.write_text("experiments: [experiment.yaml]\naxes: {seed: {s1: {train.seed: 1}}}\n")
    words = ["sweep", sweep, "--out", folder / "out"]
    done = olmo_ext(*words, cwd=folder, path=[CHECKOUT, installed])
    assert done.returncode == 0, done.stdout + done.stderr
    check(folder / "out" / "grid" / "s1", steps={4, 8, 12}, world_size=1)

    # The driver registers what no import path or entry point names; submit and the ranks run it.
    (folder / "my_driver.py").write_text(DRIVER)
    srun = folder / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    search = os.pathsep.join(map(str, [folder, CHECKOUT, installed]))
    site = folder / "site.yaml"
    site.write_text(
        f"time: 10\nranks_per_node: 2\ndriver: my_driver\nenvironment: {{PYTHONPATH: '{search}'}}"
    )
    own = ["-o", "injection.tasks.0.family=mine", "-o", f"train.save_folder={folder}/batch"]
    submit = [folder / "my_driver.py", "submit", experiment, "--site", site, *own, "--dry-run"]
    done = olmo_ext(*submit, cwd=folder, path=[folder, CHECKOUT, installed])
    assert done.returncode == 0, done.stdout + done.stderr
    script = done.stdout  # and nothing else: `submit --dry-run > job.sbatch` is a script
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here"}
    slurm["PATH"] = f"{srun.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": search} | slurm,
    )
    log = folder / "batch" / "logs" / "train.log"
    assert "trained to step 12" in done.stdout, done.stdout + done.stderr + log.read_text()
    check(folder / "batch", steps={4, 8, 12}, world_size=2, family="mine")


@pytest.mark.slow
def test_a_file_in_the_working_folder_is_enough(write_experiment: Callable[..., Path]) -> None:
    experiment = write_experiment(
        lambda config: config["injection"]["tasks"][0].update(family="mine:Canary")
    )
    shutil.copy(PACKAGE / "olmo_ext_canary" / "tasks.py", experiment.parent / "mine.py")
    done = program("plan", experiment, "--no-scan", cwd=experiment.parent, path=[])
    assert done.returncode == 0, done.stdout + done.stderr
