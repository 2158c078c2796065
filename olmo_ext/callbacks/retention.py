"""retention: what a burst of a task taught, and how much of it is left as the gap goes on."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from data_injection.errors import ConfigError
from data_injection.philox import permutation
from data_injection.plan import InjectionPlan
from eval.retention.bursts import Burst, Moment, find_bursts, geometric_lags, moments
from eval.scores.accuracy import score_instances
from olmo_ext.callbacks.base import Callback, check_least, check_tasks
from olmo_ext.engines.host import ask

if TYPE_CHECKING:
    from olmo.config import TrainConfig

    from data_injection.tasks.base import IntArray
    from olmo_ext.engines.host import Host

log = logging.getLogger(__name__)

LAGS = "callbacks.retention.lags"
METRICS = ("label_loss", "choice_loss", "format_loss", "score")


@dataclass
class Retention(Callback):
    """Right before a burst, right after it and at lags until the next: the losses and the score.

    Twice: on the test split (generalised; split "test", subset "all" or "sampled") and on the very
    instances of the burst (memorised; split "train", subset "burst"). Only raw measurements go into
    the records, as <metric>_before and <metric>_lag with `lag` (0: right after), `burst`,
    `burst_step` and `instances`; gain, retained share and half-life need seeds and controls and are
    made from the records by `eval.retention.retained`. When it measures follows from the plan and
    the step alone, so a resumed run has nothing to remember.
    """

    tasks: list[str] = field(default_factory=list)
    """Names of the tasks to follow; empty: all that have bursts."""

    lags: list[int] = field(default_factory=list)
    """Steps after the burst, ascending; empty: 1, 2, 5, 10, 20, 50, ... and the whole gap."""

    min_gap: int = 4
    """Steps without an instance of the task that make the next step with one a burst."""

    every: int = 1
    """Measure every so many bursts from the first on, and the last; those left out always."""

    num_test: int = 0
    """Test instances to score, drawn by `seed`; 0: the whole test split."""

    seed: int = 0
    """Seed of that draw."""

    left_out: list[int] = field(default_factory=list)
    """In a control run: steps at which its schedule leaves out a burst that the other run has. They
    are measured like bursts, on the instances that it would have had, and say `instances` 0."""

    batch_rows: int = 0
    """Rows of one forward pass; 0 chooses as many as 2^24 logits allow."""

    def __post_init__(self) -> None:
        if any(b <= a for a, b in zip([0, *self.lags], self.lags, strict=False)):
            rule, remedy = "must be at least 1 and ascending", "leave 0 out: it is always measured"
            raise ConfigError(key=LAGS, value=self.lags, rule=rule, remedy=remedy)
        check_least("retention", self, min_gap=1, every=1, num_test=0, batch_rows=0)

    def check(self, plan: InjectionPlan, train: TrainConfig, *, num_steps: int) -> None:
        check_tasks("retention", self.tasks, plan)
        longest = self._longest_gap(plan, num_steps)
        if longest == 0:
            log.warning(
                "callbacks.retention measures nothing: no task has a burst after %d steps without "
                "instances and a gap after it; remove the callback or lower min_gap",
                self.min_gap,
            )
        elif self.lags and self.lags[-1] > longest:
            # Never measured; and past the next burst it would be that one's gain.
            rule = f"must be at most {longest}, the longest gap after a burst"
            remedy = "the next burst comes before a later one"
            raise ConfigError(key=LAGS, value=self.lags[-1], rule=rule, remedy=remedy)

    def on_start(self, trainer: Host) -> None:
        plan, num_steps = trainer.plan, trainer.max_steps
        lags = self.lags or geometric_lags(self._longest_gap(plan, num_steps))
        self._moments: dict[tuple[int, int], list[Moment]] = defaultdict(list)
        for index, bursts in self._bursts(plan, num_steps).items():
            chosen = {*bursts[:: self.every], *bursts[-1:]}
            for burst in bursts:
                if burst.gap and (burst in chosen or not burst.injected):
                    for moment in moments(burst, lags=lags):
                        self._moments[moment.step, index].append(moment)
        self._measure(trainer)  # the first burst may be the first step

    def on_step(self, trainer: Host, metrics: dict[str, float]) -> None:
        self._measure(trainer)

    def _measure(self, trainer: Host) -> None:
        for index in range(len(trainer.plan.tasks)):
            due = self._moments.get((trainer.global_step, index))
            if not due:
                continue
            test, subset = self._test_instances(trainer.plan, index)
            of_test = self._score(trainer, index, test)
            for moment in due:
                own = self._own_instances(trainer.plan, index, moment.burst)
                self._record(trainer, index, moment, of_test, split="test", subset=subset)
                of_own = self._score(trainer, index, own)
                self._record(trainer, index, moment, of_own, split="train", subset="burst")

    def _score(self, trainer: Host, index: int, instances: IntArray) -> list[dict[str, Any]]:
        task = trainer.plan.tasks[index]
        with trainer.measuring():
            answers = ask(trainer, task, instances, batch_rows=self.batch_rows)
        return score_instances(answers, task, instances)

    def _record(
        self,
        trainer: Host,
        index: int,
        moment: Moment,
        scores: list[dict[str, Any]],
        *,
        split: str,
        subset: str,
    ) -> None:
        when: dict[str, Any] = {} if moment.lag is None else {"lag": moment.lag}
        name = "before" if moment.lag is None else "lag"
        burst = moment.burst
        for score in scores:
            if score["metric"] not in METRICS:
                continue
            trainer.record(
                "retention",
                task=trainer.plan.tasks[index].name,
                split=split,
                subset=subset,
                burst=burst.number,
                burst_step=burst.start,
                instances=burst.count if burst.injected else 0,
                **when,
                **score | {"metric": f"{score['metric']}_{name}"},
            )

    def _bursts(self, plan: InjectionPlan, num_steps: int) -> dict[int, list[Burst]]:
        """The bursts of each task to follow, by its index."""
        return {
            index: find_bursts(
                plan.schedules[index],
                num_steps=num_steps,
                min_gap=self.min_gap,
                left_out=self.left_out,
            )
            for index, task in enumerate(plan.tasks)
            if task.has_label and (not self.tasks or task.name in self.tasks)
        }

    def _longest_gap(self, plan: InjectionPlan, num_steps: int) -> int:
        bursts = self._bursts(plan, num_steps).values()
        return max((burst.gap for some in bursts for burst in some), default=0)

    def _test_instances(self, plan: InjectionPlan, index: int) -> tuple[IntArray, str]:
        """Indices of the test instances to score, ascending, and the name of the subset."""
        task = plan.tasks[index]
        if not 0 < self.num_test < len(task.test):
            return task.test, "all"
        order = permutation(len(task.test), seed=self.seed, purpose=f"retention/{task.name}")
        return np.sort(task.test[order[: self.num_test]]), "sampled"

    def _own_instances(self, plan: InjectionPlan, index: int, burst: Burst) -> IntArray:
        """The different examples of a burst, ascending; a window may repeat them."""
        return np.unique(plan.instance_examples(index, burst.first, burst.count))
