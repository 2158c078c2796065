"""The README's own experiment, as it stands there: own text, own task, killed, resumed, scored."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import warm

from data_injection.corpus.prepare import prepare_embedded

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TOKENIZER = "runs/quickstart/corpus/tokenizer.json"
SHORT = {"train.max_duration": 60, "train.save_interval_unsharded": 30}
KILLED = """
import os, signal
from launch.cli import main
from olmo_ext.trainer import ExperimentTrainer

step = ExperimentTrainer.train_step

def killed(self, *args, **options):
    if self.global_step == 45:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **options)

ExperimentTrainer.train_step = killed
main()
"""
"""`olmo-ext train` whose power is cut between two checkpoints."""
CANARY = "injection.tasks.0.family=mytask:Canary"


def block(language: str, holding: str) -> str:
    """The one fenced block of the README in `language` that has a word in it."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (found,) = [text for text in blocks if holding in text]
    return found


def commands() -> list[list[str]]:
    lines = block("bash", "olmo-ext train").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("olmo-ext")]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A newcomer's folder: text of their own, a task of their own, the README's file."""
    desk = tmp_path_factory.mktemp("desk")
    prepare_embedded(desk / "embedded", vocab_size=2048, max_documents=60)
    (desk / TOKENIZER).parent.mkdir(parents=True)
    shutil.copy(desk / "embedded" / "tokenizer.json", desk / TOKENIZER)
    (desk / "text").mkdir()
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:40]
    with (desk / "text" / "own.jsonl").open("w") as file:
        for source in sources:
            file.write(json.dumps({"text": source.read_text()}) + "\n")
    experiment = block("yaml", "rung:")
    for key, value in SHORT.items():
        name = key.split(".")[-1]
        experiment, count = re.subn(rf"(?m)^(  {name}: )\d+", rf"\g<1>{value}", experiment)
        assert count == 1
    (desk / "experiment.yaml").write_text(experiment)
    shutil.copy(ROOT / "examples/olmo_ext_canary/olmo_ext_canary/tasks.py", desk / "mytask.py")
    return desk


def run(words: list[str], desk: Path) -> subprocess.CompletedProcess[str]:
    return warm.run(*words[1:], cwd=desk, env={"COLUMNS": "100"}, timeout=600)


def test_the_commands_are_the_six_in_their_order() -> None:
    verbs = ["prepare", "plan", "train", "audit", "eval", "report"]
    assert [words[1] for words in commands()] == verbs


@pytest.mark.slow
def test_the_readmes_own_experiment_runs_as_it_stands(desk: Path) -> None:
    for words in commands():
        done = run(words, desk)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    assert (desk / "runs" / "mine" / "step60-unsharded").is_dir()
    python = block("python", "load_experiment")
    done = subprocess.run(
        [sys.executable, "-c", python], cwd=desk, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "rare" in done.stdout


@pytest.mark.slow
def test_a_task_of_ones_own_is_killed_resumed_audited_exported_and_scored(desk: Path) -> None:
    ours = [CANARY, "train.save_folder=runs/own", "callbacks.interference=null"]
    train = ["olmo-ext", "train", "experiment.yaml", *(w for o in ours for w in ("-o", o))]
    if not (desk / "corpus").exists():
        assert run(commands()[0], desk).returncode == 0
    killed = subprocess.run([sys.executable, "-c", KILLED, *train[1:]], cwd=desk, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (desk / "runs/own/step30-unsharded").is_dir()
    resumed = run([*train, "--resume"], desk)
    assert resumed.returncode == 0, resumed.stderr
    for words in (
        ["olmo-ext", "audit", "runs/own", "--full"],
        ["olmo-ext", "export", "runs/own", "--to", "hf", "--out", "exported"],
        ["olmo-ext", "eval", "exported", "--plan", "runs/own"],
        ["olmo-ext", "report", "runs/own"],
    ):
        done = run(words, desk)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
