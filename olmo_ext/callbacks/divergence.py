"""What is done when a run's numbers are not finite any more: it ends, says so, and stays ended.

    check_logits(trainer)                       # before each checkpoint
    raise note_divergence(trainer, str(error))  # at the end; `olmo-ext status` says "diverged"

Loss of a step: the trainer takes the engine's word for it (`ExperimentTrainer.train_step`).
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from data_injection.errors import ConfigError, DivergedError
from data_injection.files import replace_file
from eval.checkpoints.checkpoint import find_checkpoints
from eval.run import DIVERGED, read_if_whole
from olmo_ext.callbacks.base import forward_logits
from olmo_ext.engines.ranks import get_global_rank, get_world_size

if TYPE_CHECKING:
    from olmo_ext.trainer import ExperimentTrainer

ANEW = "train anew in another folder with a lower learning rate or a longer warm-up"

NO_LOSS = ("nan loss encountered", "math range error")
"""The engine's words (train.py:880) where a loss is NaN, and Python's where its exp is beyond
floats."""


def is_of_loss(error: Exception) -> bool:
    """Whether the engine's own step raised it: a callback's math may be out of range as well."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(error) in NO_LOSS and frame.f_globals["__name__"] == "olmo.train"


def check_logits(trainer: ExperimentTrainer) -> None:
    """Raise DivergedError, on all ranks, if the model has no finite logits for the last rows.

    Before every checkpoint, so that each one is good, and the last update is looked at too.
    """
    if trainer.seen_rows is None:
        return
    with trainer.measuring():
        finite = forward_logits(trainer, trainer.seen_rows).isfinite().all().int()
    if get_world_size() > 1:
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    if not finite.item():
        key = f"the logits after step {trainer.global_step}"
        raise DivergedError(key=key, rule="are not finite")


@contextmanager
def telling_divergence(trainer: ExperimentTrainer) -> Iterator[None]:
    """What fails on numbers that are none (a decomposition, say) is told as what it is."""
    try:
        yield
    except Exception as error:
        numbers = (part for p in trainer.dist_model.parameters() for part in (p, p.grad))
        if all(part is None or bool(part.isfinite().all()) for part in numbers):
            raise
        key = f"the weights at step {trainer.global_step}"
        raise DivergedError(key=key, rule="are not finite") from error


def note_divergence(trainer: ExperimentTrainer, why: str) -> DivergedError:
    """Leave DIVERGED in the run's folder; the error that tells it."""
    folder = Path(trainer.cfg.save_folder)
    checkpoints = find_checkpoints(folder)
    last = checkpoints[-1].path if checkpoints else None
    if get_global_rank() == 0:
        told = {"step": trainer.global_step, "why": why, "checkpoint": last and last.name}
        replace_file(folder / DIVERGED, json.dumps(told) + "\n", sync=True)
    remedy = f"its last good checkpoint is {last or 'none'}: {ANEW}, for --resume "
    remedy += "--despite-divergence goes on from the checkpoint and into the same numbers"
    return DivergedError(key=folder, rule=f"diverged: {why}", remedy=remedy)


def check_divergence(folder: Path, *, despite: bool) -> None:
    """Raise ConfigError for the folder of a run that has diverged."""
    if not despite and (told := read_if_whole(folder / DIVERGED)):
        rule = f"diverged: {told.get('why')}"
        remedy = f"going on from {told.get('checkpoint')} would meet the same numbers: {ANEW}, or "
        remedy += "pass --despite-divergence"
        raise ConfigError(key=folder, rule=rule, remedy=remedy)
