"""What a score is made of: per label, pairs beside their mirrors, memorised against generalised.

    rows = breakdown(answers, task)      # to all instances, eval.scores.fast_answers.fast_answer

These are for evaluation apart from training; the callback `task_eval` records only what
`eval.scores.accuracy` gives. What each number means: docs/measurement.md, "What a score is made
of".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data_injection.tasks.base import IntArray, Task
from eval.scores.accuracy import Answers
from eval.statistics import newcombe, share_of

SPLITS = ("train", "test")


def breakdown(answers: Answers, task: Task) -> list[dict[str, Any]]:
    """All rows of the breakdown as fields of records, with `split`.

    Args:
        answers: to every instance of the task, in its order.
    """
    rows = [{"split": s, **row} for s in SPLITS for row in _per_label(answers, task, s)]
    if not answers.finite:  # what a diverged model chooses means nothing
        return rows
    rows += [{"split": s, **row} for s in SPLITS for row in _consistency(answers, task, s)]
    return rows + [{"split": "", **row} for row in _gaps(answers, task)]


def _per_label(answers: Answers, task: Task, split: str) -> list[dict[str, Any]]:
    """label_accuracy and the losses of the instances of each label; subset "label=<token id>"."""
    rows = []
    indices = task.split(split)
    for label in task.label_tokens.tolist():
        part = answers[indices[task.tokens[indices, -1] == label]]
        if len(part.loss) == 0:
            continue
        fields = {"subset": f"label={label}", "n": len(part.loss)}
        rows.append({"metric": "label_accuracy"} | part.share(part.label_correct) | fields)
        rows += [row | fields for row in part.losses()]
    return rows


def mirrored_label(task: Task) -> dict[int, int] | None:
    """The label that each label becomes in the mirror image; None if the task has no mirrors."""
    has = task.mirror >= 0
    pairs = np.stack([task.tokens[has, -1], task.tokens[task.mirror[has], -1]], axis=1)
    found = np.unique(pairs, axis=0)
    table = dict(found.tolist())
    # Where the mirror's label does not follow from the label, a wrong answer cannot be consistent.
    return table if len(found) == len(table) > 0 else None


def _consistency(answers: Answers, task: Task, split: str) -> list[dict[str, Any]]:
    """How often a pair and its mirror image are answered alike, right or wrong.

    Subsets as `eval.scores.accuracy`'s: "no_mirror" are pairs of which both sides are in a test
    split, each pair once; "mirror_in_train" have the other side in train. An example that is its
    own mirror does not count. `chance` is the share that the same answers would have if those to
    the two sides had nothing to do with each other.
    """
    turned = mirrored_label(task)
    if turned is None:
        return []
    number = np.arange(len(task.tokens))
    is_train = np.isin(number, task.train)
    here = is_train if split == "train" else ~is_train
    other = task.mirror
    paired = here & (other >= 0)
    same_split = paired & (is_train[other] == is_train)
    subsets = {
        "mirror_in_train" if split == "train" else "no_mirror": same_split & (number < other)
    }
    if split == "test":
        subsets["mirror_in_train"] = paired & ~same_split
    rows = []
    for name, keep in subsets.items():
        if not keep.any():
            continue
        expected = np.array([turned[int(label)] for label in answers.choice[keep]])
        found = answers.choice[other[keep]]
        chance = sum(float((expected == k).mean() * (found == k).mean()) for k in task.label_tokens)
        fields = {"metric": "mirror_consistency", "subset": name, "n": int(keep.sum())}
        rows.append(fields | share_of(expected == found) | {"chance": chance})
    return rows


def _gaps(answers: Answers, task: Task) -> list[dict[str, Any]]:
    """memorised_gap and mirror_gap: differences of label accuracies, over no split.

    What only the train split has is memorised; what test pairs without their mirror in train have
    is generalised; what the others have more than these is owed to the symmetry.
    """
    mirrored = task.mirror_in_train()[task.test]
    generalised = task.test[~mirrored]
    if len(generalised) == 0:
        return []
    rows = [_difference("memorised_gap", answers, task.train, generalised)]
    if mirrored.any():
        rows.append(_difference("mirror_gap", answers, task.test[mirrored], generalised))
    return rows


def _difference(metric: str, answers: Answers, one: IntArray, two: IntArray) -> dict[str, Any]:
    a, b = (float(answers.label_correct[part].mean()) for part in (one, two))
    low, high = newcombe(a, len(one), b, len(two))
    row: dict[str, Any] = {"metric": metric, "value": a - b, "low": low, "high": high}
    return row | {"subset": "all", "n": len(one) + len(two)}
