"""Callbacks: what may look at a run while it trains. They read; they never change it.

A callback is a dataclass with a docstring under each field, which is its configuration:

    @dataclass
    class Loss(Callback):
        every: int = 100
        \"\"\"Steps between two measurements.\"\"\"

        def on_step(self, trainer, metrics): ...

To add one here: a file, a line in `CALLBACKS`, a test. Elsewhere it needs no edit of ours: an
experiment names it by import path or entry point (data_injection/extensions.py). All ranks call all
hooks at the same steps, so a callback may enter the model on every rank; only rank 0's records are
written.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from data_injection.errors import ConfigError

if TYPE_CHECKING:
    from olmo.config import TrainConfig

    from data_injection.plan import InjectionPlan
    from data_injection.tasks.base import Task
    from olmo_ext.engines.host import Host

log = logging.getLogger(__name__)


@dataclass
class Callback:
    """Hooks in the order in which they are called; the defaults do nothing."""

    def check(self, plan: InjectionPlan, train: TrainConfig, *, num_steps: int) -> None:
        """Before any work: raise ConfigError for settings that cannot serve a run of this plan."""

    def on_start(self, trainer: Host) -> None:
        """Before the first step, after a checkpoint has been restored, if any."""

    def wants_global_loss(self, trainer: Host) -> bool:
        """Whether the coming step's loss must be reduced over all ranks."""
        return False

    def on_batch(self, trainer: Host, batch: dict[str, Any]) -> None:
        """Before the forward passes of a step; `batch` is this rank's part of it."""

    def on_gradients(self, trainer: Host, batch: dict[str, Any]) -> None:
        """After the last backward pass of a step, before clipping: `.grad` is the batch's."""

    def on_step(self, trainer: Host, metrics: dict[str, float]) -> None:
        """After the optimizer has taken step `trainer.global_step`."""

    def on_checkpoint(self, trainer: Host) -> None:
        """After a checkpoint has been written and renamed into place."""

    def on_end(self, trainer: Host) -> None:
        """After the last step, also when the run stops early; not after an error."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know: strings, numbers, tensors, lists and dicts of them. The
        first save refuses anything else (`olmo_ext.callbacks.state`)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


def check_least(name: str, settings: Callback, **least: int) -> None:
    """For `__post_init__`: raise ConfigError for a field that is below its least value."""
    for field, smallest in least.items():
        if (value := getattr(settings, field)) < smallest:
            key, rule = f"callbacks.{name}.{field}", f"must be at least {smallest}"
            raise ConfigError(key=key, value=value, rule=rule)


def check_measured(name: str, settings: Any, plan: InjectionPlan) -> None:
    """For `check` of what takes `tasks`, a `split` and a number of `instances` of each."""
    check_tasks(name, settings.tasks, plan)
    for task in chosen_tasks(settings.tasks, plan):
        if settings.instances > (most := len(task.split(settings.split))):
            key, rule = f"callbacks.{name}.instances", f"must be at most {most}, the examples of "
            rule += f"{task.name!r} (split {settings.split})"
            raise ConfigError(key=key, value=settings.instances, rule=rule, remedy="0 takes all")
    if not plan.labelled:
        log.warning("callbacks.%s measures nothing: the plan has no tasks with a label", name)
    elif not settings.tasks and len(plan.labelled) < len(plan.tasks):
        left = ", ".join(task.name for task in plan.tasks if not task.has_label)
        log.warning("callbacks.%s leaves out what has no label to ask for: %s", name, left)


def check_tasks(name: str, chosen: Collection[str], plan: InjectionPlan) -> None:
    """For `check`: raise ConfigError for a name that no task of the run has."""
    names = [task.name for task in plan.labelled]
    if unknown := sorted(set(chosen) - set(names)):
        rule = f"must name tasks of the run with a label, {names}"
        raise ConfigError(key=f"callbacks.{name}.tasks", value=unknown, rule=rule)


def chosen_tasks(chosen: Collection[str], plan: InjectionPlan) -> list[Task]:
    """The plan's tasks of these names; all that have a label if there are none."""
    return [task for task in plan.labelled if not chosen or task.name in chosen]


def due(step: int, *, every: int, last_step: int) -> bool:
    """Whether something done every `every` steps and after the last one is due at `step`."""
    return step % every == 0 or step == last_step


def forward_logits(trainer: Host, input_ids_BT: torch.Tensor, *, last: bool = True) -> torch.Tensor:
    """Logits of the last position under the run's own precision and wrapper, shape (B, V); or of
    all, (B, T, V). Every rank must call this equally often (FSDP gathers parameters in the pass).
    """
    with trainer.engine.autocast():
        return trainer.engine.logits(input_ids_BT.to(trainer.device), last=last)
