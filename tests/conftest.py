"""Fixtures: a tiny experiment on random tokens that trains in seconds on one core."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import yaml

from data_injection.errors import ConfigError

if TYPE_CHECKING:
    import torch


@pytest.fixture(scope="session", autouse=True)
def _a_refusal_is_asked_for_by_attribute() -> Iterator[None]:
    """By refuses() of tests/shared/refusals.py. raises(ValueError, match=...) would match its
    prose, which only the error itself tells from a function's plain ValueError."""
    stock = pytest.RaisesExc.__exit__

    def leave(self: pytest.RaisesExc, kind: object, error: object, trace: object) -> bool:
        assert self.match is None or not isinstance(error, ConfigError), f"use refuses(): {error!r}"
        return stock(self, kind, error, trace)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytest.RaisesExc, "__exit__", leave)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of slow tests first: a long one that begins last leaves the other cores idle."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


VOCAB = 256
SEQ_LEN = 16
BATCH = 8


def tiny_config(folder: Path) -> dict:
    """An experiment of 12 steps: 1 layer, width 16, two small tasks. Its corpus is in `folder`."""
    return {
        "rung": "tiny",
        "train": {
            "run_name": "tiny",
            "seed": 7,
            "save_folder": str(folder / "run"),
            "model": {
                "d_model": 16,
                "n_heads": 2,
                "n_layers": 1,
                "mlp_ratio": 4,
                "rope": True,
                "flash_attention": False,
                "attention_dropout": 0.0,
                "residual_dropout": 0.0,
                "embedding_dropout": 0.0,
                "layer_norm_type": "rms",
                "include_bias": False,
                "weight_tying": False,
                "max_sequence_length": SEQ_LEN,
                "vocab_size": VOCAB,
                "embedding_size": VOCAB,
                "eos_token_id": 0,
                "pad_token_id": 1,
                "init_fn": "normal",
            },
            "optimizer": {"name": "adamw", "learning_rate": 1e-2},
            "scheduler": {"name": "cosine_with_warmup", "t_warmup": 2},
            "data": {"paths": [str(folder / "tokens.npy")], "drop_last": True},
            "precision": "fp32",
            "distributed_strategy": "ddp",
            "ddp": {},
            "fsdp": {"use_orig_params": True, "wrapping_strategy": "by_block", "precision": None},
            "max_duration": 12,
            "global_train_batch_size": BATCH,
            "device_train_microbatch_size": 2,
            "max_grad_norm": 1.0,
            "save_interval": None,
            "save_interval_unsharded": 6,
            "save_num_checkpoints_to_keep": 0,
            "save_data_indices": False,
            "console_log_interval": 100,
        },
        "injection": {
            "seed": 0,
            "tasks": [
                {"name": "cmp", "num_symbols": 10, "schedule": {"rate": 2}},
                {
                    "name": "add",
                    "family": "modular_addition",
                    "num_symbols": 10,
                    "schedule": {"rate": "1/2"},
                },
            ],
        },
        "callbacks": {"task_eval": {"every": 1}, "progress": None},
    }


def experiment_in(folder: Path) -> Callable[..., Path]:
    """See `write_experiment`; for fixtures that outlive a test."""
    tokens = np.random.default_rng(0).integers(2, VOCAB, size=SEQ_LEN * 37, dtype=np.uint16)
    tokens.tofile(folder / "tokens.npy")

    def write(edit: Callable[[dict], object] = lambda config: None) -> Path:
        config = tiny_config(folder)
        edit(config)
        path = folder / "experiment.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture(scope="module", autouse=True)
def _garbage_of_before_is_gone() -> None:
    """And what is left is not searched again by each of a run's own collections."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def write_experiment(tmp_path: Path) -> Callable[..., Path]:
    """write_experiment(edit) -> path of an experiment.yaml; `edit(config)` may change the dict."""
    return experiment_in(tmp_path)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_run(strategy="ddp") -> the tiny experiment's run, uninterrupted, trained once for all
    tests of all processes. Not to be changed: copy it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # the session's, of which each worker has a folder

    def of(strategy: str = "ddp") -> Path:
        from olmo_ext.config import load_experiment
        from olmo_ext.train import train

        folder = shared / f"tiny-{strategy}"
        with (shared / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "run" / "step12-unsharded").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                write = experiment_in(folder)
                edit = {"distributed_strategy": strategy}
                train(load_experiment(write(lambda config: config["train"].update(edit))))
        return folder / "run"

    return of


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[torch.device]:
    """Where a test trains, in this process and in those that it starts: `pytest -m gpu` takes the
    card alone, the usual suite the CPU."""
    import torch
    import torch.distributed as dist

    has_card = torch.cuda.is_available()
    if request.param == "cuda" and not has_card:
        pytest.skip("no CUDA device here")
    if request.param == "cuda":
        # Read when CUDA starts, which may be in a test that does not ask for determinism.
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    else:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def leave() -> None:
        """gloo's group is no nccl's."""
        if has_card and dist.is_initialized():
            dist.destroy_process_group()

    leave()
    yield torch.device(request.param)
    leave()


@pytest.fixture
def exactly(device: torch.device) -> list[str]:
    """Overrides under which a run on the device is the same to the bit."""
    return ["deterministic=true"] if device.type == "cuda" else []


@pytest.fixture
def device_each(device: torch.device) -> torch.device:
    """`device`, one for each of two ranks."""
    import torch

    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("two ranks need two CUDA devices: nccl has no two on one")
    return device


@pytest.fixture(scope="session")
def write_experiment_in() -> Callable[[Path], Callable[..., Path]]:
    """write_experiment_in(folder) is `write_experiment` with its files in that folder."""
    return experiment_in
