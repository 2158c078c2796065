"""loss_budget: what the host, each task's rows and weight decay did to a task's loss, in nats.

A step's update is split exactly by source and multiplied with the gradient of the task's choice
loss (eval/interference/budget.py has the derivation, docs/measurement.md what it says). Every step
costs a pass over the injected rows' first tokens; a measured one also gradients of the choice loss
at both of its ends. Extra memory, in fp32 copies of the model (a rank's shards under FSDP), for T
tasks in the plan and M measured: T always, 2 T + 3 M + 5 while a step is measured.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from data_injection.errors import ConfigError, check_equal
from data_injection.philox import raw_words
from eval.interference.budget import HOST, LOBATTO, OWN, closure, products, update_parts
from eval.interference.gradients import RandomDirection, Vector, sum_over_ranks
from eval.interference.measure import instances_of, permuted_labels
from olmo_ext.callbacks.base import Callback, check_least, check_measured, chosen_tasks, due
from olmo_ext.gradients.moments import Moments, adam_steps, norm_of
from olmo_ext.gradients.passes import (
    Loss,
    Parameters,
    at_values,
    beside_the_step,
    check_exact,
    gradient_of,
    mean_along,
    mean_over_ranks,
)
from olmo_ext.gradients.tasks import label_losses, split_error, step_parts

if TYPE_CHECKING:
    from olmo.config import TrainConfig

    from data_injection.plan import InjectionPlan
    from data_injection.tasks.base import Task
    from olmo_ext.engines.host import Host

log = logging.getLogger(__name__)

State = dict[str, tuple[float, Vector]]
"""A task's choice loss and its gradient."""


@dataclass
class LossBudget(Callback):
    """Records, each `record` steps and by task, of the choice loss's change since the last record:

    `budget` by `source` (host, task: its own rows, decay, task/NAME: another task's) and, if asked,
    by `layer` (-1: in no block); for the host with `null_labels` (of a loss with labels permuted
    within the task) and `null_signs` (each entry of the host's part with a random sign). A measured
    step stands for its interval. `budget_actual`: the change itself over the same steps. Both say
    `n` (steps measured) and `closure`. With `exact`, `host_step`: L(theta + Delta_host) - L(theta)
    of one step, beside its `first_order`.
    """

    every: int = 20
    """Steps in an interval; one of each, drawn, is measured. 1 measures all: then budgets close."""

    record: int = 200
    """Steps between two records, a multiple of `every`; also after the last step."""

    tasks: list[str] = field(default_factory=list)
    """Names of the tasks whose loss is followed; empty for all."""

    split: str = "test"
    """Examples behind the choice loss: all, train or test."""

    instances: int = 200
    """Number of them, a seeded subset; 0 for all."""

    layers: bool = True
    """Also record each layer apart."""

    points: int = 3
    """Of a measured step at which gradients are taken, its ends included: 2 is the trapezoid, 3
    Simpson's rule, 4 closes best. Always 2 under FSDP."""

    exact: int = 0
    """Every so many measured steps also take the host's part of the step alone and evaluate; 0
    never. Not under FSDP."""

    seed: int = 0
    """Of the choice of instances, the permuted labels and the random signs."""

    def __post_init__(self) -> None:
        key = "callbacks.loss_budget"
        check_least("loss_budget", self, every=1, record=1, exact=0, instances=0)
        if self.record % self.every:
            rule = f"must be a multiple of every ({self.every})"
            remedy = f"take {self.every * -(-self.record // self.every)}"
            raise ConfigError(key=f"{key}.record", value=self.record, rule=rule, remedy=remedy)
        if self.split not in ("all", "train", "test"):
            rule = "must be one of all, train, test"
            raise ConfigError(key=f"{key}.split", value=self.split, rule=rule)
        if self.points not in LOBATTO:
            rule = f"must be one of {', '.join(map(str, LOBATTO))}"
            raise ConfigError(key=f"{key}.points", value=self.points, rule=rule)
        self._moments = Moments()
        self._sums: dict[str, dict[str, list[float]]] = defaultdict(dict)
        self._num = 0
        self._split_error: float | None = None
        self._step: _Step | None = None
        self._latest: tuple[int, State] = (-1, {})

    def check(self, plan: InjectionPlan, train: TrainConfig, *, num_steps: int) -> None:
        key = "callbacks.loss_budget"
        check_exact(train, key=key)
        of_adamw = [
            ("train.optimizer.name", str(train.optimizer.name), "adamw"),
            ("train.optimizer.selective_updates", train.optimizer.selective_updates, False),
        ]
        why = f" for {key}, whose split of an update is derived for it"
        check_equal(why, *of_adamw, remedy=f"change it or remove {key}")
        clipped = ("train.max_grad_norm_ratio", train.max_grad_norm_ratio, None)
        why = f" for {key}: it clips each parameter by another factor"
        check_equal(why, clipped, remedy="use train.max_grad_norm")
        if self.exact and train.distributed_strategy == "fsdp":
            rule = "must be 0 under FSDP, whose parameters cannot be set in mid-run"
            raise ConfigError(key=f"{key}.exact", value=self.exact, rule=rule)
        check_measured("loss_budget", self, plan)

    # -- hooks -----------------------------------------------------------------------------------

    def on_start(self, trainer: Host) -> None:
        # Before its first instance a task's part of the moments is 0, whoever followed it.
        placed = any(one.before(trainer.global_step) for one in trainer.plan.schedules)
        self._moments.start(trainer.global_step if placed else 0)

    def on_gradients(self, trainer: Host, batch: dict[str, Any]) -> None:
        if not trainer.plan.tasks:
            return
        params = self._moments.parameters(trainer)
        norm = norm_of(params.gradient())
        measured = self._stands_for(trainer) > 0 and self._moments.known(trainer)
        with beside_the_step(trainer, params):
            parts = step_parts(trainer, params, batch, measured=())
            if self._split_error is None:  # once a run
                self._split_error = split_error(trainer, params, batch, parts)
            found = {name.removeprefix("t/"): part for name, part in parts.items()}
            if not measured:
                self._step = _Step(norm, found)
                return
            at, state = self._latest
            if at != trainer.global_step - 1:  # else the end of the last step is this one's start
                state = self._state(trainer, params)
            nulls = {
                task.name: gradient_of(trainer, params, self._losses(trainer, task, permuted=True))
                for task in chosen_tasks(self.tasks, trainer.plan)
            }
        self._step = _Step(norm, found, [part.clone() for part in params.values()], state, nulls)

    def on_step(self, trainer: Host, metrics: dict[str, float]) -> None:
        step, self._step = self._step, None
        if step is None:
            return
        params = self._moments.parameters(trainer)
        self._moments.follow(trainer, step.parts, norm=step.norm)
        if step.before is not None:
            self._measure(trainer, params, step)
        if due(trainer.global_step, every=self.record, last_step=trainer.last_step):
            self._record(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {
            "settings": self._settings(),
            "moments": self._moments.state_dict(),
            "sums": dict(self._sums),
            "num": self._num,
            "split_error": self._split_error,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._moments.load_state_dict(state["moments"])
        self._split_error = state.get("split_error")  # of before: measured anew
        if state["settings"] == self._settings():
            self._sums = defaultdict(dict, state["sums"])
            self._num = state["num"]

    def _settings(self) -> list[Any]:
        chosen = [self.every, self.record, self.tasks, self.split, self.instances, self.seed]
        return [*chosen, self.layers, self.points]

    # -- one measured step -----------------------------------------------------------------------

    def _stands_for(self, trainer: Host) -> int:
        """Steps that this one is measured for: its interval, or 0 if another step of it is.

        Drawn anew in each interval: the same place would see every burst of a gap, or none.
        """
        interval, place = divmod(trainer.global_step - 1, self.every)
        length = min(self.every, trainer.max_steps - interval * self.every)
        [word] = raw_words(1, seed=self.seed, purpose="loss_budget", counter=interval).tolist()
        return length if word % length == place else 0

    def _measure(self, trainer: Host, params: Parameters, step: _Step) -> None:
        assert step.before is not None
        after, (seconds, how) = params.values(), adam_steps(trainer, params)
        # Apart from HOST, DECAY and the sums beside them, whatever a task is called.
        firsts = {f"{OWN}/{name}": first for name, first in self._moments.firsts.items()}
        parts = update_parts(step.before, after, firsts, seconds, how)
        signs = RandomDirection(
            params.shards,
            params.total_sizes,
            seed=self.seed,
            counter=trainer.global_step,
            device=trainer.device,
        )
        signed = [part * signs[i].sign() for i, part in enumerate(parts[HOST])]
        if self.exact and self._num % self.exact == 0:
            self._take_host_steps(trainer, params, step, parts[HOST])
        with beside_the_step(trainer, params):
            end = self._state(trainer, params)
        self._latest = trainer.global_step, end
        gradients = mean_along(
            trainer,
            params,
            step.before,
            LOBATTO[2 if trainer.engine.sharded else self.points],
            ends=[{name: gradient for name, (_, gradient) in s.items()} for s in (step.state, end)],
            at=lambda: {name: one for name, (_, one) in self._state(trainer, params).items()},
        )
        nulls = {f"null/{name}": gradient for name, gradient in step.nulls.items()}
        rows_RGS = products({**gradients, **nulls}, {**parts, "signed": signed}, params.layers)
        [rows_RGS] = sum_over_ranks([rows_RGS], params.group)
        self._num, num = self._num + 1, self._stands_for(trainer)
        for index, name in enumerate(gradients):
            # R: the whole model, outside the blocks, each layer.
            values_RS, null_RS = rows_RGS[:, index], rows_RGS[:, index + len(gradients)]
            sums = {
                **{source: values_RS[:, s].tolist() for s, source in enumerate(parts)},
                "null_signs": values_RS[:, -1].tolist(),
                "null_labels": null_RS[:, 0].tolist(),
                "actual": [end[name][0] - step.state[name][0]],
            }
            for kind, values in sums.items():
                before = self._sums[name].get(kind, [0.0] * len(values))
                self._sums[name][kind] = [a + b * num for a, b in zip(before, values, strict=True)]

    def _take_host_steps(
        self, trainer: Host, params: Parameters, step: _Step, host: Vector
    ) -> None:
        """What the host's part of the step alone does to each loss."""
        assert step.before is not None
        there = [one + two for one, two in zip(step.before, host, strict=True)]
        with torch.no_grad(), at_values(params, there), beside_the_step(trainer, params):
            for task in chosen_tasks(self.tasks, trainer.plan):
                loss, gradient = step.state[task.name]
                alone = mean_over_ranks(one() for one in self._losses(trainer, task))
                first = sum(float(a @ b) for a, b in zip(gradient, host, strict=True))
                self._write(trainer, task.name, "host_step", alone - loss, first_order=first)

    def _state(self, trainer: Host, params: Parameters) -> State:
        state: State = {}
        for task in chosen_tasks(self.tasks, trainer.plan):
            values: list[torch.Tensor] = []
            gradient = gradient_of(trainer, params, self._losses(trainer, task), values)
            # Copies: kept until the next step, and FSDP takes its buffers back before.
            state[task.name] = mean_over_ranks(values), [part.clone() for part in gradient]
        return state

    def _losses(self, trainer: Host, task: Task, *, permuted: bool = False) -> list[Loss]:
        chosen = instances_of(task, split=self.split, num=self.instances, seed=self.seed)
        tokens = task.tokens[chosen]
        labels = permuted_labels(task, chosen, seed=self.seed) if permuted else tokens[:, -1]
        return label_losses(trainer, tokens, labels, choices_C=task.label_tokens)

    # -- what is recorded ------------------------------------------------------------------------

    def _record(self, trainer: Host) -> None:
        """The sums since the last record, each measured step for all that it stands for."""
        if self._num == 0:
            return
        for task, sums in self._sums.items():
            nulls = {name: sums.pop(name) for name in ("null_labels", "null_signs")}
            actual = sums.pop("actual")[0]
            beside = {"n": self._num, "closure": closure([v[0] for v in sums.values()], actual)}
            self._write(trainer, task, "budget_actual", actual, **beside)
            places = range(len(sums[HOST]) if self.layers else 1)
            for source, values in sums.items():
                named = OWN if source == f"{OWN}/{task}" else source
                for place in places:
                    fields = beside | {"source": named}
                    if source == HOST:
                        fields |= {name: one[place] for name, one in nulls.items()}
                    if place:
                        fields["layer"] = place - 2
                    self._write(trainer, task, "budget", values[place], **fields)
        self._sums, self._num = defaultdict(dict), 0

    def _write(self, trainer: Host, task: str, metric: str, value: float, **fields: Any) -> None:
        fields["split_error"] = self._split_error
        trainer.record(
            "loss_budget", metric=metric, value=value, task=task, split=self.split, **fields
        )


@dataclass(frozen=True)
class _Step:
    """What on_step needs of what on_gradients found; but for the first two of a measured step."""

    norm: float
    """Of this rank's gradient before clipping."""

    parts: dict[str, Vector]
    """Each task's part of the gradient."""

    before: Vector | None = None
    """The parameters before the step."""

    state: State = field(default_factory=dict)
    nulls: dict[str, Vector] = field(default_factory=dict)
