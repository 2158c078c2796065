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


def olmo_ext(*args: object, cwd: Path, path: list[Path]) -> subprocess.CompletedProcess[str]:
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

    def call(*args: object, path: list[Path]) -> str:
        done = olmo_ext(*args, cwd=experiment.parent, path=path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

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


@pytest.mark.slow
def test_a_file_in_the_working_folder_is_enough(write_experiment: Callable[..., Path]) -> None:
    experiment = write_experiment(
        lambda config: config["injection"]["tasks"][0].update(family="mine:Canary")
    )
    shutil.copy(PACKAGE / "olmo_ext_canary" / "tasks.py", experiment.parent / "mine.py")
    done = olmo_ext("plan", experiment, "--no-scan", cwd=experiment.parent, path=[])
    assert done.returncode == 0, done.stdout + done.stderr
