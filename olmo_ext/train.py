"""Train one experiment: on one CPU process, one GPU, or many ranks under torchrun.

    olmo-ext train configs/quickstart.yaml -o corpus=runs/corpus
    torchrun --nproc-per-node 8 --no-python olmo-ext train experiment.yaml

A run's folder (train.save_folder) holds experiment.yaml, plan.json, run.json, records.jsonl, the
trained-ledger and the engine's checkpoints (step*-unsharded/). It belongs to one run: a second
start needs resume. SIGTERM and SIGUSR1 end a run after its current step: it saves and leaves
requeue.marker.
"""

from __future__ import annotations

import copy
import gzip
import logging
import os
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from netrc import NetrcParseError, netrc
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TextIO
from urllib.parse import urlparse

import torch
import torch.distributed as dist
import wandb
from olmo.config import CheckpointType, TrainConfig
from olmo.eval import build_evaluators
from olmo.model import OLMo
from olmo.optim import build_optimizer, build_scheduler
from olmo.torch_util import barrier, get_fs_local_rank, get_global_rank, get_world_size

from data_injection.config import ConfigError
from data_injection.ledger import LedgerWriter
from eval.records import FILE_NAME as RECORDS_FILE
from eval.records import RecordWriter, lock_folder, replace_file
from olmo_ext.batch_check import Witness
from olmo_ext.build import (
    Stream,
    build_model,
    compile_stream,
    init_process_group,
    run_identity,
    wrap,
)
from olmo_ext.callbacks.build import Callback, build_callbacks
from olmo_ext.compat import outlive_wandb
from olmo_ext.config import ExperimentConfig, check_device, complete
from olmo_ext.data import build_host, build_train_dataloader
from olmo_ext.run_folder import (
    check_folder,
    clear_unfinished,
    explain_disk,
    find_ledger_start,
    start_ledger,
    write_marker,
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
    signals: StopSignals | None = None,
) -> Path:
    """Train an experiment to its end and return the run's folder.

    Args:
        resume: go on from the folder's latest complete checkpoint; start afresh if it has none.
        dry_run: check everything, build the model, take no step and write nothing.
        new_ledger: resume although the ledger has lost what the checkpoint was trained on.
        signals: what has taken note of signals so far; by default noting begins here.

    Raises:
        ConfigError: before any work starts and before anything is written.
    """
    cfg = experiment.train
    manifest = complete(experiment)
    callbacks = build_callbacks(experiment.callbacks)
    device = init_process_group()
    check_device(cfg, world_size=get_world_size())
    stream = compile_stream(experiment, manifest=manifest)
    for callback in callbacks.values():
        callback.check(stream.plan, cfg, num_steps=stream.num_steps)
    identity = run_identity(experiment, stream)
    fields = run_fields(experiment, stream)  # builds the model on no device: a bad shape shows now
    asked = copy.deepcopy(experiment)  # the run's folder keeps what was asked for, not derived
    check_interval = cfg.canceled_check_interval
    _fill_engine_config(cfg, stream)
    folder = Path(cfg.save_folder)
    with explain_disk(folder), ExitStack() as stack:
        signals = signals or stack.enter_context(StopSignals())
        ledgers: list[tuple[LedgerWriter, int | None]] = []

        def claim() -> Path | None:
            try:
                return claim_folder()
            except OSError as error:
                raise ConfigError(
                    f"train.save_folder {folder} cannot be written ({error}); choose a folder on a "
                    "disk that takes files"
                ) from error

        def claim_folder() -> Path | None:
            check_folder(folder, resume=resume, identity=identity)
            if dry_run:
                return None
            stack.enter_context(lock_folder(folder, patience=ORPHANS))
            # Now that nobody else writes there, look again.
            check_folder(folder, resume=resume, identity=identity)
            checkpoint = clear_unfinished(folder, identity)
            header = {
                "run": cfg.run_name,
                "plan_hash": stream.plan.hash,
                "tasks": [task.name for task in stream.plan.tasks],
                "world_size": get_world_size(),
            }
            start = find_ledger_start(folder, checkpoint, new_ledger=new_ledger)
            write_run_files(asked, stream, identity, fields, manifest, resumed_from=checkpoint)
            ledger = start_ledger(folder, start, checkpoint, header=header)
            ledgers.append((stack.enter_context(ledger), start.digest))
            return checkpoint

        checkpoint = _agree(claim)
        if dry_run:
            return folder
        stream.order.folder = folder / "train_data"
        if get_fs_local_rank() == 0:
            stream.order.write(stream.num_positions)
        barrier()
        trainer = _build_trainer(experiment, stream, callbacks, device, identity, fields, stack)
        trainer.signals = signals
        trainer.check_interval = check_interval
        if ledgers:
            ((trainer.ledger, trainer.digest_before),) = ledgers
        _fit(trainer, checkpoint)
    return folder


def _fit(trainer: ExperimentTrainer, checkpoint: Path | None) -> None:
    cfg = trainer.cfg
    with trainer:
        if checkpoint is not None:
            log.info("resuming from %s", checkpoint)
            _restore(trainer, checkpoint)
        elif not cfg.no_pre_train_checkpoint:
            # Step 0 is a measurement (allenai/OLMo#233), and a full disk shows now, not in a day.
            trainer.save_checkpoint(CheckpointType.unsharded)
        for callback in trainer.callbacks.values():
            callback.on_start(trainer)
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
        write_marker(
            Path(trainer.cfg.save_folder),
            step=trainer.global_step,
            num_steps=trainer.last_step,
            reason=str(trainer.stop_reason),
        )


def _restore(trainer: ExperimentTrainer, checkpoint: Path) -> None:
    try:
        trainer.restore_checkpoint(checkpoint)
    except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
        raise ConfigError(
            f"{checkpoint} cannot be read ({str(error).splitlines()[0]}); move it away and resume "
            "again: the run goes on from the checkpoint before it"
        ) from error


def _fill_engine_config(cfg: TrainConfig, stream: Stream) -> None:
    """What the engine's own script derives, and the engine's defaults that do harm."""
    cfg.device_train_batch_size = cfg.global_train_batch_size // get_world_size()
    cfg.device_train_grad_accum = max(
        cfg.device_train_batch_size // cfg.device_train_microbatch_size, 1
    )
    cfg.max_duration = stream.num_steps
    # Without it the engine trains ten steps more than asked (train.py:1104).
    cfg.stop_at = min(cfg.stop_at or stream.num_steps, stream.num_steps)
    # Signals are looked at after every step; the engine's reasons at the interval asked for.
    cfg.canceled_check_interval = 1
    cfg.extra_steps_after_cancel = 0


def _build_trainer(
    experiment: ExperimentConfig,
    stream: Stream,
    callbacks: dict[str, Callback],
    device: torch.device,
    identity: dict[str, Any],
    fields: dict[str, Any],
    stack: ExitStack,
) -> ExperimentTrainer:
    cfg, folder = experiment.train, Path(experiment.train.save_folder)
    loader = build_train_dataloader(
        cfg, plan=stream.plan, order=stream.order, num_positions=stream.num_positions
    )
    model = build_model(cfg, device)
    dist_model = wrap(model, cfg, device)
    writer = None
    if get_global_rank() == 0:
        _start_wandb(cfg, folder)
        writer = stack.enter_context(RecordWriter(folder / RECORDS_FILE))
    return ExperimentTrainer(
        cfg=cfg,
        epoch=0,
        model=model,
        dist_model=dist_model,
        optim=build_optimizer(cfg, dist_model),
        scheduler=build_scheduler(cfg),
        train_loader=loader,
        device=device,
        # Without evaluators it would still look for their tokenizer, gpt2 on the hub by default.
        evaluators=build_evaluators(cfg, device) if cfg.evaluators else [],
        indices_file=_indices_file(cfg, folder),
        plan=stream.plan,
        callbacks=callbacks,
        run_fields=fields,
        identity=identity,
        writer=writer,
        witness=Witness(
            stream.plan,
            stream.order,
            build_host(cfg),
            rank=get_global_rank(),
            world_size=get_world_size(),
        ),
    )


def run_fields(experiment: ExperimentConfig, stream: Stream) -> dict[str, Any]:
    """The fields that all records of the run share."""
    cfg = experiment.train
    model = OLMo(cfg.model.update_with(init_device="meta"))
    return {
        "run": cfg.run_name,
        "rung": experiment.rung,
        "params": model.num_params(include_embedding=False),
        "params_total": model.num_params(),
        "d_model": cfg.model.d_model,
        "seed": cfg.seed,
        "plan_hash": stream.plan.hash,
        "corpus_hash": stream.identity["corpus_hash"],
        "protocol": experiment.protocol,
        "batch_size": cfg.global_train_batch_size,
        "seq_len": cfg.model.max_sequence_length,
        "learning_rate": cfg.optimizer.learning_rate,
    }


def _indices_file(cfg: TrainConfig, folder: Path) -> TextIO | None:
    """The engine's log of rows per step, appended to where its own script would truncate it."""
    if not cfg.save_data_indices:
        return None
    path = folder / "data-indices" / f"rank{get_global_rank()}.tsv.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    return gzip.open(path, "at")


def _agree(decide: Callable[[], Path | None]) -> Path | None:
    """Rank 0's decision on all ranks; its error is raised on all of them."""
    outcome: list[Any] = [None, None]
    if get_global_rank() == 0:
        try:
            outcome[0] = decide()
        except ConfigError as error:
            outcome[1] = str(error)
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ConfigError(outcome[1])
    return outcome[0]


def has_wandb_key() -> bool:
    """Whether W&B can log in: a key in the environment, or one left in netrc by `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, NetrcParseError):
        return False


def _start_wandb(cfg: TrainConfig, folder: Path) -> None:
    """Join W&B if the config asks for it, offline without an API key; resumes its own run."""
    if cfg.wandb is None:
        return
    mode = os.environ.get("WANDB_MODE")
    if mode is None and not has_wandb_key():
        mode = "offline"
    id_file = folder / "wandb_id"
    # Renamed into place: after a kill an empty one would make the next start another W&B run.
    if not id_file.exists() or not id_file.read_text():
        replace_file(id_file, secrets.token_hex(4).encode())
    wandb.init(
        dir=folder,
        id=id_file.read_text(),
        resume="allow",
        mode=mode,  # type: ignore[arg-type]
        project=cfg.wandb.project,
        entity=cfg.wandb.entity,
        group=cfg.wandb.group,
        name=cfg.wandb.name or cfg.run_name,
        tags=cfg.wandb.tags,
        config=cfg.asdict(exclude=["wandb"]),
    )
    outlive_wandb()
