"""The residual stream at a task's symbols: one row per symbol, which is what a probe may see.

    states = symbol_states(lambda ids: residual_stream(model, ids), task)
    states.hidden_LSD[1]                   # after block 1, a row per symbol

Layer 0 is the embedding's output, layer l the residual stream after block l. The engine's list of
hidden states ends in the output of the final norm (model.py:1442), not in the residual stream after
the last block: that one is read where it enters the norm.

Axes: L layers (blocks + 1), B rows, T tokens up to the stated position, S symbols, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_injection.errors import DivergedError
from data_injection.philox import permutation
from data_injection.tasks.base import IntArray, Task

ReadStates = Callable[[torch.Tensor], torch.Tensor]
"""From input_ids_BT to the hidden_LBD of the rows' last token."""

ROWS_AT_ONCE = 256
"""The engine computes the last position's logits whether wanted or not: 50 MB at this many."""


@dataclass(frozen=True)
class SymbolStates:
    """Representations of symbols, one row each. Raises ValueError if a symbol has two rows.

    With two rows a fold could train on one and be tested on the other, where knowing the symbol is
    enough: so there is no such object, and a probe takes nothing else.
    """

    hidden_LSD: NDArray[np.float64]
    symbols_S: IntArray
    """Which symbol each row is of, all distinct."""

    def __post_init__(self) -> None:
        if self.hidden_LSD.ndim != 3 or self.hidden_LSD.shape[1] != len(self.symbols_S):
            raise ValueError(
                f"states must be of shape (layers, symbols, width), got {self.hidden_LSD.shape} "
                f"for {len(self.symbols_S)} symbols"
            )
        if not np.isfinite(self.hidden_LSD).all():
            rule, remedy = "must be finite: the model has diverged", "choose another --step"
            raise DivergedError(key="states", rule=rule, remedy=remedy)
        if len(np.unique(self.symbols_S)) != len(self.symbols_S):
            raise ValueError(
                f"{len(self.symbols_S)} rows are of {len(np.unique(self.symbols_S))} symbols: a "
                "symbol's other rows would give it away to a probe; use average_by_symbol"
            )


def average_by_symbol(hidden_LBD: NDArray[Any], symbols_B: IntArray) -> SymbolStates:
    """One row per symbol, the mean of its rows, in the order of their first appearance."""
    _, first, symbol_of_B, counts = np.unique(
        symbols_B, return_index=True, return_inverse=True, return_counts=True
    )
    together = np.argsort(symbol_of_B, kind="stable")
    starts = np.cumsum(counts) - counts
    total_LSD = np.add.reduceat(hidden_LBD[:, together].astype(np.float64), starts, axis=1)
    mean_LSD = total_LSD / counts[:, None]
    appearance = np.argsort(first)
    return SymbolStates(mean_LSD[:, appearance], symbols_B[first[appearance]])


@torch.no_grad()
def residual_stream(model: torch.nn.Module, input_ids_BT: torch.Tensor) -> torch.Tensor:
    """The last token's residual stream before the first and after every block, fp32; (L, B, D).

    `model` is an OLMo, wrapped (DDP, FSDP) or not, in evaluation mode; every rank must call this
    equally often (FSDP gathers parameters in the forward pass).
    """
    final = [module for name, module in model.named_modules() if name.split(".")[-1] == "ln_f"]
    assert len(final) == 1, "an OLMo has one final norm"
    last: list[torch.Tensor] = []
    hook = final[0].register_forward_pre_hook(lambda module, inputs: last.append(inputs[0]))
    try:
        output = model(input_ids_BT, last_logits_only=True, output_hidden_states=True)
    finally:
        hook.remove()
    states = [*output.hidden_states[:-1], *last]
    return torch.stack([state[:, -1].float() for state in states])


def symbol_states(
    read: ReadStates, task: Task, *, position: int = 0, contexts: int = 16, seed: int = 0
) -> SymbolStates:
    """Each symbol's state at a position of the task's examples, averaged over what stands before.

    At position 0 nothing stands before: the symbol alone. Further on the mean is over `contexts`
    prefixes, drawn by the seed from the task's examples and the same for all symbols where the task
    has all combinations. The model may already have answered there, and an answer averaged over
    contexts tells a symbol's rank or residue even if every pair was learned by heart.

    Args:
        read: the model; called equally often on every rank for the same arguments.

    Raises:
        ValueError: a symbol never stands at the position.
    """
    rows, symbols = _prefixes(task, position, contexts, seed)
    parts = [
        read(torch.from_numpy(rows[start : start + ROWS_AT_ONCE])).cpu()
        for start in range(0, len(rows), ROWS_AT_ONCE)
    ]
    return average_by_symbol(torch.cat(parts, dim=1).double().numpy(), symbols)


def _prefixes(task: Task, position: int, contexts: int, seed: int) -> tuple[IntArray, IntArray]:
    """Rows of tokens up to a position and the symbol at their end, in the order of task.symbols."""
    if not 0 <= position < task.length - 1:
        raise ValueError(
            f"position must be in [0, {task.length - 1}) for {task.name!r}, got {position}"
        )
    prefixes = np.unique(task.tokens[:, : position + 1], axis=0)
    chosen = []
    for symbol in task.symbols:
        own = prefixes[prefixes[:, -1] == symbol]
        if not len(own):
            raise ValueError(
                f"symbol {symbol} never stands at position {position} of {task.name!r}; choose "
                "another position"
            )
        order = permutation(len(own), seed=seed, purpose=f"contexts/{task.name}")
        chosen.append(own[order[:contexts]])
    rows = np.concatenate(chosen)
    return rows, rows[:, -1]
