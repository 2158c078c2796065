"""The plan side is a distribution of its own: an empty environment compiles the committed plans."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from refusals import refuses

from data_injection.config import injection_config

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "packaging" / "data-injection"
CLEAN = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

COMPILE = """
import sys, json, yaml, numpy
from data_injection.config import injection_config
from data_injection.plan import compile_plan

given = json.loads(sys.argv[1])
section = yaml.safe_load(given["section"])
plan = compile_plan(injection_config(section), **given["geometry"])
loaded = sorted({"torch", "olmo", "olmo_core", "omegaconf"} & set(sys.modules))
print(json.dumps([plan.hash, int(numpy.__version__.split(".")[0]), loaded]))
"""

SECTION = """
seed: 3
tasks:
  - {name: cmp, family: comparison, num_symbols: 20, schedule: {rate: 1/2}}
  - name: add
    family: modular_addition
    num_symbols: 7
    schedule: {kind: burst, rate: 2, every: 10}
"""
GEOMETRY = {
    "batch_size": 32, "seq_len": 64, "epoch_rows": 3200, "vocab_size": 8192, "eos_token_id": 0
}  # fmt: skip
HASH = "b9c11952092c51adcf40b16f76ef2f667016390585f198758418cbf85a99050a"
"""Of this plan, by both distributions, under numpy 1.26 and 2."""


def project(path: Path) -> dict:
    return tomllib.loads((path / "pyproject.toml").read_text())["project"]


def test_both_distributions_have_one_version() -> None:
    assert project(FOLDER)["version"] == project(ROOT)["version"]


def test_a_section_of_plain_values_refuses_what_it_does_not_know() -> None:
    with refuses(key="injection", rule=("ScheduleConfig", "'rte'")):
        injection_config({"tasks": [{"name": "a", "schedule": {"rte": 1}}]})


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # From a copy: a build/ left in the checkout would put deleted files into the wheel.
    copy, folder = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    left = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    for path in (FOLDER, ROOT / "data_injection"):
        shutil.copytree(path, copy / path.relative_to(ROOT), ignore=left)
    source = copy / FOLDER.relative_to(ROOT)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, *offline, "--wheel-dir", folder, source], env=CLEAN, check=True)
    (built,) = folder.iterdir()
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_one_source_tree(wheel: Path) -> None:
    built = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    here = {str(path.relative_to(ROOT)) for path in (ROOT / "data_injection").rglob("*.py")}
    assert built == here


@pytest.mark.slow
@pytest.mark.parametrize("numpy", ["numpy>=1.26,<2", "numpy>=2"])
def test_an_empty_environment_compiles_the_same_plan(
    numpy: str, wheel: Path, tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = [*pip, "--python", python, "install", wheel, numpy]
    done = subprocess.run(install, env=CLEAN, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    given = json.dumps({"section": SECTION, "geometry": GEOMETRY})
    ask = [python, "-c", COMPILE, given]
    out = subprocess.run(ask, cwd=tmp_path, env=CLEAN, capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == [HASH, 1 if "<2" in numpy else 2, []]


def small_environment(folder: Path, wheel: Path, *wanted: str) -> Path:
    """The python of an environment of the wheel, of what is wanted and of what that needs alone.

    The others' packages are links to this environment's: torch is some GB.
    """
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = [*pip, "--python", folder / "bin" / "python", "install", "--no-deps", wheel]
    subprocess.run(install, env=CLEAN, check=True)
    left, seen = [Requirement(name) for name in (*wanted, "numpy", "pyyaml")], set[str]()
    while left:
        if (name := left.pop().name) in seen:
            continue
        seen.add(name)
        found = distribution(name)
        for top in {path.parts[0] for path in found.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(str(found.locate_file(top)))
        needs = map(Requirement, found.requires or ())
        left += [one for one in needs if one.marker is None or one.marker.evaluate({"extra": ""})]
    return folder / "bin" / "python"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "wanted", "last"),
    [
        ("plain_pytorch", ("torch",), "960 rows, 150 injected, 0 differences"),
        ("huggingface_trainer", ("transformers", "accelerate"), "640 rows, 100 injected, 0 diff"),
        ("datasets_streaming", ("datasets", "torch"), "640 rows, 100 injected, 0 differences"),
    ],
)
def test_the_plan_serves_a_loop_of_another_make_in_an_environment_of_its_own(
    example: str, wanted: tuple[str, ...], last: str, wheel: Path, tmp_path: Path
) -> None:
    python = small_environment(tmp_path / "venv", wheel, *wanted)
    file = ROOT / "examples" / f"{example}.py"
    assert len(file.read_text().splitlines()) <= 60
    others = "import importlib.util as found; print([name for name in ('olmo', 'olmo_core', "
    others += "'olmo_ext', 'eval', 'omegaconf', 'matplotlib') if found.find_spec(name)])"
    for ask, said in ((["-c", others], "[]"), ([file], last)):
        done = subprocess.run(
            [python, *ask], cwd=tmp_path, env=CLEAN, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.splitlines()[-1].startswith(said)
