"""Train one experiment: on one CPU process, one GPU, or many ranks under torchrun.

    olmo-ext train configs/quickstart.yaml -o corpus=runs/corpus
    torchrun --nproc-per-node 8 --no-python olmo-ext train experiment.yaml

A run's folder (train.save_folder) holds experiment.yaml, plan.json, run.json, records.jsonl, the
trained-ledger and the engine's checkpoints (step*-unsharded/). It belongs to one run: a second
start needs resume. SIGTERM and SIGUSR1 end a run after its current step: it saves and leaves
requeue.marker.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import torch.distributed as dist
from olmo.config import CheckpointType

from data_injection.beat import Beat
from data_injection.errors import ConfigError, DivergedError
from data_injection.extensions import remembering
from data_injection.files import check_writable, explain_disk
from data_injection.ledger import LedgerWriter
from data_injection.lock import lock_folder
from eval.checkpoints.checkpoint import find_checkpoints
from eval.checkpoints.sharded import first_line
from eval.records import FILE_NAME
from eval.run import DIVERGED, FAILED, extensions_of
from olmo_ext.build import init_process_group, keep_memory
from olmo_ext.callbacks.divergence import check_divergence, note_divergence
from olmo_ext.checks import check_device
from olmo_ext.config import ExperimentConfig
from olmo_ext.engines.ending import noting_failure, write_marker
from olmo_ext.engines.origin import check_taken_up, find_origin, stock_state
from olmo_ext.engines.ranks import check_one_run, get_global_rank, get_world_size
from olmo_ext.numerics.deterministic import deterministic
from olmo_ext.prepare import build_trainer, prepare
from olmo_ext.run_folder import (
    begin_ledger_at,
    check_folder,
    clear_unfinished,
    find_ledger_start,
    start_ledger,
    take_over,
    write_run_files,
)
from olmo_ext.signals import StopSignals
from olmo_ext.trainer import ENGINE, ExperimentTrainer

log = logging.getLogger(__name__)

ORPHANS = 15.0
"""Seconds to wait for a folder's lock: the loader's workers of a run that was killed hold it until
they notice, up to five seconds later (torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL)."""


def train(
    experiment: ExperimentConfig,
    *,
    resume: bool = False,
    dry_run: bool = False,
    new_ledger: bool = False,
    despite_divergence: bool = False,
    signals: StopSignals | None = None,
    beat: Beat | None = None,
) -> Path:
    """Train an experiment to its end and return the run's folder.

    Args:
        resume: go on from the folder's latest complete checkpoint; start afresh if it has none.
        dry_run: check everything, build the model, take no step and write nothing.
        new_ledger: resume although the ledger has lost what the checkpoint was trained on.
        despite_divergence: resume a run that ended because its numbers were not finite.
        signals: what has taken note of signals so far; by default noting begins here.
        beat: says what is at work while no progress line can; by default nothing.

    Raises:
        ConfigError: before any work starts and before anything is written.
    """
    keep_memory()
    beat = beat or Beat(None)
    beat.then("checking the corpus and compiling the plan")
    with remembering(extensions_of(experiment.train.save_folder)):
        prepared = prepare(experiment)
    identity = prepared.identity
    folder = Path(experiment.train.save_folder)
    with deterministic(experiment), explain_disk(folder), ExitStack() as stack:
        if not gc.get_freeze_count():
            gc.collect()
            gc.freeze()  # the engine searches for garbage around each save: .1 s in imports
            stack.callback(gc.unfreeze)
        device = init_process_group()
        check_device(experiment, device, world_size=get_world_size())
        check_one_run(identity)
        beat.then("preparing the run's folder")
        signals = signals or stack.enter_context(StopSignals())
        ledgers: list[tuple[LedgerWriter, int | None]] = []

        def claim() -> Path | None:
            try:
                return claim_folder()
            except OSError as error:
                key, rule = "train.save_folder", f"cannot be written ({error})"
                remedy = "choose a folder on a disk that takes files"
                raise ConfigError(key=key, value=str(folder), rule=rule, remedy=remedy) from error

        def claim_folder() -> Path | None:
            check_folder(folder, resume=resume, identity=identity)
            check_divergence(folder, despite=despite_divergence)
            place = next(one for one in (folder, *folder.parents) if one.exists())
            for path in (place, place / FILE_NAME):
                check_writable(path, "train.save_folder")
            # Step 0 is another start's: a run that begins with another's checkpoint saves none.
            own = find_checkpoints(folder)
            known = any(one.step for one in own) or experiment.train.load_path is None
            origin = None if known else find_origin(experiment.train, prepared.stream)
            if dry_run:
                # Tried, and gone at once: /proc says that one may write, and takes no folder.
                TemporaryDirectory(dir=place).cleanup()
                return None
            stack.enter_context(lock_folder(folder, patience=ORPHANS))
            # Now that nobody else writes there, look again.
            check_folder(folder, resume=resume, identity=identity)
            take_over(folder, resume=resume and not (own and origin), identity=identity)
            checkpoint = clear_unfinished(folder, identity)
            for name in (DIVERGED, FAILED):
                (folder / name).unlink(missing_ok=True)
            if checkpoint is None and origin is not None:
                checkpoint, start = origin, begin_ledger_at(origin)
            else:
                start = find_ledger_start(folder, checkpoint, new_ledger=new_ledger)
            write_run_files(prepared, resumed_from=checkpoint)
            ledger = start_ledger(prepared, start, checkpoint)
            ledgers.append((stack.enter_context(ledger), start.digest))
            return checkpoint

        checkpoint = _agree(claim)
        if dry_run:
            return folder
        stack.enter_context(noting_failure(folder))
        sizes = f"{prepared.fields['params']:,} parameters"
        beat.then(f"building the model of {sizes}")
        trainer = build_trainer(prepared, device=device, stack=stack)
        trainer.signals, trainer.beat = signals, beat
        if ledgers:
            ((trainer.ledger, trainer.digest_before),) = ledgers
        try:
            _fit(trainer, checkpoint)
        except DivergedError as error:
            raise note_divergence(trainer, str(error)) from error
    return folder


def _fit(trainer: ExperimentTrainer, checkpoint: Path | None) -> None:
    cfg = trainer.cfg
    with trainer:
        if checkpoint is not None:
            log.info("resuming from %s", checkpoint)
            trainer.beat.then(f"reading {checkpoint}")
            _restore(trainer, checkpoint)
        elif not cfg.no_pre_train_checkpoint:
            # Step 0 is a measurement (allenai/OLMo#233), and a full disk shows now, not in a day.
            trainer.beat.then("saving step 0")
            trainer.save_checkpoint(CheckpointType.unsharded)
        for name, callback in trainer.callbacks.items():
            trainer.beat.then(f"{name} at step {trainer.global_step}")
            callback.on_start(trainer)
        trainer.beat.then("the first step")
        if trainer.global_step < trainer.last_step:
            if trainer.signals.on_any_rank(trainer.device):
                # Told to stop while it was still starting: all there is has been saved.
                trainer.stop_reason = trainer.signals.received
            else:
                trainer.fit()
            _leave_marker(trainer)
        for callback in trainer.callbacks.values():
            callback.on_end(trainer)


def _leave_marker(trainer: ExperimentTrainer) -> None:
    """Before anything that may take long (W&B's last upload): the machine may be gone by then."""
    unfinished = trainer.global_step < trainer.last_step
    if unfinished and trainer.stop_reason not in (None, ENGINE) and get_global_rank() == 0:
        folder, reason = Path(trainer.cfg.save_folder), str(trainer.stop_reason)
        write_marker(folder, step=trainer.global_step, num_steps=trainer.last_step, reason=reason)


def _restore(trainer: ExperimentTrainer, checkpoint: Path) -> None:
    foreign = checkpoint.parent.absolute() != Path(trainer.cfg.save_folder).absolute()
    built = [dict(group) for group in trainer.optim.param_groups]
    try:
        with stock_state() if foreign else nullcontext():
            fresh = foreign and trainer.cfg.reset_optimizer_state
            trainer.restore_checkpoint(checkpoint, load_optimizer_state=not fresh)
    except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
        rule = f"cannot be read ({first_line(error)})"
        remedy = "move it away and resume again: the run goes on from the checkpoint before it"
        if foreign:
            remedy = "it is left as it was: begin in another folder, with another checkpoint"
        raise ConfigError(key=str(checkpoint), rule=rule, remedy=remedy) from error
    if foreign:
        check_taken_up(trainer)
        # Loading brought the parent's betas and decay; the rate is the engine's own to reset.
        for group, own in zip(trainer.optim.param_groups, built, strict=True):
            group.update(own | {key: group[key] for key in ("params", "lr", "initial_lr")})


def _agree(decide: Callable[[], Path | None]) -> Path | None:
    """Rank 0's decision on all ranks; its error is raised on all of them."""
    outcome: list[Any] = [None, None]
    if get_global_rank() == 0:
        try:
            outcome[0] = decide()
        except ConfigError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
