"""Distributed alignment search: is a variable one subspace of the states at a place, causally?

    pairs = draw_pairs(task, "tok1", among=task.train, num=2048, seed=0)
    bases_SDK = learn_subspaces(model, task, pairs, Site(1, 0), rank=1, seeds=[0, 1, 2])
    interchange(model, task, held_out, Site(1, 0), bases_SDK)    # (S, N): the target's label?

Geiger, Wu, Potts, Icard and Goodman 2024 (arXiv 2303.02536): learn the rank-K subspace for which
swapping a source example's coordinates in it into a base example gives the label of the
counterfactual; then count on pairs it never saw how often it does (interchange accuracy).

Our own lines and not pyvene 0.1.8, which takes the engine's model by module path as well and gives
the same accuracies (tests/eval/alignment/test_das.py): it would bring 28 packages into every
install, runs the source through the model in every step, and learns one seed at a time, so that
three searches take three times as long. docs/measurement.md has the times.

Axes: S seeds (subspaces side by side), N pairs, B pairs of a batch, D width, K rank, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from data_injection.philox import permutation
from data_injection.tasks.base import IntArray, Task
from eval.alignment.counterfactuals import Pairs
from eval.alignment.interventions import Site, answers, check_finite, frozen, starting_at, states_at

STEPS = 200
BATCH_PAIRS = 64
LEARNING_RATE = 0.1
"""Adam's, on an unconstrained matrix whose columns are orthonormalised; down to 0 linearly."""

LOGITS_AT_ONCE = 2**22


def learn_subspaces(
    model: nn.Module,
    task: Task,
    pairs: Pairs,
    site: Site,
    *,
    rank: int,
    seeds: Sequence[int],
    steps: int = STEPS,
) -> torch.Tensor:
    """Orthonormal bases_SDK that minimise the cross-entropy of the target's label among the labels.

    The seeds are learned side by side in one forward pass: they share nothing but the model. Each
    has its own first basis and its own order of the pairs.

    Raises:
        ValueError: no pairs, or a rank that the width does not have.
    """
    if not len(pairs):
        raise ValueError(f"no pairs of task {task.name!r} to learn a subspace from")
    base_NTD, source_ND = _states(model, task, pairs, site)
    device = source_ND.device
    labels_L, answers_N = (part.to(device) for part in _labels(task, pairs.target))
    free_SDK = nn.Parameter(random_subspaces(source_ND.shape[1], rank=rank, seeds=seeds).to(device))
    optimizer = torch.optim.Adam([free_SDK], lr=LEARNING_RATE)
    order_SB = _batches(len(pairs), steps * BATCH_PAIRS, seeds).to(device)
    with frozen(model), starting_at(model, site.layer, labels_L) as logits:
        for step in range(steps):
            rows = order_SB[:, step * BATCH_PAIRS : (step + 1) * BATCH_PAIRS].flatten()
            basis_SDK = torch.linalg.qr(free_SDK)[0]
            swapped_BTD = _swapped(base_NTD[rows], source_ND[rows], site, basis_SDK)
            # Adam does not see that each seed has a part of the mean only.
            loss = F.cross_entropy(logits(swapped_BTD), answers_N[rows])
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return torch.linalg.qr(free_SDK.detach())[0]


def random_subspaces(width: int, *, rank: int, seeds: Sequence[int]) -> torch.Tensor:
    """Uniformly random orthonormal bases_SDK, a pure function of the arguments."""
    if not 0 < rank <= width:
        raise ValueError(f"rank must be in [1, {width}], the width of the states, got {rank}")
    dice = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.linalg.qr(torch.randn(width, rank, generator=d))[0] for d in dice])


@torch.no_grad()
def interchange(
    model: nn.Module, task: Task, pairs: Pairs, site: Site, bases_SDK: torch.Tensor | None
) -> NDArray[np.bool_]:
    """Whether the model answers with the target's label, for every subspace and pair; (S, N).

    The answer is the arg max over the task's labels. Without bases the whole state is swapped, as
    one subspace: what no subspace of any rank should exceed by much at a place that holds nothing
    but the variable.
    """
    base_NTD, source_ND = _states(model, task, pairs, site)
    if bases_SDK is None:
        bases_SDK = torch.eye(source_ND.shape[1])[None]
    labels_L, answers_N = _labels(task, pairs.target)
    rows_at_once = max(LOGITS_AT_ONCE // (len(labels_L) * 64), 1)
    parts = list(zip(base_NTD.split(rows_at_once), source_ND.split(rows_at_once), strict=True))
    with frozen(model), starting_at(model, site.layer, labels_L.to(source_ND.device)) as logits:
        right = [
            [
                check_finite(logits(_swapped(base_BTD, source_BD, site, basis_SDK))).argmax(dim=-1)
                for base_BTD, source_BD in parts
            ]
            for basis_SDK in bases_SDK.to(source_ND.device).split(1)
        ]
    chosen_SN = torch.stack([torch.cat(found) for found in right]).cpu()
    return (chosen_SN == answers_N).numpy()


@torch.no_grad()
def chosen_labels(model: nn.Module, task: Task, examples: IntArray) -> IntArray:
    """The model's own answer to some examples, undisturbed: a label token each."""
    with frozen(model):
        logits_NL = answers(model, task, torch.from_numpy(task.tokens[examples, :-1]))
    return task.label_tokens[logits_NL.argmax(axis=1)]


def _swapped(
    base_BTD: torch.Tensor, source_BD: torch.Tensor, site: Site, basis_SDK: torch.Tensor
) -> torch.Tensor:
    """The bases' states with the sources' coordinates; rows are seed by seed, as many for each."""
    base_BD, swapped_BTD = base_BTD[:, site.position], base_BTD.clone()
    change_SBD = (source_BD - base_BD).unflatten(0, (len(basis_SDK), -1))
    change_BD = ((change_SBD @ basis_SDK) @ basis_SDK.mT).flatten(0, 1)
    swapped_BTD[:, site.position] = base_BD + change_BD
    return swapped_BTD


def _states(
    model: nn.Module, task: Task, pairs: Pairs, site: Site
) -> tuple[torch.Tensor, torch.Tensor]:
    """After the site's block the bases' states_NTD of all tokens, and the sources' states_ND at
    the site; a row per pair, but each example is run once: the search changes none of it."""
    if site.component != "residual":
        raise ValueError(f"the search is in the residual stream, got {site}")
    sites = [Site(site.layer, position) for position in range(task.length - 1)]
    examples, place = np.unique(np.stack([pairs.base, pairs.source]), return_inverse=True)
    with frozen(model):
        found = states_at(model, torch.from_numpy(task.tokens[examples, :-1]), sites)
    states_NTD = torch.stack([found[one] for one in sites], dim=1)
    base_N, source_N = torch.from_numpy(place.reshape(2, -1)).to(states_NTD.device)
    return states_NTD[base_N], states_NTD[source_N, site.position]


def _labels(task: Task, examples: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
    """The task's label tokens, and the examples' labels as places among them."""
    places = np.searchsorted(task.label_tokens, task.tokens[examples, -1])
    return torch.from_numpy(task.label_tokens), torch.from_numpy(places)


def _batches(num: int, total: int, seeds: Sequence[int]) -> torch.Tensor:
    """`total` indices below num for each seed: permutations one after the other; (S, total)."""
    rounds = -(-total // num)
    orders = [
        np.concatenate(
            [permutation(num, seed=seed, purpose="das/batches", counter=i) for i in range(rounds)]
        )[:total]
        for seed in seeds
    ]
    return torch.from_numpy(np.stack(orders))
