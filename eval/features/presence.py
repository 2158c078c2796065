"""Feature presence as records: every target a task declares, probed at every layer asked for.

    for row in score_features(read, task, layers=[0, 1, 2], seed=0):
        print(row["group"], row.get("layer", "union"), row["metric"], row["value"])

Comparison declares its order, modular addition its Fourier modes, group composition its elements; a
family of your own declares others in `Task.targets`. What counts as present:
`eval.features.probes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_injection.tasks.base import FloatArray, Task
from eval.features.activations import ReadStates, SymbolStates, symbol_states
from eval.features.probes import MIN_PERMUTATIONS, Probe, probe

COUNTS = {"fourier": "fourier_modes"}
"""Names of counts by target; any other target's is probe_count."""


def score_features(
    read: ReadStates,
    task: Task,
    *,
    layers: Sequence[int],
    position: int = 0,
    contexts: int = 16,
    seed: int = 0,
    permutations: int = MIN_PERMUTATIONS,
    fit: bool = True,
) -> list[dict[str, Any]]:
    """All measures of a task's targets, as the fields of records.

    Args:
        read: the model; called equally often on every rank for the same arguments.
        layers: sites, 0 the embedding's output, l the residual stream after block l. The null's
            maximum runs over these.
        fit: whether to fit the probes; ranks that write nothing need not.

    Returns:
        per target (group) and layer: <target>_r2 of its best unit, raw, with the permutation null's
        <target>_r2_null_mean and <target>_r2_null99, and the number of units present there; and
        without a layer the number present at one layer or more, with `present`, their numbers
        counted from 1 (a mode's frequency), out of `units`.

    Raises:
        ValueError: the task, its targets or the position cannot be probed.
    """
    states = symbol_states(read, task, position=position, contexts=contexts, seed=seed)
    if not fit:
        return []
    chosen = SymbolStates(states.hidden_LSD[list(layers)], states.symbols_S)
    rows = []
    for name, target in task.targets().items():
        found = probe(chosen, target, seed=seed, permutations=permutations)
        shared = {"group": name, "position": position, "permutations": permutations}
        rows += [row | shared for row in _rows(name, target, found, layers)]
    return rows


def _rows(
    name: str, target: FloatArray, found: Probe, layers: Sequence[int]
) -> list[dict[str, Any]]:
    count = {
        "metric": COUNTS.get(name, "probe_count"),
        "units": target.shape[1],
        "threshold": found.threshold,
    }
    rows: list[dict[str, Any]] = []
    for index, layer in enumerate(layers):
        values = {
            f"{name}_r2": found.best[index],
            f"{name}_r2_null_mean": found.null_mean[index],
            f"{name}_r2_null99": found.null99[index],
        }
        rows += [
            {"metric": metric, "value": float(value), "layer": layer}
            for metric, value in values.items()
        ]
        rows.append(count | {"value": int(found.present[index].sum()), "layer": layer})
    present = [int(unit) + 1 for unit in found.units]
    return [*rows, count | {"value": len(present), "present": present}]
