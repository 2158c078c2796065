"""ExperimentTrainer: the stock trainer with hooks. It calls callbacks, keeps records, adds nothing.

Only the engine's seams are overridden and each calls super(); `fit` is the engine's own.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from olmo.checkpoint import Checkpointer
from olmo.config import CheckpointType

from data_injection.beat import Beat
from data_injection.errors import DivergedError
from data_injection.files import sync_path
from data_injection.ledger import LedgerWriter
from data_injection.plan import InjectionPlan
from eval.checkpoints.checkpoint import IDENTITY_FILE, write_checksums
from eval.records import RecordWriter
from olmo_ext.batch_check import Witness
from olmo_ext.callbacks.base import Callback
from olmo_ext.callbacks.divergence import check_logits, is_of_loss, telling_divergence
from olmo_ext.callbacks.state import plain_state
from olmo_ext.compat import (
    Trainer,
    atomic_links,
    checkpointer_for,
    cpu_shield,
    finish_wandb,
    plain_trainer_state,
    stock_trainer_state,
    sync_checkpoint,
)
from olmo_ext.engines.host import write_record
from olmo_ext.engines.ranks import get_global_rank
from olmo_ext.engines.stock import StockEngine
from olmo_ext.engines.tracking import mirror
from olmo_ext.signals import StopSignals

log = logging.getLogger(__name__)

NOT_FINITE = "SIGFPE"
"""Stands among the signals for a loss that is no number: the ranks agree on it by the same sum."""

TIME_LIMIT = "train.time_limit"

ENGINE = "the engine (early stopping or a W&B tag)"


@dataclass
class ExperimentTrainer(Trainer):
    """The engine's trainer for one experiment; build it with `olmo_ext.train`."""

    plan: InjectionPlan = None  # type: ignore[assignment]
    """The injection plan; `plan.at(global_step - 1)` is the step being trained."""

    callbacks: dict[str, Callback] = field(default_factory=dict)
    """Callbacks by name, in calling order."""

    run_fields: dict[str, Any] = field(default_factory=dict)
    """Fields that all records of the run share."""

    identity: dict[str, Any] = field(default_factory=dict)
    """Written into every checkpoint; see `olmo_ext.build.Stream.identity`."""

    writer: RecordWriter | None = None
    """Rank 0's record file."""

    ledger: LedgerWriter | None = None
    """Rank 0's segment of the trained-ledger."""

    witness: Witness = None  # type: ignore[assignment]
    """Sees every batch of this rank before it is trained on."""

    digest_before: int | None = 0
    """The stream digest of the steps before this start of the run; None if it is not known."""

    signals: StopSignals = field(default_factory=StopSignals)

    beat: Beat = field(default_factory=lambda: Beat(None))
    """Says what is at work until the first step is taken, and from then on which callback or
    checkpoint it is that keeps the progress line waiting."""

    seen_rows: torch.Tensor | None = None
    """The first rows of the last batch, which tell whether the model still has finite logits."""

    check_interval: int = 50
    """Steps between two looks at the engine's own reasons to stop (time limit, W&B tag); signals
    are looked at after every step."""

    stop_reason: str | None = None
    """What ended the run early: a signal's name, TIME_LIMIT or ENGINE."""

    @property
    def last_step(self) -> int:
        """The step after which this process stops."""
        return min(self.max_steps, self.cfg.stop_at or self.max_steps)

    # -- the engine's seams ----------------------------------------------------------------------

    def train_batch(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
        for callback in self.callbacks.values():
            callback.on_batch(self, batch)
        with cpu_shield():
            losses = super().train_batch(batch)
        self.seen_rows = batch["input_ids"][: self.cfg.device_train_microbatch_size]
        with telling_divergence(self):
            for name, callback in self.callbacks.items():
                with self.beat.during(f"{name} at step {self.global_step}"):
                    callback.on_gradients(self, batch)
        return losses

    def train_step(
        self, batch: dict[str, Any], reduce_global_loss: bool = True
    ) -> dict[str, float]:
        rows = self.witness.see(self.global_step - 1, batch)
        wanted = [callback.wants_global_loss(self) for callback in self.callbacks.values()]
        try:
            metrics = super().train_step(
                batch, reduce_global_loss=reduce_global_loss or any(wanted)
            )
        except (ValueError, OverflowError) as error:
            if not is_of_loss(error):
                raise
            # After the optimizer's step. Told at `check_if_cancelled`, on all ranks at once: a rank
            # that left alone would leave the others waiting for it. The reduced loss is rank 0's
            # alone, so the others are in what the engine does next, which may be a reduction too.
            self.signals.received = self.signals.received or NOT_FINITE
            if self.should_log_optim_metrics_this_step():
                self.optim.get_post_step_metrics(
                    self.dist_model, process_group=self.dist_model.process_group
                )
            metrics = {"train/CrossEntropyLoss": math.nan}
        self.beat.step()
        # Only now: the optimizer has taken the step, on every rank.
        if self.ledger is not None:
            self.ledger.append(self.global_step - 1, rows)
        with telling_divergence(self):
            for name, callback in self.callbacks.items():
                with self.beat.during(f"{name} at step {self.global_step}"):
                    callback.on_step(self, metrics)
        return metrics

    def eval(self) -> dict[str, Any]:
        with cpu_shield():
            return super().eval()

    def _save_checkpoint(
        self, checkpointer: Checkpointer, checkpoint_type: CheckpointType
    ) -> tuple[Any, Any]:
        if self.writer is not None:
            self.writer.sync()
        digest = self.witness.digest(self.device)
        ours = checkpointer_for(
            checkpointer, self.dist_model, lambda folder: self._finish_files(folder, digest)
        )
        try:
            with atomic_links():
                paths = super()._save_checkpoint(ours, checkpoint_type)
        except BaseException:
            self._remove_unfinished()
            raise
        if get_global_rank() == 0:
            sync_path(Path(self.cfg.save_folder))  # the renamed entry itself
        for callback in self.callbacks.values():
            callback.on_checkpoint(self)
        return paths

    def save_checkpoint(
        self, checkpoint_type: CheckpointType = CheckpointType.unsharded
    ) -> tuple[Any, Any]:
        check_logits(self)
        # When an FSDP run is cancelled `fit` asks for a sharded one and saves no other.
        with self.beat.during(f"saving step {self.global_step}"):
            return super().save_checkpoint(CheckpointType.unsharded)

    def check_if_cancelled(self) -> tuple[bool, int]:
        """Called after every step. A run that stops saves this step and takes no other: the engine
        would train ten more after its last checkpoint, which would be lost."""
        if self.signals.on_any_rank(self.device):
            if self.signals.received == NOT_FINITE:
                key = f"the loss of step {self.global_step}"
                raise DivergedError(key=key, rule="is not a number")
            self.stop_reason = self.signals.received
        elif self.global_step % self.check_interval == 0 and super().check_if_cancelled()[0]:
            limit = self.cfg.time_limit
            late = limit is not None and time.time() - self._start_time >= limit
            self.stop_reason = TIME_LIMIT if late else ENGINE
        if self.stop_reason is not None:
            log.warning("%s: saving step %d", self.stop_reason, self.global_step)
        return self.stop_reason is not None, 0

    def remove_unsharded_checkpoint(self, idx: int = 0) -> None:
        """As the engine, but a kill in its middle leaves nothing that looks like a checkpoint."""
        path = self.unsharded_checkpoints[idx]
        if get_global_rank() == 0 and path.is_dir():
            doomed = path.with_name(f"{path.name}-tmp")
            path.rename(doomed)
            shutil.rmtree(doomed)
        super().remove_unsharded_checkpoint(idx)

    def _finish_files(self, folder: Path, digest: int) -> None:
        """What is ours in a checkpoint, on rank 0, before it is renamed into place."""
        assert self.ledger is not None
        # Sealed first: a checkpoint never knows more than the ledger that is on the disk.
        place = asdict(self.ledger.seal(self.global_step))
        if self.digest_before is not None:
            place["stream_digest"] = f"{(self.digest_before + digest) % 2**64:016x}"
        identity = self.identity | {"step": self.global_step, "ledger": place}
        (folder / IDENTITY_FILE).write_text(json.dumps(identity, indent=1))
        write_checksums(folder)
        sync_checkpoint(folder)

    def _remove_unfinished(self) -> None:
        """Free what a failed save has taken: it may be what fills the disk."""
        if get_global_rank() == 0:
            for path in Path(self.cfg.save_folder).glob(f"step{self.global_step}-*-tmp"):
                shutil.rmtree(path, ignore_errors=True)

    def trainer_state_dict(self) -> dict[str, Any]:
        with cpu_shield():
            state = plain_trainer_state(super().trainer_state_dict())
        state["callbacks"] = {
            name: plain_state(callback.state_dict(), key=f"callbacks.{name}.state_dict()")
            for name, callback in self.callbacks.items()
        }
        return state

    def load_trainer_state_dict(self, state_dict: dict[str, Any]) -> None:
        with cpu_shield():
            super().load_trainer_state_dict(stock_trainer_state(state_dict))
        for name, state in state_dict.get("callbacks", {}).items():
            if name in self.callbacks:
                self.callbacks[name].load_state_dict(state)

    def close(self, exit_code: int = 0) -> None:
        finish_wandb(exit_code)
        super().close(exit_code)

    # -- what callbacks use: olmo_ext/engines/host.py --------------------------------------------

    @cached_property
    def engine(self) -> StockEngine:
        return StockEngine(self)

    def measuring(self) -> AbstractContextManager[None]:
        return self.engine.measuring()

    def record(self, callback: str, **measured: Any) -> None:
        """Write one measurement at the current step; mirrored to W&B. Only rank 0 writes."""
        row = write_record(self, callback, tokens=self.global_train_tokens_seen, **measured)
        if row is not None:
            mirror(callback, row)
