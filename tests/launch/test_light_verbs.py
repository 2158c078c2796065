"""What only reads small files answers at once: it imports no torch, no engine, no pandas."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from olmo_ext.config import load_experiment
from olmo_ext.train import train

HEAVY = ("torch", "olmo", "pandas", "scipy", "matplotlib", "transformers", "wandb", "pyarrow")
ASKED = f"""
import sys
from launch.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
found = [name for name in {HEAVY} if name in sys.modules]
assert not found, found
"""


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory,
    write_experiment_in: Callable[[Path], Callable[..., Path]],
) -> Path:
    return train(load_experiment(write_experiment_in(tmp_path_factory.mktemp("light"))()))


@pytest.mark.parametrize(
    "words",
    ["status {run}", "audit {run} --explain 1", "plan --help", "train --help", "--version"],
)
def test_a_light_verb_imports_nothing_heavy(run: Path, words: str) -> None:
    arguments = [word.format(run=run) for word in words.split()]
    done = subprocess.run(
        [sys.executable, "-c", ASKED, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
