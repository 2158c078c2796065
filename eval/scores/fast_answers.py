"""The answers of `eval.scores.accuracy.answer`, some times faster: for use apart from training.

    answers = fast_answer(cut(model), task, np.arange(len(task.tokens)))

Three savings, none of which rounds anything away: instances that begin alike share the pass over
what they share; logits are made in blocks that stay in the processor's cache, of which only sums,
maxima and the labels' columns are kept; and no log-probabilities are written out. Losses equal
`answer`'s to 1e-6 (sums are taken in another order), the arg maxes are the same ones. The plain way
stays the definition: training needs it (DDP and FSDP wrap the model whole), and the tests hold this
one against it.

Axes: B rows, T tokens of an example without its label, D width, V vocabulary, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel

from data_injection.tasks.base import Task
from eval.scores.accuracy import Answers

Past = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, rows first."""

ROWS_AT_ONCE = 2048
"""Rows of one pass through the layers."""

SHORT = 16
"""Tokens of an example below which plain attention is the faster one."""

BLOCKS = {"cpu": (256, 1024), "cuda": (8192, 8192)}
"""Rows and vocabulary entries of one block of logits: 1 MiB on a CPU, a core's cache."""

SAFE = (1e-25, 1e30)
"""Sums of unshifted exponentials in here lost nothing to overflow or underflow in fp32."""


@dataclass(frozen=True)
class CutModel:
    """A model cut before its unembedding."""

    past: Callable[[torch.Tensor], Past]
    """From ids_BT to the keys and values of what follows them."""

    last_states: Callable[[torch.Tensor, Past | None], torch.Tensor]
    """From ids_BT behind a past to the states_BD that the unembedding turns into logits."""

    unembedding_VD: torch.Tensor


def cut(model: Any) -> CutModel:
    """An OLMo model cut after its final norm."""
    transformer, config = model.transformer, model.config
    head = transformer.wte if config.weight_tying else transformer.ff_out
    device = head.weight.device
    scale = 1 / math.sqrt(config.d_model) if config.scale_logits else 1.0

    def past(ids_BT: torch.Tensor) -> Past:
        return model(ids_BT.to(device), use_cache=True, last_logits_only=True).attn_key_values

    def last_states(ids_BT: torch.Tensor, past: Past | None) -> torch.Tensor:
        with _stopping_after(transformer.ln_f) as states:
            model(ids_BT.to(device), past_key_values=past, last_logits_only=True)
        return states[0][:, -1] * scale if scale != 1 else states[0][:, -1]

    # A head of more rows than tokens is used whole: the engine's logits have them too.
    return CutModel(past, last_states, head.weight)


class _Stopped(Exception):
    """The forward pass has come as far as it should."""


@contextmanager
def _stopping_after(module: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """End a forward pass after a module; its output is in the list."""
    outputs: list[torch.Tensor] = []

    def stop(module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
        outputs.append(output)
        raise _Stopped

    hook = module.register_forward_hook(stop)
    try:
        yield outputs
    except _Stopped:
        pass
    finally:
        hook.remove()


@torch.no_grad()
def fast_answer(model: CutModel, task: Task, indices: NDArray[np.int64]) -> Answers:
    """Ask the model for the label of each instance, as `eval.scores.accuracy.answer` does."""
    # Sorted, so that instances that begin alike lie in one batch and share their beginning's pass.
    order = np.lexsort(task.tokens[indices, :-1].T[::-1])
    tokens = task.tokens[indices[order]]
    # The fused attention of a CPU is made for long rows: on two tokens it is the slowest part.
    with sdpa_kernel(SDPBackend.MATH) if tokens.shape[1] < SHORT else nullcontext():
        parts = [
            _states(model, tokens[i : i + ROWS_AT_ONCE, :-1])
            for i in range(0, len(tokens), ROWS_AT_ONCE)
        ]
    found = _read_head(
        torch.cat(parts), model.unembedding_VD, tokens[:, -1], labels=task.label_tokens
    )
    return found[np.argsort(order)]


def _states(model: CutModel, ids: NDArray[np.int64]) -> torch.Tensor:
    """states_BD of ids (B, T), sorted: each distinct beginning goes through the layers once."""
    ids_BT = torch.from_numpy(ids)
    beginnings, which = np.unique(ids[:, :-1], axis=0, return_inverse=True)
    # A cache of keys and values costs a copy a row: it pays where a beginning serves two or more.
    if ids.shape[1] == 1 or 2 * len(beginnings) > len(ids):
        return model.last_states(ids_BT, None)
    past = model.past(torch.from_numpy(beginnings))
    rows = torch.from_numpy(which.reshape(-1)).to(past[0][0].device)
    return model.last_states(ids_BT[:, -1:], [(keys[rows], values[rows]) for keys, values in past])


def _read_head(
    states_BD: torch.Tensor, unembedding_VD: torch.Tensor, target: NDArray[np.int64],
    *, labels: NDArray[np.int64],
) -> Answers:  # fmt: skip
    """Answers from the last states: blocks of the vocabulary outside, of the rows inside."""
    device = states_BD.device
    num, rows_at_once, block = len(states_BD), *BLOCKS[device.type]
    target_B, labels_L = (torch.tensor(ids, device=device) for ids in (target, labels))
    place_B = torch.searchsorted(labels_L, target_B)  # the labels' ids ascend
    starts = range(0, len(unembedding_VD), block)
    # N numbers the blocks: the largest logit of each, and the sum of its exponentials.
    top_NB, sum_NB = torch.empty(2, len(starts), num, device=device)
    logits_BL = torch.empty(num, len(labels_L), device=device)
    # The arg max inside the block that holds the row's label, where that may be the label.
    best_there_B = torch.full_like(target_B, -1)
    # One buffer for every block: a fresh one each time would lie outside the cache.
    buffer = torch.empty(rows_at_once * block, device=device)
    for n, start in enumerate(starts):
        weight_DV = unembedding_VD[start : start + block].T
        here_L = (labels_L >= start) & (labels_L < start + block)
        columns = labels_L[here_L] - start
        for first in range(0, num, rows_at_once):
            rows = slice(first, min(first + rows_at_once, num))
            shape = rows.stop - first, weight_DV.shape[1]
            logits_BV = buffer[: shape[0] * shape[1]].view(shape)
            torch.mm(states_BD[rows], weight_DV, out=logits_BV)
            torch.amax(logits_BV, dim=-1, out=top_NB[n, rows])
            if len(columns):
                logits_BL[rows, here_L] = logits_BV[:, columns]
                # Only a label that nothing in its block exceeds can be the arg max.
                label_B = logits_BL[rows].gather(1, place_B[rows, None])[:, 0]
                inside_B = target_B[rows] // block == n
                asking = (inside_B & (label_B == top_NB[n, rows])).nonzero()[:, 0]
                best_there_B[first + asking] = logits_BV[asking].argmax(dim=-1) + start
            # Not shifted by the maximum, which another block may hold: what that loses is mended.
            torch.sum(logits_BV.exp_(), dim=-1, out=sum_NB[n, rows])
    total_B = sum_NB.sum(dim=0, dtype=torch.float64)
    label_B1 = logits_BL.gather(1, place_B[:, None])
    loss_B = total_B.log() - label_B1[:, 0].double()
    unsafe = ((total_B < SAFE[0]) | ~(total_B < SAFE[1])).nonzero()[:, 0]
    for some in unsafe.split(64):
        # Label first: what is left is of the size of the loss, whatever the size of the logits.
        beside_BV = states_BD[some] @ unembedding_VD.T - label_B1[some]
        loss_B[some] = beside_BV.logsumexp(dim=-1).double()
    choice_loss_B = F.cross_entropy(logits_BL, place_B, reduction="none").double()
    choice_B = labels_L[logits_BL.argmax(dim=-1)]
    # Of equal logits the first is the arg max: of blocks too.
    correct_B = (top_NB.argmax(dim=0) == target_B // block) & (best_there_B == target_B)
    fields = (correct_B, choice_B == target_B, loss_B, choice_loss_B, choice_B)
    return Answers(*(field.cpu().numpy() for field in fields))
