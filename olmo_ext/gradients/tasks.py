"""The gradient of a task: of its rows in a training step, and of its label over all its examples.

    with beside_the_step(trainer, params):
        vectors = step_parts(trainer, params, batch, measured=["cmp"])      # t/cmp, label/cmp
        reference = reference_of(trainer, params, mlp, task, instances, seed=0)

Why the task's part g_t of a step needs 4 tokens a row and not the whole batch: attention is causal,
so the losses at a row's first positions depend on its first tokens only; g_t is the gradient of a
batch of short rows under the batch's own denominator, and the rest of the batch's gradient is
g - g_t. Exact for dropout 0 and no attention bias (`passes.check_exact`). EOS's own
prediction of the host text is the rest's, and so is what host tokens see of the spliced ones.

The plan tells every rank how many rows the others hold; one with fewer pads with rows of weight 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from data_injection.tasks.base import IntArray, Task
from eval.interference.gradients import MLP, Vector, sum_over_ranks
from eval.interference.measure import Reference, halves, join_halves, permuted_labels
from olmo_ext.engines.ranks import get_global_rank, get_world_size
from olmo_ext.gradients.passes import Loss, Parameters, gradient_of

if TYPE_CHECKING:
    from olmo_ext.engines.host import Host


def step_parts(
    trainer: Host, params: Parameters, batch: dict[str, Any], *, measured: Collection[str]
) -> dict[str, Vector]:
    """t/TASK of every task with rows in the batch, and label/TASK of those that are `measured`."""
    vectors = {}
    for index, task in enumerate(trainer.plan.tasks):
        rows = rows_of_task(trainer, batch, index) if task.has_label else TaskRows([], most=0)
        if rows.most == 0:  # and sequences, which count as the host's text
            continue
        for name in ("t", "label") if task.name in measured else ("t",):
            losses = step_losses(
                trainer, batch, rows, length=task.length, label_only=name == "label"
            )
            vectors[f"{name}/{task.name}"] = gradient_of(trainer, params, losses)
    return vectors


def split_error(
    trainer: Host, params: Parameters, batch: dict[str, Any], parts: Mapping[str, Vector]
) -> float | None:
    """How far the tasks' parts by short rows are from those of whole rows, as a share of these.

    Rounding alone: 1e-7 in fp32, 2e-3 in bf16. None where `parts` (of `step_parts`) has no task's.
    """
    squares_2 = torch.zeros(2, dtype=torch.float64, device=trainer.device)
    for index, task in enumerate(trainer.plan.tasks):
        if (short := parts.get(f"t/{task.name}")) is None:
            continue
        rows = rows_of_task(trainer, batch, index)
        losses = step_losses(trainer, batch, rows, length=task.length, whole_rows=True)
        for one, two in zip(short, gradient_of(trainer, params, losses), strict=True):
            squares_2[0] += (one - two).double().square().sum()
            squares_2[1] += two.double().square().sum()
    [(difference, norm)] = [t.sqrt().tolist() for t in sum_over_ranks([squares_2], params.group)]
    return difference / norm if norm > 0 else None


def rest_of_half(
    trainer: Host, params: Parameters, batch: dict[str, Any]
) -> tuple[Vector, float] | None:
    """The gradient of everything but injected examples by the first half of each rank's rows, as if
    they were the whole batch, and their share of it. None where a rank has a single row.
    """
    ids_BT = batch["input_ids"]
    num, size = len(ids_BT), trainer.engine.microbatch_rows
    half = num // 2
    if not half:
        return None
    plan = trainer.plan
    host_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    for index, task in enumerate(plan.tasks):
        if not task.has_label:  # sequences count as the host's text, as in `step_parts`
            continue
        local = rows_of_task(trainer, batch, index).local
        # What `step_losses` counts as the task's.
        host_BT[local, plan.offset + 1 : plan.offset + task.length + 1] = False
    beside: dict[str, Any] = {
        name: batch[name] for name in ("attention_mask", "instance_mask") if name in batch
    }
    if "label_mask" in batch:
        host_BT &= batch["label_mask"]
    masks = ("input_ids", "label_mask", *beside)
    whole = {name: batch[name][:half] for name in masks if name in batch}

    def loss(start: int) -> torch.Tensor:
        rows = slice(start, min(start + size, half))
        micro = {name: value[rows] for name, value in beside.items()}
        micro |= {"input_ids": ids_BT[rows], "label_mask": host_BT[rows]}
        # Of a half batch's own size: the mean over rows is then that of a whole batch.
        return trainer.engine.training_loss(micro, whole)

    losses = [lambda start=start: loss(start) for start in range(0, half, size)]
    return gradient_of(trainer, params, losses), half / num


def reference_of(
    trainer: Host, params: Parameters, mlp: MLP, task: Task, instances: IntArray, *, seed: int
) -> Reference:
    """A task's label gradients over its instances, with the labels as they are and permuted."""
    r: list[Vector] = []
    p: list[Vector] = []
    for half in halves(instances):
        tokens, permuted = task.tokens[half], permuted_labels(task, half, seed=seed)
        for labels, into in ((tokens[:, -1], r), (permuted, p)):
            into.append(gradient_of(trainer, params, label_losses(trainer, tokens, labels)))
    share = len(instances[0::2]) / len(instances)
    return join_halves(r, p, mlp, share=share, device=trainer.device)


@dataclass(frozen=True)
class TaskRows:
    """The rows of one task in one step's batch."""

    local: list[int]
    """This rank's, as rows of its part of the batch."""

    most: int
    """The largest number that any rank has."""


def rows_of_task(trainer: Host, batch: dict[str, Any], index: int) -> TaskRows:
    """Where the rows of the plan's task `index` are in the batch of the step being trained.

    Slot s of the global batch is row s // W of rank s % W of W (iterable_dataset.py:121).
    """
    rows, world = trainer.plan.at(trainer.global_step - 1), get_world_size()
    slots, examples = rows.slots[rows.tasks == index], rows.examples[rows.tasks == index]
    counts = [int((slots % world == rank).sum()) for rank in range(world)]
    mine = slots % world == get_global_rank()
    local, task = slots[mine] // world, trainer.plan.tasks[index]
    where = slice(trainer.plan.offset, trainer.plan.offset + task.length)
    found = batch["input_ids"][torch.as_tensor(local, device=trainer.device), where].cpu()
    assert torch.equal(found, torch.as_tensor(task.tokens[examples[mine]])), "not the plan's batch"
    return TaskRows(local=local.tolist(), most=max(counts))


def step_losses(
    trainer: Host,
    batch: dict[str, Any],
    where: TaskRows,
    *,
    length: int,
    label_only: bool = False,
    whole_rows: bool = False,
) -> list[Loss]:
    """The part of the step's loss that is a task's, by the engine's own loss.

    Args:
        batch: this rank's part of the step's batch.
        where: the task's rows in it.
        length: tokens of an example, the label's included.
        label_only: the label's prediction alone, not those of the tokens within the example and of
            the EOS after it.
        whole_rows: the same losses of the rows at their full length, which costs as much more.
    """
    offset = trainer.plan.offset
    end = offset + length + 1
    width = batch["input_ids"].shape[1] if whole_rows else end
    counted_T = torch.zeros(width, dtype=torch.bool, device=trainer.device)
    # A row's mask goes with the token that is predicted.
    counted_T[offset + length - 1 if label_only else slice(offset + 1, end)] = True
    size = trainer.engine.microbatch_rows

    def loss(start: int) -> torch.Tensor:
        mine = where.local[start : start + size]
        # Row 0 with weight zero where this rank has no more.
        rows = torch.tensor(mine or [0], device=trainer.device)
        short = {"input_ids": batch["input_ids"][rows, :width]}
        counted_BT = counted_T.expand(len(rows), -1) & bool(mine)
        if "label_mask" in batch:
            counted_BT = counted_BT & batch["label_mask"][rows, :width]
        short["label_mask"] = counted_BT
        if "attention_mask" in batch:
            short["attention_mask"] = batch["attention_mask"][rows, :width]
        if "instance_mask" in batch:
            short["instance_mask"] = batch["instance_mask"][rows]
        return trainer.engine.training_loss(short, batch)

    return [lambda start=start: loss(start) for start in range(0, where.most, size)]  # type: ignore[misc]


def label_losses(
    trainer: Host, tokens_NL: IntArray, labels_N: IntArray, *, choices_C: IntArray | None = None
) -> list[Loss]:
    """The mean cross-entropy of labels after the examples' other tokens, split over ranks.

    The examples stand alone, as the first tokens of a row, wherever the plan splices them. A pass
    holds at most as many tokens as a training micro-batch, so that it needs no more memory.

    Args:
        choices_C: token ids, ascending, to which the answer is confined (the choice loss of
            `eval.scores.accuracy`); None for the whole vocabulary.
    """
    choices = None if choices_C is None else torch.as_tensor(choices_C, device=trainer.device)
    if choices_C is not None:
        labels_N = np.searchsorted(choices_C, labels_N)
    world, num = get_world_size(), len(tokens_NL)
    mine = np.arange(get_global_rank(), num, world)
    size = max(trainer.engine.microbatch_tokens // (tokens_NL.shape[1] - 1), 1)

    def loss(start: int) -> torch.Tensor:
        rows, weight = mine[start : start + size], world / num
        if len(rows) == 0:  # the other ranks have more
            rows, weight = np.zeros(1, dtype=np.int64), 0.0
        inputs_BT, targets_B = (
            torch.as_tensor(of[rows], device=trainer.device) for of in (tokens_NL[:, :-1], labels_N)
        )
        logits_BC = trainer.engine.logits(inputs_BT, of=choices)
        return weight * F.cross_entropy(logits_BC, targets_B, reduction="sum")

    return [lambda start=start: loss(start) for start in range(0, -(-num // world), size)]  # type: ignore[misc]
