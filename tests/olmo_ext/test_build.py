"""What a training process sets up for itself."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from olmo_ext.build import keep_memory

FAULTS = """
import resource, statistics, torch
from olmo_ext.build import keep_memory
keep_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**24).fill_(1.0)  # 64 MiB: above what glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(statistics.median(faults() for _ in range(25)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_that_every_step_takes_and_frees_is_not_faulted_in_each_time() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    child = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env=clean | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    # 16,384 pages of 4 KiB otherwise. A small allocation may take the place between two calls,
    # and that call then faults a new one in: so the median, not each call.
    assert float(child.stdout) < 100


@pytest.mark.parametrize(
    ("variable", "cuda", "calls"), [("X", False, 2), ("MALLOC_ARENA_MAX", False, 0), ("X", True, 0)]
)
def test_malloc_is_left_alone_on_a_gpu_and_where_somebody_has_set_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, cuda: bool, calls: int
) -> None:
    made: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda *arguments: made.append(arguments))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setenv(variable, "1")
    keep_memory()
    assert len(made) == calls


def test_a_start_imports_the_engines_trainer_without_its_evaluators() -> None:
    """A third of its time; who asks for them has the real ones, as a run with evaluators does."""
    program = """
import sys, olmo_ext.train
assert not {"olmo.eval", "torchmetrics", "sklearn", "transformers"} & set(sys.modules)
from olmo.eval import build_evaluators
from olmo.eval.evaluator import Evaluator
assert Evaluator.__module__ == "olmo.eval.evaluator" and callable(build_evaluators)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
