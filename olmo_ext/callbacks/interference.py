"""interference: whether the rest of a batch pushes against what a rare task asks for (Figs. 8, 9).

Extra memory, in fp32 copies of the measured parameters (a rank's shards under FSDP; all parameters
if `groups` has model, the blocks if it has layers, else one MLP), for T tasks: 2 T for references,
2 T for the step's parts, 2 for halves or the update, 4 T + 2 in all; with `offload` 1. Where not
all parameters are measured, one gradient of the others while a pass runs. No pass exceeds a
micro-batch's tokens.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from data_injection.errors import ConfigError
from eval.interference.gradients import (
    MLP,
    RandomDirection,
    Vector,
    cosine,
    shared,
    strongest,
    sum_over_ranks,
    unit,
)
from eval.interference.measure import (
    GROUPS,
    Place,
    Reference,
    Table,
    dimensions,
    group_tables,
    instances_of,
    neuron_tables,
    step_rows,
    update_rows,
)
from olmo_ext.callbacks.base import Callback, check_least, check_measured, chosen_tasks
from olmo_ext.gradients.passes import (
    Parameters,
    beside_the_step,
    check_exact,
    gradient_of,
    measured_parameters,
    num_neurons,
)
from olmo_ext.gradients.tasks import (
    label_losses,
    reference_of,
    rest_of_half,
    split_error,
    step_parts,
)

if TYPE_CHECKING:
    from olmo.config import TrainConfig

    from data_injection.plan import InjectionPlan
    from data_injection.tasks.base import IntArray, Task
    from olmo_ext.engines.host import Host

log = logging.getLogger(__name__)

KEY = "callbacks.interference"


class Measured(NamedTuple):
    """What is measured at a step: where, and against what."""

    params: Parameters
    mlp: MLP
    references: dict[str, Reference]
    """By task."""

    share: float = 0.5
    """Of the batch's rows in the half whose gradient is taken apart."""


@dataclass
class Interference(Callback):
    """Cosines of the step's gradient, its parts and its update with each task's own gradient.

    Records of `eval.interference.measure.step_rows` and `update_rows` by task, group and layer,
    each cosine with its nulls; `overlap` of the chosen neurons; `subset_cosine` once if `instances`
    is set.
    """

    every: int = 100
    """Steps in an interval; one step of each is measured."""

    steps: str = "injected"
    """Which one: "injected", the interval's first with rows of a measured task (none if there is
    none), or "first", whatever it holds; steps count from 0 as in the plan."""

    tasks: list[str] = field(default_factory=list)
    """Names of the tasks to measure; empty for all."""

    groups: list[str] = field(default_factory=lambda: list(GROUPS))
    """Of mlp_top (the `top_k` neurons of one MLP with the largest g_r), layers (each) and model."""

    layer: int = 0
    """Whose MLP mlp_top looks at; the study's is the first."""

    top_k: float = 50
    """Neurons of mlp_top; below 1 a share of the MLP's, so that widths compare."""

    window: int = 1000
    """Steps for which the chosen neurons stay the same."""

    split: str = "all"
    """Examples behind g_r: all, train or test. The study takes all."""

    instances: int = 0
    """Number of them, a seeded subset; 0 for all. The subset's cosine with all is recorded."""

    halves: bool = True
    """Also take the rest's gradient by half of the batch's rows, to tell the population's from the
    noise of a batch: half a step's time once an interval, and a copy of the parameters."""

    offload: bool = False
    """Keep references and parts in the host's memory: the same records by a slower way."""

    seed: int = 0
    """Of the order of instances, the permuted labels and the random direction."""

    def __post_init__(self) -> None:
        check_least("interference", self, every=1, window=1)
        if not (0 < self.top_k < 1 or (self.top_k >= 1 and int(self.top_k) == self.top_k)):
            rule = "must be a number of neurons, or a share of them between 0 and 1"
            raise ConfigError(key=f"{KEY}.top_k", value=self.top_k, rule=rule)
        for name, known in (("steps", ("injected", "first")), ("split", ("all", "train", "test"))):
            if (value := getattr(self, name)) not in known:
                rule = f"must be one of {', '.join(known)}"
                raise ConfigError(key=f"{KEY}.{name}", value=value, rule=rule)
        if not self.groups or set(self.groups) - set(GROUPS):
            rule = f"must be at least one of {', '.join(GROUPS)}"
            raise ConfigError(key=f"{KEY}.groups", value=self.groups, rule=rule)
        if self.instances < 0 or self.instances == 1:
            rule = "must be 0 (all) or at least 2 (one half chooses the neurons)"
            raise ConfigError(key=f"{KEY}.instances", value=self.instances, rule=rule)
        self._chosen: dict[str, list[int]] = {}
        self._window: dict[str, int] = {}
        self._compared: list[str] = []
        self._split_error: float | None = None
        self._measured: tuple[Measured, Vector] | None = None
        """What on_step needs of on_gradients, with the parameters before the optimizer's step."""

    def check(self, plan: InjectionPlan, train: TrainConfig, *, num_steps: int) -> None:
        check_exact(train, key=KEY)
        check_measured("interference", self, plan)
        if not 0 <= self.layer < train.model.n_layers:
            rule = f"must be in [0, {train.model.n_layers - 1}], the layers of the model"
            raise ConfigError(key=f"{KEY}.layer", value=self.layer, rule=rule)
        if "mlp_top" in self.groups and self.top_k > (most := num_neurons(train.model)):
            rule = f"must be at most {most}, the neurons of layer {self.layer}'s MLP"
            raise ConfigError(key=f"{KEY}.top_k", value=self.top_k, rule=rule)

    # -- hooks -----------------------------------------------------------------------------------

    def on_gradients(self, trainer: Host, batch: dict[str, Any]) -> None:
        if not self._due(trainer):
            return
        # Here and not in on_step: `.grad` still is the whole batch's, averaged and not yet clipped.
        params = measured_parameters(trainer, lambda name: self._is_measured(trainer, name))
        params = replace(params, offload=self.offload)
        mlp = params.mlp(trainer.engine.mlp(self.layer))
        vectors = {"g": params.gradient()}
        with beside_the_step(trainer, params):
            tasks = {task.name: task for task in chosen_tasks(self.tasks, trainer.plan)}
            parts = step_parts(trainer, params, batch, measured=tasks)
            vectors |= parts
            if self._split_error is None:  # once a run
                self._split_error = split_error(trainer, params, batch, parts)
            references = {
                name: reference_of(
                    trainer, params, mlp, task, self._instances(task), seed=self.seed
                )
                for name, task in tasks.items()
            }
            measured = Measured(params, mlp, references)
            if self.halves and (found := rest_of_half(trainer, params, batch)):
                vectors["h"], share = found
                measured = measured._replace(share=share)
            self._choose(trainer, measured)
            self._compare_subsets(trainer, measured)
        self._record(trainer, measured, vectors)
        # Copies, for the optimizer changes the parameters in place.
        self._measured = measured, [part.clone() for part in params.values()]

    def on_step(self, trainer: Host, metrics: dict[str, float]) -> None:
        if self._measured is None:
            return
        (measured, before), self._measured = self._measured, None
        # old - new, the descent direction: so that cos_update, like cos_g, is positive where the
        # step goes the task's way. In place: a third copy of the parameters would cost as much.
        for old, new in zip(before, measured.params.values(), strict=True):
            old.sub_(new)
        self._record(trainer, measured, {"update": before})

    def state_dict(self) -> dict[str, Any]:
        return {
            "settings": self._settings(),
            "chosen": self._chosen,
            "window": self._window,
            "compared": self._compared,
            "split_error": self._split_error,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["settings"] != self._settings():
            return  # other neurons are asked for
        self._chosen, self._window = dict(state["chosen"]), dict(state["window"])
        self._compared = list(state["compared"])
        self._split_error = state.get("split_error")  # of before: measured anew

    def _settings(self) -> list[Any]:
        return [self.layer, self.top_k, self.window, self.split, self.instances, self.seed]

    # -- choices ---------------------------------------------------------------------------------

    def _due(self, trainer: Host) -> bool:
        # From the plan and the step alone, so that all ranks agree and a resumed run measures the
        # same steps. The engine counts a step before it is taken: the plan's is one less.
        plan, step = trainer.plan, trainer.global_step - 1
        start = step - step % self.every
        tasks = [plan.task_index(task.name) for task in chosen_tasks(self.tasks, plan)]
        if self.steps == "first" or not tasks:
            return bool(tasks) and step == start
        earlier, by_now, with_this = (
            sum(plan.instances(index, num) for index in tasks) for num in (start, step, step + 1)
        )
        # None since the interval began, and one now: the interval's first.
        return earlier == by_now < with_this

    def _instances(self, task: Task, num: int | None = None) -> IntArray:
        num = self.instances if num is None else num
        return instances_of(task, split=self.split, num=num, seed=self.seed)

    def _is_measured(self, trainer: Host, name: str) -> bool:
        # The smallest set that the groups need: memory is in copies of it.
        mlp = trainer.engine.mlp(self.layer).names
        return "model" in self.groups or (
            "blocks." in name if "layers" in self.groups else name.endswith(mlp)
        )

    def _num_top(self, mlp: MLP) -> int:
        return max(round(self.top_k * mlp.num_neurons), 1) if self.top_k < 1 else int(self.top_k)

    def _choose(self, trainer: Host, measured: Measured) -> None:
        """The neurons of each task for this window; how many of the last are still among them."""
        if "mlp_top" not in self.groups:
            return
        params, mlp, references, _ = measured
        window = (trainer.global_step - 1) // self.window
        # By one half of the examples, the cosines are of the other: neurons chosen by the numbers
        # that are then averaged over them would look aligned by the choice alone.
        squares = [mlp.squares(reference.choosing) for reference in references.values()]
        for task, of_task in zip(references, sum_over_ranks(squares, params.group), strict=True):
            now = strongest(of_task, self._num_top(mlp))
            # Measured at every step, also within a window: how fast the neurons change decides
            # whether a window is short enough.
            if task in self._chosen:
                share = shared(self._chosen[task], now)
                place = ("mlp_top", self.layer, task)
                self._write(trainer, task, place, metric="overlap", value=share)
            if self._window.get(task) != window:
                self._chosen[task], self._window[task] = now, window

    # -- what is recorded ------------------------------------------------------------------------

    def _compare_subsets(self, trainer: Host, measured: Measured) -> None:
        """Once a task: the cosine of the subset's g_r with that of all instances."""
        for task in chosen_tasks(self.tasks, trainer.plan):
            examples = self._instances(task, num=0)
            if task.name in self._compared or self.instances in (0, len(examples)):
                continue
            losses = label_losses(trainer, task.tokens[examples], task.tokens[examples, -1])
            full = gradient_of(trainer, measured.params, losses)
            reference = measured.references[task.name]
            vectors: dict[str, Vector] = {"subset": reference.r, "full": full}
            of_task = measured._replace(references={task.name: reference})
            for place, table in self._tables(of_task, vectors).items():
                value = cosine(table, unit(0, of=2), unit(1, of=2))
                self._write(trainer, task.name, place, metric="subset_cosine", value=value)
            self._compared.append(task.name)

    def _record(self, trainer: Host, measured: Measured, vectors: dict[str, Vector]) -> None:
        """The rows of all tasks and places for the step's vectors, or for its update."""
        params, mlp, references, _ = measured
        # The null of every cosine: a direction that is anew at each step and the same on any number
        # of ranks, since its numbers are drawn by their place in the whole.
        random = RandomDirection(
            params.shards, params.total_sizes, seed=self.seed, counter=trainer.global_step,
            device=trainer.device,
        )  # fmt: skip
        vectors = vectors | {"z": random}
        for name, reference in references.items():
            vectors |= {f"r/{name}": reference.r, f"p/{name}": reference.p}
        rows_of = partial(step_rows, share=measured.share)
        rows_of = update_rows if "update" in vectors else rows_of  # type: ignore[assignment]
        sizes = dimensions(params.layers, params.total_sizes)
        for place, table in self._tables(measured, vectors).items():
            group, layer, chooser = place
            dim = mlp.width * self._num_top(mlp) if group == "mlp_top" else sizes[layer]
            for task in references if chooser is None else [chooser]:
                for row in rows_of(table, list(vectors), task=task, dim=dim):
                    self._write(trainer, task, place, **row)

    def _tables(self, measured: Measured, vectors: dict[str, Vector]) -> dict[Place, Table]:
        """Gram matrices of the vectors over all ranks by place."""
        params, mlp, references, _ = measured
        device = params.tensors[0].device if params.offload else None
        tables = group_tables(vectors, params.layers, self.groups, device=device)
        if "mlp_top" in self.groups:
            tables |= neuron_tables(
                vectors, references, mlp, layer=self.layer, chosen=self._chosen, device=device
            )
        # Under FSDP each rank has inner products of its own shards; a sum makes them whole. One
        # reduction for all places, for each waits for the slowest rank.
        summed = sum_over_ranks(list(tables.values()), params.group)
        return {place: t.cpu().numpy() for place, t in zip(tables, summed, strict=True)}

    def _write(
        self, trainer: Host, task: str, place: Place, *, metric: str, value: float, **fields: Any
    ) -> None:
        group, layer, _ = place
        of_split = trainer.plan.tasks[trainer.plan.task_index(task)].split(self.split)
        fields |= {"group": group, "n": self.instances or len(of_split)}
        fields["split_error"] = self._split_error
        fields |= {} if layer is None else {"layer": layer}
        trainer.record(
            "interference", metric=metric, value=value, task=task, split=self.split, **fields
        )
