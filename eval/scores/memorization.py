"""What a model has learned by heart: injected sequences against held-out ones, by number of copies.

    for row in memorization_rows(lambda ids: model(ids).logits, plan.tasks[0], prefix=8, eos=0):
        print(row["copies"], row["metric"], row["value"])

Each sequence is read alone, after an EOS, as it was injected. A number of copies is a level; a
level is compared with the **reference** of its groups: their twins, or, in a group that has none,
its examples of 0 copies. What has no group is of one group together.

- `sequence_loss`: mean cross-entropy of a token, nats; averaged over the sequences of a level.
- `extraction`: share of the sequences that greedy decoding continues exactly, to their end, from
  their first `prefix` tokens. Decoding agrees with the text to its end where, and only where, each
  token is the arg max after the text's own tokens before it, so one pass answers it.
- `exposure` (Carlini et al. 2019, "The Secret Sharer", section 4.1, definition 5): log2 |R| -
  log2 rank, of the rank of the sequence's loss (1: lowest) in R: itself and the reference of its
  group. The paper's R is all texts of the format; this one bounds exposure by log2 |R|. The null,
  of a sequence like its twins, is log2 |R| - log2(|R|!) / |R| in the mean: 1.44 bits for large R.
- `membership_auc`: the probability that an injected sequence has a lower loss than one of the
  reference of its group, ties counting half; null .5.

The exposure's interval is over sequences alone: that those of a group share its references, drawn
too, is left out, so that it is too narrow where these are few. The AUC's counts both sides.

Axes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from data_injection.tasks.base import Task
from data_injection.tasks.sequences import Sequences
from eval.scores.accuracy import LOGITS_AT_ONCE
from eval.statistics import Z, seed_fields, share_of

AllLogits = Callable[[torch.Tensor], torch.Tensor]
"""From input_ids_BT to the logits_BTV that predict the tokens after each."""

METRICS = ("sequence_loss", "extraction", "exposure", "membership_auc")

TWINS = "twins"
"""Subset of the records of held-out twins; a level's is "copies=16"."""


@dataclass(frozen=True)
class Readings:
    """A model's reading of every sequence of a task, in its order."""

    loss: NDArray[np.float64]
    """Mean cross-entropy of its tokens, nats; shape (n,)."""

    known_from: NDArray[np.int64]
    """From this token on, each is the arg max; its length if the last is not."""


@torch.no_grad()
def read_sequences(logits: AllLogits, task: Task, *, eos: int, batch_rows: int = 0) -> Readings:
    """Read each sequence after an EOS.

    Args:
        logits: the model; called equally often on every rank for the same arguments.
        batch_rows: rows of one call; 0 keeps a call's logits to LOGITS_AT_ONCE numbers.
    """
    num = len(task.tokens)
    loss, known_from = np.zeros(num), np.zeros(num, dtype=np.int64)
    # By length: a batch is padded behind its shorter rows, which a causal model does not see.
    order = np.argsort([len(tokens) for tokens in task.tokens], kind="stable")
    start, rows = 0, batch_rows or 1
    while start < num:
        part = order[start : start + rows]
        texts = [torch.as_tensor(task.tokens[i]) for i in part]
        ids_BT = torch.full((len(part), 1 + max(map(len, texts))), eos)
        for row, text in enumerate(texts):
            ids_BT[row, 1 : 1 + len(text)] = text
        logits_BTV = logits(ids_BT[:, :-1])
        targets_BT = ids_BT[:, 1:].to(logits_BTV.device)
        losses_BT = F.cross_entropy(
            logits_BTV.float().transpose(1, 2), targets_BT, reduction="none"
        ).cpu()
        right_BT = (logits_BTV.argmax(dim=-1) == targets_BT).cpu().numpy()
        for row, (i, text) in enumerate(zip(part, texts, strict=True)):
            loss[i] = float(losses_BT[row, : len(text)].double().mean())
            wrong = np.flatnonzero(~right_BT[row, : len(text)])
            known_from[i] = wrong[-1] + 1 if len(wrong) else 0
        start += len(part)
        rows = batch_rows or max(LOGITS_AT_ONCE // (logits_BTV.shape[2] * 2 * ids_BT.shape[1]), 1)
    return Readings(loss, known_from)


def memorization_rows(
    logits: AllLogits, task: Task, *, prefix: int, eos: int, batch_rows: int = 0
) -> list[dict[str, Any]]:
    """All measures of a sequences task as the fields of records.

    Returns:
        dicts with metric, value, low, high (95%: Student's t over sequences, Wilson for extraction,
        Newcombe by group for the AUC), n, copies, subset and split; exposure with null_mean and
        references.
    """
    assert isinstance(task, Sequences)
    readings = read_sequences(logits, task, eos=eos, batch_rows=batch_rows)
    return rows_of_readings(readings, task, prefix=prefix)


def rows_of_readings(readings: Readings, task: Sequences, *, prefix: int) -> list[dict[str, Any]]:
    """`memorization_rows` of what was read."""
    table, twins = task.table, np.array(task.table.twins)
    rows: list[dict[str, Any]] = []
    for copies in np.unique(table.copies[~twins]).tolist():
        level = np.flatnonzero((table.copies == copies) & ~twins)
        fields = {
            "copies": copies,
            "subset": f"copies={copies}",
            "split": "train" if copies else "test",
        }
        measured = [*_alone(readings, task, level, prefix), *_compared(readings, task, level)]
        rows += [fields | row for row in measured]
    if twins.any():
        fields = {"copies": 0, "subset": TWINS, "split": "test"}
        rows += [fields | row for row in _alone(readings, task, np.flatnonzero(twins), prefix)]
    return rows


def _alone(
    readings: Readings, task: Sequences, level: NDArray[np.int64], prefix: int
) -> list[dict[str, Any]]:
    """What needs no reference: losses, and extraction of what is longer than the prefix."""
    longer = level[np.array([len(task.tokens[i]) for i in level]) > prefix]
    loss, finite = readings.loss[level], bool(np.isfinite(readings.loss[level]).all())
    rows = [{"metric": "sequence_loss", "n": len(level)} | seed_fields(loss.tolist())]
    if len(longer):
        extracted = share_of(readings.known_from[longer] <= prefix, finite=finite)
        rows.append({"metric": "extraction", "prefix": prefix, "n": len(longer)} | extracted)
    return rows


def _compared(
    readings: Readings, task: Sequences, level: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Exposure and AUC against the references of the sequences' groups; none where there are none,
    or where the level is itself the reference."""
    exposures: list[float] = []
    nulls: list[float] = []
    wins, sizes, references = 0.0, [], references_of(task)
    members: dict[str, list[int]] = defaultdict(list)
    for i in level.tolist():
        members[task.table.groups[i]].append(i)
    for group, inside in members.items():
        reference = references.get(group, [])
        if not reference or set(inside) & set(reference):
            continue
        own_M, others = readings.loss[inside], readings.loss[reference]
        exposures += [exposure(own, others) for own in own_M.tolist()]
        wins += float((own_M[:, None] < others).sum() + 0.5 * (own_M[:, None] == others).sum())
        nulls += [null_exposure(len(others) + 1)] * len(inside)
        sizes.append((len(inside), len(others)))
    if not sizes:
        return []
    num, num_references = np.sum(sizes, axis=0).tolist()
    if not np.isfinite(readings.loss).all():
        undefined = dict.fromkeys(("value", "low", "high"), math.nan) | {"diverged": True}
        return [{"metric": name, "n": num} | undefined for name in METRICS[2:]]
    auc = wins / sum(a * b for a, b in sizes)
    low, high = auc_interval(auc, *zip(*sizes, strict=True))
    return [
        {"metric": "exposure", "n": num, "references": num_references}
        | seed_fields(exposures)
        | {"null_mean": float(np.mean(nulls))},
        {"metric": "membership_auc", "n": num, "references": num_references}
        | {"value": auc, "low": low, "high": high},
    ]


def references_of(task: Sequences) -> dict[str, list[int]]:
    """The held-out examples that those of a group are compared with, by group; none if absent."""
    twins: dict[str, list[int]] = defaultdict(list)
    untouched: dict[str, list[int]] = defaultdict(list)
    table = task.table
    for i, (group, twin) in enumerate(zip(table.groups, table.twins, strict=True)):
        if twin:
            twins[group].append(i)
        elif table.copies[i] == 0:
            untouched[group].append(i)
    return untouched | twins


def exposure(loss: float, others: NDArray[np.float64]) -> float:
    """log2 |R| - log2 rank, bits: R are the others and the sequence itself; a tie counts half."""
    rank = 1 + (others < loss).sum() + 0.5 * (others == loss).sum()
    return float(np.log2(len(others) + 1) - np.log2(rank))


def null_exposure(num: int) -> float:
    """The mean exposure in a set of so many, if every rank is as likely, bits."""
    return float(np.log2(num) - np.log2(np.arange(1, num + 1)).mean())


def auc_interval(auc: float, nums_a: Sequence[int], nums_b: Sequence[int]) -> tuple[float, float]:
    """95% interval of the share of pairs won, of so many items on either side in each group, pairs
    within groups alone (Newcombe 2006, part 2, method 5: Hanley and McNeil's variance, summed over
    groups, solved for the area like Wilson's interval, which it is for one pair a group)."""
    from scipy.optimize import brentq

    a_G, b_G = np.array(nums_a), np.array(nums_b)
    pairs_G, half_G = a_G * b_G, (a_G + b_G) / 2 - 1

    def beyond(area: float, sign: int) -> float:
        odds = (1 - area) / (2 - area) + area / (1 + area)
        share = float((pairs_G * (1 + half_G * odds)).sum()) / float(pairs_G.sum()) ** 2
        return area - auc - sign * Z * math.sqrt(area * (1 - area) * share)

    # An area of 0 or 1 has no variance and so is a root of its own: not the one that is meant.
    inside = min(max(auc, 1e-12), 1 - 1e-12)
    low = 0.0 if auc == 0 else brentq(beyond, 0.0, inside, args=(-1,))
    high = 1.0 if auc == 1 else brentq(beyond, inside, 1.0, args=(1,))
    return float(low), float(high)
