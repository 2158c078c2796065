"""What callbacks keep in a checkpoint: it is read again, or refused when it is saved."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refuses

from eval.checkpoints.checkpoint import find_checkpoints
from olmo_ext.callbacks.state import plain_state
from olmo_ext.config import load_experiment
from olmo_ext.train import train

KEY = "callbacks.mine.state_dict()"


def read_again(state: Any, file: Path) -> Any:
    torch.save(plain_state(state, key=KEY), file)
    return torch.load(file, weights_only=True)


def test_numbers_of_numpy_are_saved_as_pythons(tmp_path: Path) -> None:
    state = {
        "best": np.float64(0.1),
        "parts": [np.float32(0.5), (np.int64(3), np.bool_(True))],
        np.int64(4): {np.str_("a"): np.uint16(7)},
    }
    found = read_again(state, tmp_path / "state.pt")
    assert found == {"best": 0.1, "parts": [0.5, (3, True)], 4: {"a": 7}}
    assert type(found["best"]) is float
    assert [type(name) for name in found] == [str, str, int]


@pytest.mark.parametrize(
    "state",
    [
        {"a": [1, 2.5, "x", None, True, math.inf], "b": (b"x", 2**70, 1j)},
        {"set": {1, 2}, "ordered": OrderedDict(a=1), "counter": Counter("aab")},
        {"type": torch.float32, "size": torch.Size([2])},
    ],
)
def test_what_torch_reads_stays_as_it_is(state: dict[str, Any], tmp_path: Path) -> None:
    assert read_again(state, tmp_path / "state.pt") == state
    tensors = {"tensor": torch.ones(2), "weight": torch.nn.Parameter(torch.ones(2))}
    found = plain_state(tensors, key=KEY)
    assert all(found[name] is tensor for name, tensor in tensors.items())  # not even copied


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.ones(2), "numpy.ndarray"),
        (np.datetime64("2026-01-01"), "datetime.date"),
        (np.longdouble(1), "numpy.longdouble"),
        (Path("/a"), "pathlib."),
        (defaultdict(list), "collections.defaultdict"),
        (OrderedDict(a=np.float64(1)), "collections.OrderedDict"),
        (lambda: None, "builtins.function"),
    ],
)
def test_what_a_resume_could_not_read_is_refused_by_its_place(value: Any, kind: str) -> None:
    with refuses(key=f"{KEY}['a'][1]", rule=kind, remedy="Python's numbers"):
        plain_state({"a": [0, value]}, key=KEY)
    if value.__hash__ is not None:
        with refuses(key=f"a key of {KEY}", rule=kind):
            plain_state({value: 0}, key=KEY)


OWN = """
import os
from dataclasses import dataclass
import numpy as np
from olmo_ext.callbacks.base import Callback

@dataclass
class Best(Callback):
    "The smallest loss so far."
    array: bool = False
    def __post_init__(self):
        self.best = np.ones(1) if self.array else float("inf")
    def on_step(self, trainer, metrics):
        self.best = min(self.best, np.mean([metrics["train/CrossEntropyLoss"]]))
    def state_dict(self):
        return {"best": self.best}
    def load_state_dict(self, state):
        assert type(state["best"]) is float and 0 < state["best"] < 10
        self.best = state["best"]
"""


def test_a_callback_of_ones_own_never_leaves_a_checkpoint_that_no_resume_reads(
    write_experiment: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_state.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def given(*overrides: str, array: bool = False) -> Any:
        own = {"progress": None, "own_state:Best": {"array": array}}
        return load_experiment(write_experiment(lambda c: c.update(callbacks=own)), overrides)

    with refuses(key="callbacks.own_state:Best.state_dict()['best']", rule="numpy.ndarray"):
        train(given(array=True))
    assert not find_checkpoints(tmp_path / "run")  # step 0 is the first save
    train(given("train.stop_at=6"))
    folder = train(given(), resume=True)
    assert len(json.loads((folder / "run.json").read_text())["starts"]) == 2
    assert [one.step for one in find_checkpoints(folder)] == [0, 6, 12]
