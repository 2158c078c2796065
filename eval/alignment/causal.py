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
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_injection.philox import permutation
from data_injection.tasks.base import IntArray, Task
from eval.alignment.counterfactuals import Pairs, draw_pairs, operands, token_of
from eval.alignment.interventions import (
    COMPONENTS,
    Site,
    check_finite,
    frozen,
    label_logits,
    num_blocks,
    patched,
    read_states,
)
from eval.statistics import ratio_fields, share_of

FloatArray = NDArray[np.float64]

NUM_PAIRS = 510
NUM_ABLATED = 1000

ROWS_AT_ONCE = 256
"""The engine computes the last position's logits whether wanted or not: 50 MB at this many."""


def causal_effects(
    model: torch.nn.Module,
    task: Task,
    *,
    seed: int,
    num_pairs: int = NUM_PAIRS,
    num_ablated: int = NUM_ABLATED,
) -> list[dict[str, Any]]:
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
                task, variable, among=task.test, num=num_pairs, seed=seed, minimal=True
            )
            if len(pairs):
                first = token_of(task, variable)
                sites = list(_sites(model, task, first=first))
                shared = {"variable": variable, "control": "full_vector"}
                rows += [shared | row for row in _patch_all(model, task, pairs, sites)]
        order = permutation(len(task.test), seed=seed, purpose=f"ablation/{task.name}")
        examples = np.sort(task.test[order[:num_ablated]])
        sites = [site for site in _sites(model, task, first=0) if site.component != "residual"]
        rows += _ablate_all(model, task, examples, sites)
    return rows


def _sites(model: torch.nn.Module, task: Task, *, first: int) -> Iterator[Site]:
    for position in range(first, task.length - 1):
        for component in COMPONENTS:
            start = 0 if component == "residual" else 1
            for layer in range(start, num_blocks(model) + 1):
                yield Site(layer, position, component)


def _patch_all(
    model: torch.nn.Module, task: Task, pairs: Pairs, sites: list[Site]
) -> Iterator[dict[str, Any]]:
    base_NT, target_NT = (
        torch.from_numpy(task.tokens[side, :-1]) for side in (pairs.base, pairs.target)
    )
    states = _states(model, target_NT, sites)
    base_NL, target_NL = _logits(model, task, base_NT), _logits(model, task, target_NT)
    place = np.searchsorted(task.label_tokens, task.tokens[:, -1])
    was, wanted = place[pairs.base], place[pairs.target]
    answered = (base_NL.argmax(axis=1) == was) & (target_NL.argmax(axis=1) == wanted)
    whole = _difference(target_NL, wanted, was) - _difference(base_NL, wanted, was)
    for site in sites:
        patched_NL = _logits(model, task, base_NT, site=site, states_ND=states[site])
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
    states = _states(model, inputs_NT, sites)
    place = np.searchsorted(task.label_tokens, task.tokens[examples, -1])
    intact = _logits(model, task, inputs_NT).argmax(axis=1) == place
    for site in sites:
        mean_ND = states[site].mean(dim=0).expand_as(states[site])
        without = _logits(model, task, inputs_NT, site=site, states_ND=mean_ND)
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


def _states(
    model: torch.nn.Module, inputs_NT: torch.Tensor, sites: list[Site]
) -> dict[Site, torch.Tensor]:
    device = next(model.parameters()).device
    parts = [read_states(model, part.to(device), sites) for part in inputs_NT.split(ROWS_AT_ONCE)]
    return {site: torch.cat([part[site] for part in parts]) for site in sites}


@torch.no_grad()
def _logits(
    model: torch.nn.Module,
    task: Task,
    inputs_NT: torch.Tensor,
    *,
    site: Site | None = None,
    states_ND: torch.Tensor | None = None,
) -> FloatArray:
    """Label logits, with the states at a site replaced if one is given; (N, L)."""
    device = next(model.parameters()).device
    labels_L = torch.from_numpy(task.label_tokens).to(device)
    found = []
    for start in range(0, len(inputs_NT), ROWS_AT_ONCE):
        part = inputs_NT[start : start + ROWS_AT_ONCE].to(device)
        if site is None or states_ND is None:
            found.append(check_finite(label_logits(model, part, labels_L)))
            continue
        given_BD = states_ND[start : start + ROWS_AT_ONCE]
        with patched(model, site, partial(_given, given_BD)):
            found.append(check_finite(label_logits(model, part, labels_L)))
    return torch.cat(found).double().cpu().numpy()


def _given(given_BD: torch.Tensor, hidden_BD: torch.Tensor) -> torch.Tensor:
    return given_BD


def _difference(logits_NL: FloatArray, one: IntArray, other: IntArray) -> FloatArray:
    rows = np.arange(len(logits_NL))
    return logits_NL[rows, one] - logits_NL[rows, other]


def _fields(site: Site) -> dict[str, Any]:
    return {"component": site.component, "layer": site.layer, "position": site.position}
