"""features: which of a task's hidden structure can be read off its symbols, during training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from data_injection.errors import ConfigError
from data_injection.plan import InjectionPlan
from data_injection.tasks.base import Task
from eval.features.presence import score_features
from eval.features.probes import MIN_PERMUTATIONS, check_target
from olmo_ext.callbacks.base import Callback, check_least, check_tasks, chosen_tasks, due
from olmo_ext.engines.ranks import get_global_rank

if TYPE_CHECKING:
    from olmo.config import TrainConfig

    from olmo_ext.engines.host import Host


KEY = "callbacks.features"


@dataclass
class Features(Callback):
    """Every `every` steps and after the last: measures of `eval.features.presence`, task by task.

    Symbols are read as the first tokens of a row, as task_eval reads examples. Folds, permutations
    and contexts are drawn from the plan's seed: the same ones at every step.
    """

    every: int = 200
    """Steps between two measurements."""

    tasks: list[str] = field(default_factory=list)
    """Tasks to probe; empty means all that declare targets."""

    layers: list[int] = field(default_factory=list)
    """Sites: 0 is the embedding's output, l the residual stream after block l; empty means all. The
    study reads the order of comparison at 1 and counts modes over all."""

    position: int = 0
    """Token of the example at which its symbols are read, counted from 0. Only the first is free of
    context; see `eval.features.activations.symbol_states`."""

    contexts: int = 16
    """Prefixes to average over where the position is not the first."""

    permutations: int = MIN_PERMUTATIONS
    """Draws of the null."""

    at_start: bool = True
    """Also measure the untrained model."""

    def __post_init__(self) -> None:
        check_least(
            "features", self, every=1, position=0, contexts=1, permutations=MIN_PERMUTATIONS
        )

    def check(self, plan: InjectionPlan, train: TrainConfig, *, num_steps: int) -> None:
        key, last, groups = f"{KEY}.layers", train.model.n_layers, train.model.block_group_size
        if groups != 1:
            rule = f"must be 1 for {KEY}: the engine shows no states inside a group"
            raise ConfigError(key="train.model.block_group_size", value=groups, rule=rule)
        if wrong := [layer for layer in self.layers if not 0 <= layer <= last]:
            rule = f"must be of 0 (the embedding's output) to {last} (after the last block)"
            raise ConfigError(key=key, value=wrong, rule=rule)
        if len(set(self.layers)) != len(self.layers):
            raise ConfigError(key=key, value=self.layers, rule="must be distinct")
        check_tasks("features", self.tasks, plan)
        rule, remedy = "must declare targets to probe for", "give a family a targets() method"
        if without := [n for n in self.tasks if not plan.tasks[plan.task_index(n)].targets()]:
            remedy = f"leave them out, or {remedy}"
            raise ConfigError(key=f"{KEY}.tasks", value=without, rule=rule, remedy=remedy)
        if not self._chosen(plan):
            names = [task.name for task in plan.tasks]
            rule = f"needs a task that declares targets to probe for, which none of {names} does"
            raise ConfigError(key=KEY, rule=rule, remedy=f"set it to null, or {remedy}")
        for task in self._chosen(plan):
            self._check_task(task)

    def _check_task(self, task: Task) -> None:
        if self.position >= task.length - 1:
            rule = f"must be below {task.length - 1} for {task.name!r}, "
            rule += "whose examples have so many tokens before the label"
            raise ConfigError(key=f"{KEY}.position", value=self.position, rule=rule)
        for name, target in task.targets().items():
            try:
                check_target(target, num_symbols=len(task.symbols))
            except ValueError as error:
                rule = f"cannot probe target {name!r} of task {task.name!r}: {error}"
                raise ConfigError(key=KEY, rule=rule) from None

    def on_start(self, trainer: Host) -> None:
        if self.at_start and trainer.global_step == 0:
            self._measure(trainer)

    def on_step(self, trainer: Host, metrics: dict[str, float]) -> None:
        if due(trainer.global_step, every=self.every, last_step=trainer.last_step):
            self._measure(trainer)

    def _chosen(self, plan: InjectionPlan) -> list[Task]:
        return [task for task in chosen_tasks(self.tasks, plan) if task.targets()]

    def _measure(self, trainer: Host) -> None:
        layers = sorted(self.layers) or range(trainer.engine.num_layers + 1)
        with trainer.measuring():
            for task in self._chosen(trainer.plan):
                scores = score_features(
                    lambda ids: _states(trainer, ids),
                    task,
                    layers=layers,
                    position=self.position,
                    contexts=self.contexts,
                    seed=trainer.plan.seed,
                    permutations=self.permutations,
                    fit=get_global_rank() == 0,
                )
                for score in scores:
                    # Over all symbols, which belong to no split.
                    trainer.record("features", task=task.name, split="", **score)


def _states(trainer: Host, input_ids_BT: torch.Tensor) -> torch.Tensor:
    """The residual stream at the last position under the run's own precision and wrapper."""
    with trainer.engine.autocast():
        return trainer.engine.residual_stream(input_ids_BT.to(trainer.device))
