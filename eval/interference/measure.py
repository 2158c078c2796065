"""What a training step does to a rare task: its gradient, and its parts, beside the task's own.

    tables = group_tables({"g": g, "t/cmp": g_t, "r/cmp": g_r, ...}, layers, groups=["model"])
    for row in step_rows(table, names, task="cmp", dim=dim): ...

Vectors go by name: `g` (the step's whole gradient before clipping), `t/TASK` (its part from the
rows of a task: the predictions of the example's tokens after the first, and of the EOS after it),
`label/TASK` (that of the label alone), `r/TASK` (the reference: gradient of the task's mean label
loss over its examples), `p/TASK` (the same with labels permuted within the task), `h` (the rest of
the batch by half of its rows, as if they were all), `z` (a random direction) and `update`
(parameters before minus after the optimizer's step). The rest of the batch is g_nt = g minus the t
of all tasks; by linearity it needs no pass of its own, nor does its other half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_injection.philox import permutation
from data_injection.tasks.base import IntArray, Task
from eval.interference.gradients import (
    MLP,
    Arrow,
    Vector,
    alignment,
    cosine,
    gram,
    length,
    perp_share,
    unit,
)

GROUPS = ("mlp_top", "layers", "model")
"""The K strongest neurons of one layer's MLP, each layer, the whole model."""

Place = tuple[str, int | None, str | None]
"""A group, the layer (None: the whole model) and, for neurons chosen by a task, that task."""

Table = NDArray[np.float64]


def group_tables(
    vectors: Mapping[str, Vector],
    layers: Sequence[int],
    groups: Sequence[str],
    *,
    device: torch.device | None = None,
) -> dict[Place, torch.Tensor]:
    """Gram matrices (V, V) of this rank's shards for each layer and the whole model, as asked.

    Args:
        layers: the layer of each parameter, -1 for what is in no layer.
        device: of `gram`.
    """
    if not {"layers", "model"} & set(groups):
        return {}
    # Multiplied once by parameter: a layer, and the model, are sums of what is there already.
    table_PVV = gram(list(vectors.values()), device=device)
    tables: dict[Place, torch.Tensor] = {}
    if "layers" in groups:
        layer_P = torch.tensor(layers, device=table_PVV.device)
        for layer in sorted(set(layers) - {-1}):
            tables["layers", layer, None] = table_PVV[layer_P == layer].sum(0)
    if "model" in groups:
        tables["model", None, None] = table_PVV.sum(0)
    return tables


def dimensions(layers: Sequence[int], total_sizes: Sequence[int]) -> dict[int | None, int]:
    """Entries of a vector over all ranks by layer, and under None of all of it."""
    out: dict[int | None, int] = {None: sum(total_sizes)}
    for layer, size in zip(layers, total_sizes, strict=True):
        out[layer] = out.get(layer, 0) + size
    return out


def neuron_tables(
    vectors: Mapping[str, Vector],
    references: Mapping[str, Reference],
    mlp: MLP,
    *,
    layer: int,
    chosen: Mapping[str, Sequence[int]],
    device: torch.device | None = None,
) -> dict[Place, torch.Tensor]:
    """Gram matrices (V, V) of this rank's shards of each task's chosen neurons.

    A reference among the vectors stands with its second half: the first chose the neurons.
    """
    # Two of a model's tensors hold a layer's MLP: nothing else is multiplied again.
    pairs: dict[str, Vector] = {name: mlp.of(vector) for name, vector in vectors.items()}
    for task, reference in references.items():
        halves = {f"r/{task}": reference.r_half, f"p/{task}": reference.p_half}
        pairs |= {name: half for name, half in halves.items() if name in pairs}
    tables: dict[Place, torch.Tensor] = {}
    for task in references:
        entries = mlp.entries(chosen[task])
        picked = [[mlp.pick(pair, entries)] for pair in pairs.values()]
        tables["mlp_top", layer, task] = gram(picked, device=device)[0]
    return tables


def step_rows(
    table: Table, names: Sequence[str], *, task: str, dim: int, share: float = 0.5
) -> list[dict[str, Any]]:
    """The step's gradient and its parts against a task's reference, as fields of records.

    Metrics: cos_g, cos_g_nt, and where the step has rows of the task cos_g_t_all and
    cos_g_t_label, where it has rows of others cos_g_t_others; cos_g_r with each other task's
    reference (`other_task`), all with the nulls of `alignment`; norm_g_r with `perp_share` and
    `null_labels`, its cosine with its permuted twin. With `h`, of `share` of the rows: by cos_g_nt
    `inner_spread`, and pull_g_nt, see `two_halves`.
    """
    at = {name: unit(index, of=len(names)) for index, name in enumerate(names)}
    # The rest is g without the rows of *all* tasks: another task's rows are not host text, and what
    # like tasks do to each other is cos_g_t_others.
    parts = [name for name in names if name.startswith("t/")]
    g_t = sum((at[name] for name in parts), np.zeros(len(names)))
    arrows: dict[str, Arrow] = {"cos_g": at["g"], "cos_g_nt": at["g"] - g_t}
    if (own := f"t/{task}") in at:
        arrows |= {"cos_g_t_all": at[own], "cos_g_t_label": at[f"label/{task}"]}
    if others := [name for name in parts if name != own]:
        arrows["cos_g_t_others"] = sum((at[name] for name in others), np.zeros(len(names)))
    rows = _rows(table, names, arrows, task=task, dim=dim)
    for name in names:
        if name.startswith("r/") and name != f"r/{task}":
            fields = _rows(table, names, {"cos_g_r": at[name]}, task=task, dim=dim)[0]
            rows.append(fields | {"other_task": name.removeprefix("r/")})
    reference, permuted = at[f"r/{task}"], at[f"p/{task}"]
    norm = {
        "metric": "norm_g_r",
        "value": length(table, reference),
        "null_labels": cosine(table, reference, permuted),
        "perp_share": perp_share(table, reference, permuted),
        "dim": dim,
    }
    if "h" in at:
        spread, pull = two_halves(
            table, arrows["cos_g_nt"], at["h"], reference=reference, share=share
        )
        rows[1] |= {"inner_spread": spread}
        rows.append({"metric": "pull_g_nt", "dim": dim} | pull)
    return [*rows, norm]


def two_halves(
    table: Table, whole: Arrow, half: Arrow, *, reference: Arrow, share: float
) -> tuple[float, dict[str, float]]:
    """What of a batch's gradient is its population's and what is the draw of its rows.

    Args:
        whole: the gradient over all rows, whose expectation is the population's.
        half: the same over `share` of the rows alone.

    Returns:
        The standard deviation of <whole, reference> over batches; and `value`, the inner product of
        the two halves, which is |population's gradient|^2 without bias (and may be below 0), with
        `noise`, what |whole|^2 has beyond it.
    """
    other = (whole - share * half) / (1 - share)
    apart, signal = half - other, float(half @ table @ other)
    # Var(whole) = share (1 - share) E|half - other|^2, along any direction: a batch's rows are
    # exchangeable draws.
    spread = (share * (1 - share)) ** 0.5 * abs(float(apart @ table @ reference))
    return spread, {"value": signal, "noise": float(whole @ table @ whole) - signal}


def update_rows(table: Table, names: Sequence[str], *, task: str, dim: int) -> list[dict[str, Any]]:
    """cos_update = cos(parameter change, -g_r) with its nulls: above 0 the step serves the task.

    Under AdamW and clipping the change is not along the gradient.
    """
    arrows = {"cos_update": unit(list(names).index("update"), of=len(names))}
    return _rows(table, names, arrows, task=task, dim=dim)


def _rows(
    table: Table, names: Sequence[str], arrows: Mapping[str, Arrow], *, task: str, dim: int
) -> list[dict[str, Any]]:
    reference, permuted, random = (
        unit(list(names).index(name), of=len(names)) for name in (f"r/{task}", f"p/{task}", "z")
    )
    return [
        {"metric": metric}
        | alignment(table, arrow, reference=reference, permuted=permuted, random=random, dim=dim)
        for metric, arrow in arrows.items()
    ]


# -- the reference of a task -----------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """A task's label gradients: r as the labels are, p with permuted ones. Neurons are chosen by
    one half of the instances and measured with the other: what chose them would inflate the cosine.
    """

    r: Vector
    p: Vector
    choosing: Vector
    """r of the first half in one MLP, as by `MLP.of`."""

    r_half: Vector
    """r of the second half there."""

    p_half: Vector


def join_halves(
    r: Sequence[Vector], p: Sequence[Vector], mlp: MLP, *, share: float, device: torch.device
) -> Reference:
    """The reference from the gradients of its two halves, which it takes for its own.

    Args:
        r: gradients of the two halves' mean label losses.
        p: the same with permuted labels.
        share: share of the first half in all instances.
        device: where to compute, and where the parts in the MLP are.
    """
    # The mean over all instances is the weighted mean of the halves' means, so two passes give both
    # it and the halves. In place: a vector is as large as the model, one MLP's part is not.
    pairs = [[part.to(device, copy=True) for part in mlp.of(vector)] for vector in (*r, p[1])]
    for first, second in (r, p):
        for one, two in zip(first, second, strict=True):
            two.copy_(two.to(device).lerp_(one.to(device), share))
    return Reference(r=r[1], p=p[1], choosing=pairs[0], r_half=pairs[1], p_half=pairs[2])


def instances_of(task: Task, *, split: str, num: int, seed: int) -> IntArray:
    """The examples behind a reference: `num` of a split (all, train, test), 0 for all of it.

    In an order that depends on the seed and the task's name alone; a smaller number is a prefix, so
    that a run with more instances refines the same reference.
    """
    examples = task.split(split)
    order = permutation(len(examples), seed=seed, purpose=f"interference/{task.name}")
    return examples[order[: num or len(examples)]]


def halves(instances: IntArray) -> tuple[IntArray, IntArray]:
    """One half to choose neurons with, the other to measure with: measuring with what chose them
    would inflate the cosine."""
    return instances[0::2], instances[1::2]


def permuted_labels(task: Task, instances: IntArray, *, seed: int) -> IntArray:
    """The instances' labels in another order: their marginal stays, what they say goes.

    The same order at every step of a run: a null drawn anew would add noise to its own course.
    """
    order = permutation(len(instances), seed=seed, purpose=f"interference/null/{task.name}")
    return task.tokens[instances, -1][order]
