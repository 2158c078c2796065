"""A wheel in an empty environment, without the checkout, does what a checkout does.

Nothing is downloaded: what the wheel depends on is read from this environment's own site-packages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILT_FROM = ("data_injection", "olmo_ext", "eval", "launch", "theory", "configs", "docs")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
CLEAN = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("installed")
    source = (
        folder / "source"
    )  # a build/ left in the checkout would put deleted files into the wheel
    for name in BUILT_FROM:
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.png")
        )
    for name in FILES:
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    wheels = folder / "wheels"
    build = ["wheel", *offline, "--no-build-isolation", "--wheel-dir", wheels, source]
    subprocess.run([*pip, *build], env=CLEAN, check=True)
    shutil.rmtree(source)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    subprocess.run(
        [*pip, "--python", python, "install", *offline, *wheels.iterdir()], env=CLEAN, check=True
    )
    (site_packages,) = (folder / "venv").glob("lib/python*/site-packages")
    # Read as a plain path: its own .pth files, among them this checkout's, are not followed.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv"


def run(environment: Path, folder: Path, *command: str) -> str:
    done = subprocess.run(
        [environment / "bin" / command[0], *command[1:]],
        cwd=folder,
        env=CLEAN,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


ASK = """
import data_injection, eval, launch, olmo_ext, theory
from eval.findings.chapters import CHAPTERS
from launch.lab.run import EXPERIMENTS, load_settings
from launch.slurm.site import load_site
from launch.sweep.confirm import DOCUMENT, confirm_sweeps

for room in (data_injection, eval, launch, olmo_ext, theory):
    assert room.__file__.startswith(PREFIX), room.__file__
print(sum(len(sweep.points()) for chapter in CHAPTERS for sweep in confirm_sweeps(chapter)))
print(sum(load_settings(name, None, seeds=None) is not None for name in EXPERIMENTS))
print(DOCUMENT.is_file(), load_site("configs/sites/slurm-gpu.yaml").partition)
"""


PREPARE = """
from data_injection.corpus.prepare import prepare_embedded

prepare_embedded("corpus", max_documents=60)
"""


@pytest.mark.slow
def test_a_wheel_brings_every_config_that_a_verb_needs(
    environment: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prefix = f"PREFIX = {str(environment)!r}\n"
    installed = run(environment, tmp_path, "python", "-c", prefix + ASK)
    monkeypatch.chdir(tmp_path)  # its files are not those of the folder one works in
    exec(ASK, {"PREFIX": str(ROOT)})
    assert installed == capsys.readouterr().out
    ladder = ("configs/olmo_4M_to_4B/paper", "configs/olmo_4M_to_4B/sweeps/frequency.yaml")
    assert "300M" in run(environment, tmp_path, "olmo-ext", "plan", "--cost", *ladder)


@pytest.mark.slow
def test_a_wheel_trains_and_reports_outside_of_the_checkout(
    environment: Path, tmp_path: Path
) -> None:
    """One width, 60 documents a source: that the answer rises from one width to the next, and the
    whole embedded text, are `make smoke`'s."""
    run(environment, tmp_path, "python", "-c", PREPARE)
    words = ("quickstart", "--smoke", "--widths", "16", "--out", "runs", "--corpus", "corpus")
    run(environment, tmp_path, "olmo-ext", *words)
    assert (tmp_path / "runs" / "report.html").is_file()


@pytest.mark.slow
def test_a_wheel_carries_each_template_of_the_checkout(environment: Path) -> None:
    (site_packages,) = environment.glob("lib/python*/site-packages")
    for room in BUILT_FROM[:5]:
        for path in (ROOT / room).rglob("*"):
            if path.suffix == ".py" or path.parent.name == "templates":
                assert (site_packages / path.relative_to(ROOT)).is_file(), path
