"""Accuracies, score and losses of models whose every answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch.overrides import TorchFunctionMode

import eval.scores.accuracy
from data_injection.tasks.base import Task
from data_injection.tasks.comparison import Comparison
from data_injection.tasks.modular_addition import ModularAddition
from eval.scores.accuracy import LastLogits, answer, score_task

V = 32
LESS, EQUAL, GREATER = LABELS = np.array([7, 29, 3])
STRAY = 30
LN2 = math.log(2)


def comparison(num_symbols: int = 4, *, test: list[int] | None = None) -> Comparison:
    """Pair (i, j) is example i * num_symbols + j; `test` replaces the drawn split."""
    base = 10 if num_symbols <= 10 else V
    task = Comparison("cmp", symbols=base + np.arange(num_symbols), labels=LABELS, seed=0)
    if test is not None:
        task.test = np.array(test)
        task.train = np.setdiff1d(np.arange(len(task.tokens)), task.test)
    return task


# Of the test pairs 3 = (0, 3), 9 = (2, 1) and 11 = (2, 3) have their mirrors 12, 6 and 14 in train;
# 1 and 4, 7 and 13 mirror each other inside the test split, and 10 = (2, 2) mirrors itself.
# Labels:   1 less, 3 less, 4 greater, 7 less, 9 greater, 10 equal, 11 less, 13 greater.
TEST = [1, 3, 4, 7, 9, 10, 11, 13]
SUBSETS = {  # n, share of the commonest label
    "all": (8, 4 / 8),
    "mirror_in_train": (3, 2 / 3),
    "no_mirror": (5, 2 / 5),
}


def model(task: Task, logits_of: Callable[[int], torch.Tensor], *, vocab: int = V) -> LastLogits:
    """A model that answers example number k with the logits `logits_of(k)`."""
    number = {tuple(row): k for k, row in enumerate(task.tokens[:, :-1].tolist())}

    def last_logits(ids_BT: torch.Tensor) -> torch.Tensor:
        logits_BV = torch.stack([logits_of(number[tuple(row)]) for row in ids_BT.tolist()])
        assert logits_BV.shape == (len(ids_BT), vocab)
        return logits_BV

    return last_logits


def says(task: Task, token_of: Callable[[int], int], *, vocab: int = V) -> LastLogits:
    """A model that is all but certain that the token after example k is `token_of(k)`."""
    rows = torch.eye(vocab) * 30
    return model(task, lambda k: rows[token_of(k)], vocab=vocab)


def measures(last_logits: LastLogits, task: Task, **options: object) -> dict[str, dict[str, dict]]:
    """Rows of score_task by subset and metric."""
    table: dict[str, dict[str, dict]] = {}
    for row in score_task(last_logits, task, **options):  # type: ignore[arg-type]
        assert row["metric"] not in table.setdefault(row["subset"], {})
        table[row["subset"]][row["metric"]] = row
    return table


def values(table: dict[str, dict[str, dict]], metric: str) -> dict[str, float]:
    return {subset: rows[metric]["value"] for subset, rows in table.items()}


def every(value: float) -> dict[str, float]:
    return dict.fromkeys(SUBSETS, value)


def addition(p: int = 5) -> ModularAddition:
    return ModularAddition("add", symbols=10 + np.arange(p), labels=np.array([]), seed=0)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("task", [comparison(test=TEST), addition()], ids=["cmp", "add"])
def test_a_perfect_model_has_every_accuracy_and_score_1(task: Task, split: str) -> None:
    table = measures(says(task, lambda k: int(task.tokens[k, -1])), task, split=split)
    for metric in ("accuracy", "label_accuracy", "score"):
        assert values(table, metric) == every(1.0)
    for metric in ("label_loss", "choice_loss", "format_loss"):
        assert max(values(table, metric).values()) < 1e-10


def test_knowing_only_how_often_labels_come_scores_exactly_0() -> None:
    task = comparison(test=TEST)
    # The rest of the mass, 1/8, lies on the other 29 tokens.
    probability = torch.full((V,), 1 / 8 / 29)
    probability[LESS], probability[GREATER], probability[EQUAL] = 1 / 2, 1 / 4, 1 / 8
    table = measures(model(task, lambda k: probability.log()), task)
    for metric in ("accuracy", "label_accuracy"):
        assert values(table, metric) == {name: share for name, (_, share) in SUBSETS.items()}
    assert values(table, "score") == every(0.0)
    # less, greater and equal cost 1, 2 and 3 times ln 2.
    assert values(table, "label_loss") == pytest.approx(
        {
            "all": (4 * 1 + 3 * 2 + 1 * 3) / 8 * LN2,
            "mirror_in_train": (2 * 1 + 1 * 2) / 3 * LN2,
            "no_mirror": (2 * 1 + 2 * 2 + 1 * 3) / 5 * LN2,
        }
    )
    # Of which log(8 / 7) is the format's, whatever the label.
    assert values(table, "format_loss") == pytest.approx(every(math.log(8 / 7)))
    for name, whole in values(table, "label_loss").items():
        parts = table[name]["choice_loss"]["value"], table[name]["format_loss"]["value"]
        assert sum(parts) == pytest.approx(whole, abs=1e-12)


def test_label_entropy_is_that_of_the_scored_items() -> None:
    task = comparison(test=TEST)
    table = measures(says(task, lambda k: STRAY), task)

    def entropy(*shares: float) -> float:
        return sum(-share * math.log(share) for share in shares)

    assert values(table, "label_entropy") == pytest.approx(
        {
            "all": entropy(4 / 8, 3 / 8, 1 / 8),
            "mirror_in_train": entropy(2 / 3, 1 / 3),
            "no_mirror": entropy(2 / 5, 2 / 5, 1 / 5),
        }
    )


def test_sizes_and_majorities_are_those_of_each_subset() -> None:
    task = comparison(test=TEST)
    table = measures(says(task, lambda k: STRAY), task)
    assert list(table) == list(SUBSETS)
    for subset, (n, majority) in SUBSETS.items():
        assert {row["n"] for row in table[subset].values()} == {n}
        assert table[subset]["label_accuracy"]["majority"] == majority
        assert table[subset]["score"]["majority"] == majority


def test_the_label_format_alone_is_accuracy_without_score() -> None:
    # Pair (i, j) answered by label (i + j) mod 3 of (less, equal, greater): 3 and 10 happen to fit.
    task = comparison(test=TEST)
    table = measures(says(task, lambda k: int(LABELS[(k // 4 + k % 4) % 3])), task)
    assert values(table, "accuracy") == {
        "all": 2 / 8,
        "mirror_in_train": 1 / 3,
        "no_mirror": 1 / 5,
    }
    assert values(table, "score") == pytest.approx(
        {"all": -0.5, "mirror_in_train": -1.0, "no_mirror": (1 / 5 - 2 / 5) / (3 / 5)}
    )


def test_guessing_with_the_right_label_frequencies_has_no_score_at_the_studys_size() -> None:
    task = comparison(100)
    rng = np.random.default_rng(0)
    guess = rng.permutation(task.tokens[:, -1])
    table = measures(says(task, lambda k: int(guess[k]), vocab=V + 100), task)
    # 5,000 items: one standard deviation of the score is .014.
    assert table["all"]["accuracy"]["value"] > 0.45
    assert abs(table["all"]["score"]["value"]) < 0.06


def test_a_stray_arg_max_costs_accuracy_but_neither_label_accuracy_nor_score() -> None:
    task = comparison(test=TEST)

    def logits(k: int) -> torch.Tensor:
        row = torch.zeros(V)
        row[int(task.tokens[k, -1])], row[STRAY] = 10, 20
        return row

    table = measures(model(task, logits), task)
    assert values(table, "accuracy") == every(0.0)
    assert values(table, "label_accuracy") == every(1.0)
    assert values(table, "score") == every(1.0)
    assert values(table, "label_loss") == pytest.approx(every(10.0), abs=1e-3)
    # Of the labels it knows the right one; what it does not know is that a label comes.
    assert max(values(table, "choice_loss").values()) < 1e-3
    assert values(table, "format_loss") == pytest.approx(every(10.0), abs=1e-3)


def test_an_oracle_of_mirrors_shows_in_the_subsets() -> None:
    task = comparison(test=TEST)
    mirrored = task.mirror_in_train()
    table = measures(says(task, lambda k: int(task.tokens[k, -1] if mirrored[k] else LESS)), task)
    # Outside it says the majority label, less, which fits 2 of the 5.
    assert values(table, "label_accuracy") == {
        "all": 5 / 8,
        "mirror_in_train": 1.0,
        "no_mirror": 2 / 5,
    }
    assert values(table, "score") == {"all": 0.25, "mirror_in_train": 1.0, "no_mirror": 0.0}


def test_intervals_are_those_of_the_items_and_scores_those_of_label_accuracy() -> None:
    task = comparison(test=TEST)

    def logits(k: int) -> torch.Tensor:
        row = torch.zeros(V)
        row[LESS], row[STRAY] = (
            10,
            20 * (k % 2),
        )  # less is the best label, not always the best token
        return row

    for rows in measures(model(task, logits), task).values():
        label, score = rows["label_accuracy"], rows["score"]
        n, majority = label["n"], label["majority"]
        for row in (label, rows["accuracy"]):
            expected = binomtest(round(row["value"] * n), n).proportion_ci(method="wilson")
            assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
        assert rows["accuracy"]["value"] < label["value"]
        for end in ("low", "value", "high"):
            assert score[end] == pytest.approx((label[end] - majority) / (1 - majority))


def test_where_all_items_have_one_label_the_score_is_undefined() -> None:
    # Only (2, 2) and (3, 3) lack a mirror in train, and both are equal.
    task = comparison(test=[3, 4, 7, 9, 10, 11, 15])
    table = measures(says(task, lambda k: int(EQUAL)), task)
    single = table["no_mirror"]
    assert single["score"]["n"] == 2
    assert single["label_accuracy"]["value"] == 1.0
    assert single["label_entropy"]["value"] == 0.0
    assert all(math.isnan(single["score"][end]) for end in ("low", "value", "high"))
    assert not math.isnan(table["mirror_in_train"]["score"]["value"])


def test_a_subset_that_is_empty_or_everything_is_not_reported() -> None:
    for test in ([1, 2, 3], [1, 4]):  # all mirrors in train; none
        task = comparison(test=test)
        assert list(measures(says(task, lambda k: STRAY), task)) == ["all"]


def test_train_and_test_are_scored_on_their_own_rows() -> None:
    task = comparison(test=TEST)
    memory = set(task.train.tolist())
    last_logits = says(task, lambda k: int(task.tokens[k, -1]) if k in memory else STRAY)
    train, test = (measures(last_logits, task, split=split) for split in ("train", "test"))
    assert values(train, "accuracy") == every(1.0)
    assert values(test, "accuracy") == every(0.0)
    # In train 2 and 8 mirror each other; 6, 12, 14 have theirs in test; 0, 5 and 15 are equal.
    assert {name: rows["accuracy"]["n"] for name, rows in train.items()} == {
        "all": 8,
        "mirror_in_train": 2,
        "no_mirror": 6,
    }
    assert train["all"]["score"]["majority"] == 3 / 8
    assert measures(last_logits, task) == test
    with pytest.raises(ValueError, match="split"):
        score_task(last_logits, task, split="dev")


def test_batches_change_nothing_and_none_is_larger_than_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = comparison(10)
    noise = torch.randn(100, V, generator=torch.Generator().manual_seed(0))
    noisy = model(task, noise.__getitem__)
    expected = score_task(noisy, task)
    sizes: list[int] = []

    def counting(ids_BT: torch.Tensor) -> torch.Tensor:
        sizes.append(len(ids_BT))
        return noisy(ids_BT)

    for batch_rows, calls in ((1, [1] * 50), (7, [7] * 7 + [1]), (50, [50]), (1000, [50])):
        sizes.clear()
        assert score_task(counting, task, batch_rows=batch_rows) == expected
        assert sizes == calls
    monkeypatch.setattr(eval.scores.accuracy, "LOGITS_AT_ONCE", 10 * V + V - 1)
    everything = np.arange(100)
    sizes.clear()
    few = answer(counting, task, everything)
    assert sizes == [64, 10, 10, 10, 6]
    assert (few.loss == answer(noisy, task, everything, batch_rows=100).loss).all()


def test_a_negative_batch_is_refused() -> None:
    task = comparison(test=TEST)
    with pytest.raises(ValueError, match="batch_rows must be at least 0, got -1"):
        answer(says(task, lambda k: STRAY), task, task.test, batch_rows=-1)


def test_answers_keep_the_order_of_the_indices_and_take_bf16() -> None:
    task = comparison(test=TEST)
    noise_NV = torch.randn(16, V, generator=torch.Generator().manual_seed(0)).bfloat16()
    indices = np.array([13, 2, 10, 2])
    answers = answer(model(task, noise_NV.__getitem__), task, indices, batch_rows=3)
    labels = torch.from_numpy(task.tokens[indices, -1])
    # In double from the same bf16 logits: the loss itself is not rounded to bf16.
    log_p = noise_NV[torch.from_numpy(indices)].double().log_softmax(-1)
    expected = -log_p[torch.arange(4), labels]
    assert answers.loss.dtype == np.float64
    assert answers.loss == pytest.approx(expected.numpy(), rel=1e-5)
    best = [max(LABELS, key=lambda token: log_p[n, token]) for n in range(4)]
    assert answers.label_correct.tolist() == (np.array(best) == labels.numpy()).tolist()
    assert answers.correct.tolist() == (log_p.argmax(-1) == labels).tolist()


def test_only_one_number_a_row_is_moved_to_the_cpu() -> None:
    moved: list[int] = []

    class Spy(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.Tensor.cpu:
                moved.append(args[0].numel())
            return func(*args, **(kwargs or {}))

    task = comparison(test=TEST)
    with Spy():
        answer(says(task, lambda k: STRAY), task, task.test)
    assert moved == [len(TEST)] * 5  # a number for each field of Answers


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_logits_on_a_gpu_give_the_answers_of_the_cpu() -> None:
    task = comparison(10)
    noise = torch.randn(100, V, generator=torch.Generator().manual_seed(0))
    on_cpu = answer(model(task, noise.__getitem__), task, task.test, batch_rows=7)
    on_gpu = answer(model(task, noise.cuda().__getitem__), task, task.test, batch_rows=7)
    assert on_gpu.loss == pytest.approx(on_cpu.loss, rel=1e-5)
    assert (on_gpu.correct == on_cpu.correct).all()
    assert (on_gpu.label_correct == on_cpu.label_correct).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_model_has_no_score(bad: float) -> None:
    task = comparison(test=TEST)
    table = measures(
        model(task, lambda k: torch.full((V,), bad) if k == 13 else torch.zeros(V)), task
    )
    for metric in ("accuracy", "label_accuracy", "score"):
        # Example 13 has no mirror in train: of the others that are asked, the score stands.
        row = table["all"][metric]
        assert np.isnan([row[name] for name in ("value", "low", "high")]).all()
        assert row["diverged"]
        assert "diverged" not in table["mirror_in_train"][metric]
    for metric in ("label_loss", "choice_loss", "format_loss"):
        assert not math.isfinite(table["all"][metric]["value"])
    assert math.isfinite(table["all"]["label_entropy"]["value"])
