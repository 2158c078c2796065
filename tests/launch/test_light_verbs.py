"""What only reads small files answers at once: it imports no torch, no engine, no pandas."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    "words",
    ["status {run}", "audit {run} --explain 1", "plan --help", "train --help", "--version"],
)
def test_a_light_verb_imports_nothing_heavy(tiny_run: Callable[..., Path], words: str) -> None:
    arguments = [word.format(run=tiny_run()) for word in words.split()]
    done = subprocess.run(
        [sys.executable, "-c", ASKED, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
