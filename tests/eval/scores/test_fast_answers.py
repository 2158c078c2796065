"""The fast answers are those of `eval.scores.accuracy.answer`, whatever the model and the task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from olmo.config import ModelConfig
from olmo.model import OLMo

import eval.scores.fast_answers
from data_injection.tasks.base import Task
from data_injection.tasks.comparison import Comparison
from data_injection.tasks.group_composition import GroupComposition
from data_injection.tasks.modular_addition import ModularAddition
from eval.scores.accuracy import Answers, answer
from eval.scores.fast_answers import CutModel, cut, fast_answer

VOCAB, ROWS = 250, 256


def olmo(seed: int = 0, *, spread: float = 20.0, **settings: Any) -> OLMo:
    config = {
        "d_model": 16,
        "n_heads": 2,
        "n_layers": 2,
        "mlp_ratio": 4,
        "rope": True,
        "max_sequence_length": 16,
        "vocab_size": VOCAB,
        "embedding_size": ROWS,
        "eos_token_id": 0,
        "pad_token_id": 1,
        "include_bias": False,
        "layer_norm_type": "rms",
        "weight_tying": False,
        "init_device": "cpu",
    }
    torch.manual_seed(seed)
    model = OLMo(ModelConfig(**(config | settings))).eval()
    head = model.transformer.wte if model.config.weight_tying else model.transformer.ff_out
    with torch.no_grad():
        head.weight.mul_(spread)  # answers that differ between instances
    return model


def slow_answer(model: Any, task: Task, indices: np.ndarray) -> Answers:
    return answer(lambda x: model(x, last_logits_only=True).logits[:, -1], task, indices)


def assert_same(one: Answers, two: Answers) -> None:
    assert np.abs(one.loss - two.loss).max() < 1e-5
    assert np.abs(one.choice_loss - two.choice_loss).max() < 1e-5
    for name in ("correct", "label_correct", "choice"):
        assert (getattr(one, name) == getattr(two, name)).all(), name


COMPARISON = Comparison("cmp", symbols=10 + np.arange(20), labels=np.array([240, 7, 99]), seed=0)
TASKS = {
    "comparison": COMPARISON,
    "addition": ModularAddition("add", symbols=10 + np.arange(17), labels=np.array([]), seed=0),
    "three operands": GroupComposition(
        "sum",
        symbols=10 + np.arange(8),
        labels=np.array([5, 200]),
        seed=0,
        params={"group": "C2", "operands": 3},
    ),
}


@pytest.mark.parametrize("settings", [{}, {"weight_tying": True}, {"scale_logits": True}])
@pytest.mark.parametrize("kind", TASKS)
def test_fast_answers_are_the_slow_ones(
    kind: str, settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rows and vocabulary in several blocks, none of them full."""
    monkeypatch.setattr(eval.scores.fast_answers, "ROWS_AT_ONCE", 97)
    monkeypatch.setattr(eval.scores.fast_answers, "BLOCKS", {"cpu": (31, 60)})
    task, model = TASKS[kind], olmo(**settings)
    every = np.arange(len(task.tokens))
    expected = slow_answer(model, task, every)
    assert len(np.unique(expected.choice)) > 1
    assert_same(fast_answer(cut(model), task, every), expected)


def test_the_order_of_the_indices_is_kept() -> None:
    model = olmo()
    some = np.array([300, 2, 151, 2, 17])
    assert_same(fast_answer(cut(model), COMPARISON, some), slow_answer(model, COMPARISON, some))


def test_a_beginning_that_many_share_goes_through_the_layers_once() -> None:
    model, seen = olmo(), []

    def count(module: Any, args: Any, output: Any) -> None:
        seen.append(args[0].shape[0] * args[0].shape[1])

    model.transformer.blocks[0].register_forward_hook(count)
    fast_answer(cut(model), COMPARISON, np.arange(400))
    assert sum(seen) == 20 + 400  # 800 tokens otherwise


def test_the_unembedding_does_not_run_over_all_rows() -> None:
    """Its forward is the slow part; it is asked for the shared beginnings alone."""
    model, seen = olmo(), []
    model.transformer.ff_out.register_forward_hook(lambda m, a, o: seen.append(len(a[0])))
    fast_answer(cut(model), COMPARISON, np.arange(400))
    assert sum(seen) == 20


def planted(logits_BV: torch.Tensor) -> CutModel:
    """A model whose logits are given: one state a row, the identity's rows as unembedding."""
    states = {row: logits_BV[row] for row in range(len(logits_BV))}
    return CutModel(
        lambda ids: [],
        lambda ids, past: torch.stack([states[int(i) - 10] for i in ids[:, 0]]),
        torch.eye(logits_BV.shape[1]),
    )


@pytest.mark.parametrize("shift", [0.0, 100.0, -200.0, 5e4])
def test_no_logit_is_too_large_or_too_small(shift: float) -> None:
    """Unshifted exponentials overflow at 89; the loss does not."""
    logits_BV = torch.randn(20, ROWS, generator=torch.Generator().manual_seed(0)) + shift
    indices = np.arange(0, 400, 21)  # (i, i): one row a symbol
    found = fast_answer(planted(logits_BV), COMPARISON, indices)
    expected = answer(lambda ids: logits_BV[ids[:, 0] - 10], COMPARISON, indices)
    assert np.isfinite(found.loss).all()
    assert_same(found, expected)


def test_of_equal_logits_the_first_is_the_answer_as_in_the_slow_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An untrained model may tie; which block of the vocabulary a tie falls in must not matter."""
    indices = np.arange(0, 400, 21)
    label = int(COMPARISON.tokens[0, -1])
    for other in (label - 1, label + 1, 0, 255):
        logits_BV = torch.zeros(20, ROWS)
        logits_BV[:, [label, other]] = 1.0
        for block in (256, 50):
            monkeypatch.setattr(eval.scores.fast_answers, "BLOCKS", {"cpu": (7, block)})
            found = fast_answer(planted(logits_BV), COMPARISON, indices)
            assert (found.correct == (label < other)).all()
            assert_same(found, answer(lambda x, y=logits_BV: y[x[:, 0] - 10], COMPARISON, indices))


def test_an_interrupted_pass_leaves_no_hook_behind() -> None:
    model = olmo()
    fast_answer(cut(model), COMPARISON, np.arange(400))
    assert not model.transformer.ln_f._forward_hooks
    assert model(torch.tensor([[3, 4]])).logits.shape == (1, 2, ROWS)


def test_a_diverged_model_is_seen_by_both() -> None:
    model, indices = olmo(), np.arange(len(COMPARISON.tokens))
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = torch.nan
    slow, fast = (
        slow_answer(model, COMPARISON, indices),
        fast_answer(cut(model), COMPARISON, indices),
    )
    for answers in (slow, fast):
        assert not answers.finite
        assert np.isnan(answers.share(answers.correct)["value"])
