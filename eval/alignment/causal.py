"""Which layer implements the task: what patching, or removing, one part of the model does.

    for row in causal_effects(model, task, seed=0):
        print(row["variable"], row["component"], row["layer"], row["position"], row["value"])

Interchange of whole states (activation patching): the base runs, and at one place it is given what
the model computes there for the target, which differs from the base in one operand alone. A place
through which all of the model's use of that operand passes gives the target's label every time.
Ablation: at one place an attention's or MLP's output is replaced by its mean over examples.

Axes: N pairs, D width, L labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from data_injection.philox import permutation
from data_injection.tasks.base import FloatArray, IntArray, Task
from eval.alignment.counterfactuals import Pairs, draw_pairs, operands, token_of
from eval.alignment.interventions import COMPONENTS, Site, answers, frozen, num_blocks, states_at
from eval.statistics import ratio_fields, share_of

NUM_PAIRS = 510
NUM_ABLATED = 1000


def causal_effects(model: torch.nn.Module, task: Task, *, seed: int) -> list[dict[str, Any]]:
    """All measures of one model and task on its test split, as the fields of records.

    Returns:
        by variable (an operand), component, layer and position, for the subsets "all" pairs and
        "answered" (base and target are answered rightly undisturbed):
        causal_share: share of pairs answered with the target's label, with its Wilson interval;
        causal_recovered: of the difference in logit(target's label) - logit(base's label) between
        target and base, the share that the patch brings (ratio of means over pairs);
        and, without a variable, ablation_drop: the label accuracy that the mean-ablation costs.
        A place before the operand's token is left out: attention is causal, it holds nothing.
    """
    rows: list[dict[str, Any]] = []
    with frozen(model):
        for variable in operands(task):
            pairs = draw_pairs(
                task, variable, among=task.test, num=NUM_PAIRS, seed=seed, minimal=True
            )
            if len(pairs):
                sites = list(_sites(model, task, first=token_of(task, variable)))
                shared = {"variable": variable, "control": "full_vector"}
                rows += [shared | row for row in _patch_all(model, task, pairs, sites)]
        order = permutation(len(task.test), seed=seed, purpose=f"ablation/{task.name}")
        examples = np.sort(task.test[order[:NUM_ABLATED]])
        sites = [site for site in _sites(model, task, first=0) if site.component != "residual"]
        rows += _ablate_all(model, task, examples, sites)
    return rows


def _sites(model: torch.nn.Module, task: Task, *, first: int) -> Iterator[Site]:
    for position in range(first, task.length - 1):
        for component in COMPONENTS:
            for layer in range(0 if component == "residual" else 1, num_blocks(model) + 1):
                yield Site(layer, position, component)


def _patch_all(
    model: torch.nn.Module, task: Task, pairs: Pairs, sites: list[Site]
) -> Iterator[dict[str, Any]]:
    base_NT, target_NT = (
        torch.from_numpy(task.tokens[side, :-1]) for side in (pairs.base, pairs.target)
    )
    states = states_at(model, target_NT, sites)
    base_NL, target_NL = answers(model, task, base_NT), answers(model, task, target_NT)
    place = np.searchsorted(task.label_tokens, task.tokens[:, -1])
    was, wanted = place[pairs.base], place[pairs.target]
    answered = (base_NL.argmax(axis=1) == was) & (target_NL.argmax(axis=1) == wanted)
    whole = _difference(target_NL, wanted, was) - _difference(base_NL, wanted, was)
    for site in sites:
        patched_NL = answers(model, task, base_NT, site=site, states_ND=states[site])
        right = patched_NL.argmax(axis=1) == wanted
        moved = _difference(patched_NL, wanted, was) - _difference(base_NL, wanted, was)
        for subset, keep in (("all", np.ones(len(pairs), dtype=bool)), ("answered", answered)):
            where = _fields(site) | {"subset": subset, "n": int(keep.sum())}
            yield where | {"metric": "causal_share"} | share_of(right[keep])
            yield where | {"metric": "causal_recovered"} | ratio_fields(moved[keep], whole[keep])


def _ablate_all(
    model: torch.nn.Module, task: Task, examples: IntArray, sites: list[Site]
) -> Iterator[dict[str, Any]]:
    inputs_NT = torch.from_numpy(task.tokens[examples, :-1])
    states = states_at(model, inputs_NT, sites)
    place = np.searchsorted(task.label_tokens, task.tokens[examples, -1])
    intact = answers(model, task, inputs_NT).argmax(axis=1) == place
    for site in sites:
        mean_ND = states[site].mean(dim=0).expand_as(states[site])
        without = answers(model, task, inputs_NT, site=site, states_ND=mean_ND)
        lost = intact.astype(float) - (without.argmax(axis=1) == place)
        half = 1.96 * lost.std(ddof=1) / np.sqrt(len(lost)) if len(lost) > 1 else float("nan")
        value = float(lost.mean())
        yield _fields(site) | {
            "metric": "ablation_drop",
            "subset": "all",
            "n": len(lost),
            "value": value,
            "low": value - half,
            "high": value + half,
            "intact": float(intact.mean()),
        }


def _difference(logits_NL: FloatArray, one: IntArray, other: IntArray) -> FloatArray:
    rows = np.arange(len(logits_NL))
    return logits_NL[rows, one] - logits_NL[rows, other]


def _fields(site: Site) -> dict[str, Any]:
    return {"component": site.component, "layer": site.layer, "position": site.position}
