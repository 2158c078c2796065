"""How much of a rare task a model knows: accuracies, score and loss at the label position.

    for row in score_task(lambda ids: model(ids, last_logits_only=True).logits[:, -1], task):
        print(row["subset"], row["metric"], row["value"])

Full-vocabulary accuracy first measures whether the label *format* was learned, so "learned" is
read from `score` = (label_accuracy - majority) / (1 - majority), with label_accuracy the arg max
over the task's labels and majority the share of the commonest label among the scored items. The
loss parts the same way, exactly: label_loss = choice_loss (which label: content) + format_loss
(-log P(any label)); the two come and go apart, so a claim of learning rests on choice_loss.

This is the measure of a training run, through whatever wrapper it has, and the definition;
`eval.scores.fast_answers` gives the same answers some times faster to `olmo-ext eval`.

Axes: B rows, T tokens of an example without its label, V vocabulary, L labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from data_injection.tasks.base import Task
from eval.statistics import share_of

LastLogits = Callable[[torch.Tensor], torch.Tensor]
"""From input_ids_BT to the logits_BV that predict the token after them."""

LOGITS_AT_ONCE = 2**24


@dataclass(frozen=True)
class Answers:
    """A model's answers to some instances, one entry each."""

    correct: NDArray[np.bool_]
    """The arg max over the whole vocabulary is the label."""

    label_correct: NDArray[np.bool_]
    """The arg max over the task's labels is the label."""

    loss: NDArray[np.float64]
    """Cross-entropy of the label over the whole vocabulary, nats."""

    choice_loss: NDArray[np.float64]
    """Cross-entropy of the label over the task's labels alone, nats."""

    choice: NDArray[np.int64]
    """The arg max over the task's labels, a token id."""

    @property
    def finite(self) -> bool:
        """Whether all logits were numbers: a loss is none as soon as one logit is NaN or inf."""
        return bool(np.isfinite(self.loss).all())

    def share(self, right: NDArray[np.bool_]) -> dict[str, Any]:
        """A share of these answers as fields of a record; undefined where the model diverged."""
        return share_of(right, finite=self.finite)

    def __getitem__(self, keep: NDArray) -> Answers:
        """Those of some instances, by their positions or a mask."""
        return Answers(*(getattr(self, field.name)[keep] for field in fields(self)))

    def losses(self) -> list[dict[str, Any]]:
        """label_loss and its two parts, means in nats, as fields of records.

        format_loss is the difference: -log P(any of the task's labels), up to rounding. The parts
        are undefined where a logit is not a number, which the labels' own need not show.
        """
        loss = float(self.loss.mean())
        choice = float(self.choice_loss.mean()) if self.finite else float("nan")
        named = {"label_loss": loss, "choice_loss": choice, "format_loss": loss - choice}
        return [{"metric": metric, "value": value} for metric, value in named.items()]


@torch.no_grad()
def answer(
    last_logits: LastLogits, task: Task, indices: NDArray[np.int64], *, batch_rows: int = 0
) -> Answers:
    """Ask the model for the label of each instance.

    Args:
        last_logits: the model; called equally often on every rank for the same arguments.
        indices: instances of the task, shape (n,).
        batch_rows: rows of one call; 0 keeps a call's logits to LOGITS_AT_ONCE numbers.

    Raises:
        ValueError: batch_rows is negative.
    """
    if batch_rows < 0:
        raise ValueError(f"batch_rows must be at least 0, got {batch_rows}; 0 chooses the number")
    tokens = torch.from_numpy(task.tokens[indices])
    labels_L = torch.from_numpy(task.label_tokens)
    places = torch.searchsorted(labels_L, tokens[:, -1].contiguous())  # the labels' ids ascend
    parts: list[tuple[torch.Tensor, ...]] = []
    start, rows = 0, batch_rows or 64
    while start < len(tokens):
        part = tokens[start : start + rows]
        # Only results of one number a row leave the logits' device: they are large.
        logits_BV = last_logits(part[:, :-1]).float()
        labels_L = labels_L.to(logits_BV.device)
        target_B = part[:, -1].to(logits_BV.device)
        # The first call is small: it tells the width of the vocabulary.
        rows = batch_rows or max(LOGITS_AT_ONCE // logits_BV.shape[1], 1)
        logits_BL = logits_BV[:, labels_L]
        place_B = places[start : start + len(part)].to(logits_BV.device)
        choice_B = labels_L[logits_BL.argmax(dim=-1)]
        found = (
            logits_BV.argmax(dim=-1) == target_B,
            choice_B == target_B,
            F.cross_entropy(logits_BV, target_B, reduction="none").double(),
            F.cross_entropy(logits_BL, place_B, reduction="none").double(),
            choice_B,
        )
        parts.append(tuple(one.cpu() for one in found))
        start += len(part)
    return Answers(*(torch.cat(field).numpy() for field in zip(*parts, strict=True)))


def score_task(
    last_logits: LastLogits, task: Task, *, split: str = "test", batch_rows: int = 0
) -> list[dict[str, Any]]:
    """All measures of one task and split, as the fields of records.

    Subsets: "all"; for tasks with a symmetry also "mirror_in_train" (the mirrored pair was there to
    be trained on, so the symmetry alone answers it) and "no_mirror".

    Returns:
        dicts with metric, value, subset, n; accuracies and score also with low and high, the 95%
        Wilson interval over items, and majority.
    """
    indices = task.split(split)
    return score_answers(answer(last_logits, task, indices, batch_rows=batch_rows), task, indices)


def score_answers(answers: Answers, task: Task, indices: NDArray[np.int64]) -> list[dict[str, Any]]:
    """The rows of `score_task` from the answers to the instances of a split."""
    subsets = {"all": np.ones(len(indices), dtype=bool)}
    mirrored = task.mirror_in_train()[indices]
    if mirrored.any() and not mirrored.all():
        subsets |= {"mirror_in_train": mirrored, "no_mirror": ~mirrored}
    labels = task.tokens[indices, -1]
    return [
        {"subset": name, "n": int(keep.sum()), **row}
        for name, keep in subsets.items()
        for row in _measures(answers, labels, keep)
    ]


def score_instances(
    answers: Answers, task: Task, indices: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """The measures of `score_task` over any instances of a task, as fields without a subset."""
    rows = _measures(answers, task.tokens[indices, -1], np.ones(len(indices), dtype=bool))
    return [{"n": len(indices), **row} for row in rows]


def _measures(
    answers: Answers, labels: NDArray[np.int64], keep: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    _, counts = np.unique(labels[keep], return_counts=True)
    shares = counts / counts.sum()
    majority = float(shares.max())
    answers = answers[keep]
    label_accuracy = answers.share(answers.label_correct)

    def above_majority(value: float) -> float:
        # Where all items have one label there is nothing to know: undefined, not 0.
        return (value - majority) / (1 - majority) if majority < 1 else float("nan")

    return [
        {"metric": "accuracy"} | answers.share(answers.correct),
        {"metric": "label_accuracy", **label_accuracy, "majority": majority},
        {
            "metric": "score",
            **label_accuracy,
            **{name: above_majority(label_accuracy[name]) for name in ("value", "low", "high")},
            "majority": majority,
        },
        *answers.losses(),
        # What a model that knows only how often each label comes would lose.
        {"metric": "label_entropy", "value": float(-(shares * np.log(shares)).sum())},
    ]
