"""Each task's part of AdamW's first moment: the same moving average of its part of the gradient.

    moments.follow(trainer, step_parts(...), norm=norm_of(params.gradient()))

Followed at every step, for the moment is linear in the gradients and forgets none at once. See
eval/interference/budget.py for what is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from eval.interference.budget import AdamStep
from eval.interference.gradients import Vector
from olmo_ext.gradients.passes import Parameters, measured_parameters

if TYPE_CHECKING:
    from olmo_ext.engines.host import Host

UNKNOWN_SHARE = 1e-3
"""Of a moment that was not followed from its beginning: it is known when no more is left."""


class Moments:
    """The first moment of each task of the plan, by name; this rank's shards under FSDP."""

    def __init__(self) -> None:
        self.firsts: dict[str, Vector] = {}
        self._since = 0
        self._params: Parameters | None = None
        self._restored: dict[str, dict[str, torch.Tensor]] | None = None

    def start(self, step: int) -> None:
        """Begin to follow after `step` steps, unless a checkpoint has the moments until there."""
        if self._restored is None:
            self._since = step

    def parameters(self, trainer: Host) -> Parameters:
        """All parameters. First called after a backward pass, by all ranks."""
        if self._params is None:
            # Which part of each parameter is this rank's is known only now.
            self._params = params = measured_parameters(trainer)
            restored, self._restored = self._restored or {}, None
            for task in trainer.plan.labelled:
                first = restored.get(task.name)
                self.firsts[task.name] = (
                    [torch.zeros_like(part) for part in params.values()]
                    if first is None
                    else params.part_of(first)
                )
        return self._params

    def known(self, trainer: Host) -> bool:
        """Whether what was not followed, of a run that began without, has decayed."""
        steps = trainer.global_step - 1 - self._since
        return self._since == 0 or _beta(trainer) ** steps <= UNKNOWN_SHARE

    def follow(self, trainer: Host, parts: Mapping[str, Vector], *, norm: float) -> None:
        """Take in a step that the optimizer has taken.

        Args:
            parts: each task's part of the step's gradient before clipping.
            norm: `norm_of` the whole gradient before clipping, of this rank's shards: all of them
                are clipped by one factor.
        """
        clipped = trainer.engine.taken_norm
        if clipped is None:
            clipped = norm_of(self.parameters(trainer).gradient())
        factor, beta = clipped / norm if norm > 0 else 1.0, _beta(trainer)
        for name, first in self.firsts.items():
            torch._foreach_mul_(list(first), beta)
            if name in parts:
                torch._foreach_add_(list(first), list(parts[name]), alpha=(1 - beta) * factor)

    def state_dict(self) -> dict[str, Any]:
        """All ranks must call it."""
        firsts = self._restored or {}
        if self._params is not None:
            firsts = {task: self._params.whole(first) for task, first in self.firsts.items()}
        return {"firsts": firsts, "since": self._since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored, self._since = state["firsts"], state["since"]


def _beta(trainer: Host) -> float:
    return float(trainer.engine.optim.param_groups[0]["betas"][0])


def norm_of(vector: Vector) -> float:
    """Euclidean length of this rank's shards."""
    norms = torch.stack(torch._foreach_norm([part for part in vector if len(part)]))
    return float(norms.double().square().sum().sqrt())


def adam_steps(trainer: Host, params: Parameters) -> tuple[Vector, list[AdamStep]]:
    """The optimizer's second moments, and how it took its last step of each parameter."""
    groups = {id(p): group for group in trainer.engine.optim.param_groups for p in group["params"]}
    states = [trainer.engine.optim.state.get(tensor, {}) for tensor in params.tensors]
    steps = []
    for tensor, state in zip(params.tensors, states, strict=True):
        group = groups[id(tensor)]
        lr, decay, betas, eps = (group[k] for k in ("lr", "weight_decay", "betas", "eps"))
        count = int(state.get("step", 1))  # an empty shard has no state
        steps.append(AdamStep(float(lr), float(decay), (betas[0], betas[1]), float(eps), count))
    return params.flat(state.get("exp_avg_sq") for state in states), steps
