"""The files that no import reads: the locks, the Dockerfile, the hooks, the issue templates."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())
DOCKERFILE = (ROOT / "packaging" / "Dockerfile").read_text()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_two_locks_pin_the_same_versions() -> None:
    locked: dict[str, set[str]] = {}
    for package in LOCK["package"]:
        locked.setdefault(package["name"], set()).add(package.get("version", ""))
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().split()]
    assert len(pins) > 150
    assert {name for name, version in pins if version not in locked.get(normal(name), ())} == set()


def test_the_lock_is_of_this_projects_requirements() -> None:
    """What `uv lock --check` asks before it asks an index; in CI no index needs to answer."""
    (ours,) = (package for package in LOCK["package"] if package["name"] == PROJECT["name"])
    extras = PROJECT["optional-dependencies"]
    lists = {"": PROJECT["dependencies"], **extras}
    wanted = {
        (normal(one.name), str(one.specifier), frozenset(one.extras), extra)
        for extra, lines in lists.items()
        for one in map(Requirement, lines)
    }
    locked = {
        (
            one["name"],
            str(SpecifierSet(one.get("specifier", ""))),
            frozenset(one.get("extras", ())),
            one.get("marker", "").removeprefix("extra == '").removesuffix("'"),
        )
        for one in ours["metadata"]["requires-dist"]
    }
    assert wanted == locked, "run `uv lock`"
    assert SpecifierSet(LOCK["requires-python"]) == SpecifierSet(PROJECT["requires-python"])


def test_the_dockerfile_is_clean() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    lint = [str(hadolint), str(ROOT / "packaging" / "Dockerfile")]
    done = subprocess.run(lint, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_dockerfile_installs_what_pyproject_says() -> None:
    lines = DOCKERFILE.replace("\\\n", " ").splitlines()
    (install,) = (line for line in lines if "pip install" in line)
    assert '-c constraints.txt ".[${EXTRAS}]"' in install
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", DOCKERFILE, re.MULTILINE)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    (python,) = set(re.findall(r"\bpython(3\.\d+)\b", DOCKERFILE))
    assert python in SpecifierSet(PROJECT["requires-python"])
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    setup = (ROOT / "setup.py").read_text()
    rooms = set(re.findall(r'"(\w+)\*"', setup))
    assert rooms | {"configs", "docs/findings.md", "pyproject.toml", "setup.py"} <= copied
    assert all((ROOT / path).exists() for path in copied)


def test_the_dockerfiles_cuda_is_that_of_the_locked_torch() -> None:
    (base,) = re.findall(r"^FROM nvidia/cuda:(\d+)", DOCKERFILE, re.MULTILINE)
    (torch,) = (package for package in LOCK["package"] if package["name"] == "torch")
    needs = {package["name"] for package in torch["dependencies"]}
    assert f"nvidia-nccl-cu{base}" in needs


def test_the_hooks_ask_what_make_lint_asks_and_fetch_nothing() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [one["repo"] for one in hooks] == ["local"]
    entries = [hook["entry"] for hook in hooks[0]["hooks"]]
    (lint,) = re.findall(r"^lint: install\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.M)
    asked = [line.split()[0].replace("$(BIN)", ".venv/bin") for line in lint.splitlines()]
    assert [entry.split()[0] for entry in entries] == asked


def test_the_issue_templates_say_what_they_are_for() -> None:
    templates = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"))
    heads = [yaml.safe_load(path.read_text().split("---\n")[1]) for path in templates]
    assert [set(head) for head in heads] == [{"name", "about"}] * 3
