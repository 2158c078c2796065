"""deterministic: true keeps its promise or says, by name, why it cannot."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refuses

import olmo_ext.numerics.deterministic
from data_injection.errors import ConfigError
from eval.run import read_run
from olmo_ext.callbacks.base import Callback
from olmo_ext.config import load_experiment
from olmo_ext.numerics.deterministic import CUBLAS, deterministic
from olmo_ext.prepare import prepare
from olmo_ext.train import train

ON = "deterministic=true"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(CUBLAS, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    yield
    assert not torch.are_deterministic_algorithms_enabled()


class Watch(Callback):
    def __init__(self, seen: list[Any]) -> None:
        self.seen = seen

    def on_gradients(self, trainer: Any, batch: dict[str, Any]) -> None:
        self.seen.append((torch.are_deterministic_algorithms_enabled(), os.environ.get(CUBLAS)))


class Unfit(Callback):
    def on_step(self, trainer: Any, metrics: dict[str, float]) -> None:
        torch.zeros(4).put_(torch.tensor([1, 1]), torch.ones(2))


def watched(monkeypatch: pytest.MonkeyPatch, callback: Callback) -> None:
    monkeypatch.setattr("olmo_ext.prepare.build_callbacks", lambda settings: {"watch": callback})


def test_steps_are_taken_by_deterministic_algorithms_if_asked_for(
    write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for overrides, wanted in ([ON], (True, ":4096:8")), ([], (False, ":4096:8")):
        seen: list[Any] = []
        watched(monkeypatch, Watch(seen))
        folder = Path(write_experiment()).parent / f"run{len(overrides)}"
        train(load_experiment(write_experiment(), [*overrides, f"train.save_folder={folder}"]))
        # Once set, cuBLAS' variable stays, and does nothing without the flag.
        assert seen
        assert set(seen) == {wanted}


def test_it_is_part_of_a_run_and_not_of_its_plan(write_experiment: Callable[..., Path]) -> None:
    path = write_experiment()
    plain, on = prepare(load_experiment(path)), prepare(load_experiment(path, [ON]))
    assert "deterministic" not in plain.identity  # as of runs before there was such a key
    assert on.identity == plain.identity | {"deterministic": True}
    assert on.stream.plan.hash == plain.stream.plan.hash


def test_a_run_is_not_resumed_as_another(write_experiment: Callable[..., Path]) -> None:
    path = write_experiment()
    folder = train(load_experiment(path, ["train.stop_at=6"]))
    assert read_run(folder)["num_steps"]
    with refuses(key=folder, value=[("deterministic", True, None)]):
        train(load_experiment(path, [ON]), resume=True)


def test_an_operation_without_a_deterministic_algorithm_is_named(
    write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched(monkeypatch, Unfit())
    with refuses(key="deterministic", value=True, rule="put_ has no deterministic algorithm"):
        train(load_experiment(write_experiment(), [ON]))


def test_a_cublas_that_adds_in_any_order_is_refused(
    write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load_experiment(write_experiment(), [ON])
    os.environ[CUBLAS] = ":0:0"
    with pytest.raises(ConfigError) as refused, deterministic(experiment):
        pass
    assert (refused.value.key, refused.value.value) == (CUBLAS, ":0:0")
    del os.environ[CUBLAS]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ConfigError) as refused, deterministic(experiment):
        pass
    assert (refused.value.key, refused.value.value) == (CUBLAS, None)


def test_flash_attention_is_refused_where_it_would_be_used(
    write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load_experiment(write_experiment(), [ON, "train.model.flash_attention=true"])
    with deterministic(experiment):  # not installed here: torch's own is taken
        pass
    monkeypatch.setattr(olmo_ext.numerics.deterministic, "has_flash_attention", lambda: True)
    with pytest.raises(ConfigError) as refused, deterministic(experiment):
        pass
    assert refused.value.key == "train.model.flash_attention"


def test_other_errors_pass_as_they_are(write_experiment: Callable[..., Path]) -> None:
    experiment = load_experiment(write_experiment(), [ON])
    with pytest.raises(RuntimeError, match="anything"), deterministic(experiment):
        raise RuntimeError("anything else")
