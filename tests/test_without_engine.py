"""Without any engine: the plan, the measures and the theory import, and a verb says what it lacks.

ai2-olmo and ai2-olmo-core exclude one another, so whoever wants neither must be served too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("olmo", "olmo_data", "olmo_core", "wandb"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])

sys.meta_path.insert(0, Hidden())
"""

OF_AI2_OLMO = {
    *(f"olmo_ext.{name}" for name in ("build", "checks", "compat", "config", "cost", "data")),
    *(
        f"olmo_ext.{name}"
        for name in ("prepare", "run_folder", "engines.origin", "engines.stock", "train", "trainer")
    ),
    *(f"olmo_ext.verify.{name}" for name in ("bench", "checks", "runs", "split")),
    *("launch.grid_loader", "launch.plan.cost", "launch.plan.preflight", "launch.plan.warnings"),
    *("launch.reckon", "launch.sweep.demo", "launch.sweep.screen"),
}
"""What is about runs of that engine: everything else must do without."""

IMPORT_ALL = """
import importlib, pathlib
for room in ("data_injection", "theory", "eval", "olmo_ext", "launch"):
    for path in sorted(pathlib.Path(room).rglob("*.py")):
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        if path.name != "__main__.py":
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                print(name, error.name)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIDE + code], cwd=ROOT, capture_output=True, text=True
    )


def test_what_needs_no_engine_imports_without_any() -> None:
    done = run(IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    assert {line.split()[0] for line in done.stdout.splitlines()} == OF_AI2_OLMO


def test_a_verb_says_which_extra_it_lacks() -> None:
    done = run("sys.argv = ['olmo-ext', 'train', 'x.yaml']\nfrom launch.cli import main\nmain()")
    assert done.returncode == 2
    assert "pip install '.[olmo]'" in done.stderr
    assert "Traceback" not in done.stderr
