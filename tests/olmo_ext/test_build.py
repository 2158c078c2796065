"""What a training process sets up for itself."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from refusals import refuses

import olmo_ext.checks
from eval.run import differences
from olmo_ext.build import check_same_run, keep_memory
from olmo_ext.config import load_experiment, save_experiment
from olmo_ext.prepare import Prepared, prepare

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


@pytest.fixture
def prepared(
    write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Prepared]:
    """prepared(overrides) -> the tiny experiment, prepared as where flash-attn is installed."""
    monkeypatch.setattr(olmo_ext.checks, "find_spec", lambda name: True)
    return lambda overrides: prepare(load_experiment(write_experiment(), overrides))


FSDP = ["train.distributed_strategy=fsdp"]


@pytest.mark.parametrize(
    ("before", "setting", "value"),
    [
        ([], "train.data.generate_attention_mask", True),
        ([], "train.data.generate_doc_lengths", True),
        (FSDP, "train.fsdp.precision", "mixed"),
        (FSDP, "train.fsdp.precision", "pure"),
    ],
)
def test_what_changes_the_weights_is_of_the_identity_and_of_an_older_runs_config(
    before: list[str], setting: str, value: Any, prepared: Callable[..., Prepared], tmp_path: Path
) -> None:
    """Of a run from before they were told the config.yaml in its folder tells them."""
    one = prepared(before)
    other = prepared([*before, f"{setting}={str(value).lower()}"])
    assert differences(other.identity, one.identity) == [(setting, value, None)]
    old = one.identity  # as it was written of both
    assert differences(other.identity, old, later=False) == []
    for written, another in ((one, other), (other, one)):
        save_experiment(written.experiment.train, tmp_path / "config.yaml")
        check_same_run(written.identity, old, where=str(tmp_path))
        with refuses(key=tmp_path, rule="another run") as refused:
            check_same_run(another.identity, old, where=str(tmp_path))
        assert [key for key, *_ in refused.value.value] == [setting]


def test_the_precision_of_shards_is_no_part_of_a_run_without_any(
    prepared: Callable[..., Prepared],
) -> None:
    assert prepared(["train.fsdp.precision=mixed"]).identity == prepared([]).identity
