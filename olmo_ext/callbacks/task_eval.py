"""task_eval: how much of each rare task the model knows, on all its instances, during training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from data_injection.errors import ConfigError
from eval.scores.accuracy import score_answers
from eval.scores.memorization import memorization_rows
from olmo_ext.callbacks.base import Callback, check_least, due, forward_logits
from olmo_ext.engines.host import ask

if TYPE_CHECKING:
    from olmo_ext.engines.host import Host


@dataclass
class TaskEval(Callback):
    """Every `every` steps and after the last: `eval.scores.accuracy`, by task and split.

    Logits are computed at the label position only, for all instances of a task in a few batches.
    Of sequences: `eval.scores.memorization`, by number of copies.
    """

    every: int = 200
    """Steps between two evaluations."""

    splits: list[str] = field(default_factory=lambda: ["train", "test"])
    """Splits to score: train (memorised) and test (generalised)."""

    at_start: bool = True
    """Also evaluate the untrained model."""

    prefix: int = 8
    """Tokens of a sequence (family sequences) that its extraction starts from."""

    batch_rows: int = 0
    """Rows of one forward pass; 0 chooses as many as 2^24 logits allow."""

    def __post_init__(self) -> None:
        check_least("task_eval", self, every=1, prefix=0, batch_rows=0)
        if unknown := sorted(set(self.splits) - {"train", "test"}):
            key, rule = "callbacks.task_eval.splits", "must be of train and test"
            raise ConfigError(key=key, value=unknown, rule=rule)

    def on_start(self, trainer: Host) -> None:
        if self.at_start and trainer.global_step == 0:
            self._evaluate(trainer)

    def wants_global_loss(self, trainer: Host) -> bool:
        return due(trainer.global_step, every=self.every, last_step=trainer.last_step)

    def on_step(self, trainer: Host, metrics: dict[str, float]) -> None:
        if due(trainer.global_step, every=self.every, last_step=trainer.last_step):
            trainer.record(
                "task_eval", metric="train_loss", value=metrics["train/CrossEntropyLoss"]
            )
            self._evaluate(trainer)

    def _evaluate(self, trainer: Host) -> None:
        parts = len(trainer.plan.labelled) * len(self.splits)
        with trainer.measuring():
            for index, task in enumerate(trainer.plan.labelled):
                for num, split in enumerate(self.splits):
                    done = index * len(self.splits) + num
                    trainer.beat.at(f"task_eval at step {trainer.global_step}", done, parts)
                    indices = task.split(split)
                    answers = ask(trainer, task, indices, batch_rows=self.batch_rows)
                    for score in score_answers(answers, task, indices):
                        trainer.record("task_eval", task=task.name, split=split, **score)
            for task in (task for task in trainer.plan.tasks if not task.has_label):
                for row in memorization_rows(
                    lambda ids: forward_logits(trainer, ids, last=False),
                    task,
                    prefix=self.prefix,
                    eos=trainer.plan.eos_token_id,
                    batch_rows=self.batch_rows,
                ):
                    if row["split"] in self.splits:
                        trainer.record("task_eval", task=task.name, **row)
