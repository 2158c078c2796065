"""What runs beside a step runs on the model's device: no tensor of the CPU among the card's.

On tensors that say "cuda" and compute here (tests/shared/card.py): a real card has seen none of it.
"""

from __future__ import annotations

import copy
import json
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from card import CUDA, Card, Mixed, card, on_card

from eval.interference.gradients import gram
from eval.scores.fast_answers import cut, fast_answer
from olmo_ext.callbacks.loss_budget import LossBudget
from olmo_ext.gradients import passes
from olmo_ext.verify.checks import CALLBACKS
from olmo_ext.verify.runs import TrialRuns, ours

SETTINGS = {name: settings | {"every": 1} for name, settings in CALLBACKS.items()}
SETTINGS["loss_budget"] |= {"record": 1, "exact": 1}


def one_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, moved: bool, offload: bool = False
) -> list[dict[str, Any]]:
    """The records of a step with all callbacks, the optimizer's left out."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(LossBudget, "on_step", lambda *args: None)  # asks the optimizer's moments
    callbacks = {n: s for n, s in SETTINGS.items() if n != "features"}  # its probes are NumPy's
    callbacks["interference"] = SETTINGS["interference"] | {"offload": offload}
    with ExitStack() as stack:
        runs = TrialRuns(folder)
        trainer = ours(runs.experiment("one", steps=6, rate=2, callbacks=callbacks), stack)
        batch = next(iter(trainer.train_loader))
        trainer.global_step = 1
        trainer.dist_model.train()
        stack.enter_context(card() if moved else nullcontext())
        if moved:
            trainer.dist_model = trainer.model = on_card(trainer.model)
            trainer.model.no_sync = nullcontext  # as DDP's
            trainer.device = CUDA
            batch = {n: v.to(CUDA) if isinstance(v, torch.Tensor) else v for n, v in batch.items()}
            # A card has numbers of its own, where this one draws the CPU's.
            generator = torch.Generator
            monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator())
            monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *args: torch.zeros(0))
            monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *args: None)
        trainer.train_batch(batch)
        for callback in trainer.callbacks.values():
            callback.on_step(trainer, {"train/CrossEntropyLoss": 1.0})
    return [json.loads(line) for line in (folder / "one" / "records.jsonl").open()]


def test_a_step_with_callbacks_stays_on_the_card_and_measures_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = one_step(tmp_path / "here", monkeypatch, moved=False)
    there = one_step(tmp_path / "there", monkeypatch, moved=True)
    assert len(here) == len(there) > 20
    assert {"cos_g_nt", "score"} <= {row["metric"] for row in here}
    for one, two in zip(here, there, strict=True):
        assert one["metric"] == two["metric"]
        if one["value"] is None:  # of an update that no optimizer has made
            assert two["value"] is None
        else:  # cosines near zero: rounding alone
            assert two["value"] == pytest.approx(one["value"], rel=1e-4, abs=1e-5)


def test_what_waits_in_the_hosts_memory_is_measured_on_the_card_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, kept = passes.on_host, []

    def on_host(part: torch.Tensor) -> torch.Tensor:
        kept.append(host := real(part))
        assert not isinstance(host, Card)
        return host

    monkeypatch.setattr(passes, "on_host", on_host)
    plain = one_step(tmp_path / "plain", monkeypatch, moved=True)
    assert not kept
    assert one_step(tmp_path / "offload", monkeypatch, moved=True, offload=True) == plain
    assert kept


def test_a_mask_of_the_cpu_among_the_cards_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.zeros

    def on_the_cpu(*args: Any, **settings: Any) -> torch.Tensor:
        """As if the task's mask forgot its device."""
        settings.pop("device", None)
        return real(*args, **settings)

    monkeypatch.setattr("olmo_ext.gradients.tasks.torch.zeros", on_the_cpu)
    with pytest.raises(Mixed):
        one_step(tmp_path, monkeypatch, moved=True)


@pytest.fixture
def model(tmp_path: Path) -> tuple[Any, Any]:
    """A tiny model, and a task of its plan."""
    with ExitStack() as stack:
        trainer = ours(TrialRuns(tmp_path).experiment("m", steps=6, rate=2), stack)
    return trainer.model.eval(), trainer.plan.tasks[0]


def test_answers_are_given_on_the_card(model: tuple[Any, Any]) -> None:
    plain, task = model
    indices = np.arange(8)
    with torch.no_grad(), card():
        moved = on_card(copy.deepcopy(plain))
        there = fast_answer(cut(moved), task, indices)
    with torch.no_grad():
        here = fast_answer(cut(plain), task, indices)
    for name, value in vars(here).items():
        np.testing.assert_allclose(np.asarray(vars(there)[name]), np.asarray(value), atol=1e-5)


def test_gram_algebra_stays_on_the_card_and_refuses_a_vector_of_the_cpu() -> None:
    vectors = [[torch.randn(5), torch.randn(3)] for _ in range(3)]
    with card():
        moved = [[Card(part) for part in vector] for vector in vectors]
        table = gram(moved)
        assert table.device == CUDA
        torch.testing.assert_close(table.cpu(), gram(vectors))
        with pytest.raises(Mixed):
            gram([*moved[:2], vectors[2]])
