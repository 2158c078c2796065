"""From an experiment to its trainer, once: checked and compiled, then built.

    prepared = prepare(load_experiment("experiment.yaml", corpus=False))
    prepared.stream.plan.hash, prepared.fields["params"]
    with ExitStack() as stack:
        trainer = build_trainer(prepared, device=init_process_group(), stack=stack)

`train`, `plan`, sweeps, `submit` and the benchmarks all come through here, so that what one of them
refuses the others refuse too.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from olmo.config import TrainConfig
from olmo.exceptions import OLMoConfigurationError
from olmo.model import OLMo
from olmo.optim import build_optimizer
from olmo.torch_util import barrier, get_fs_local_rank, get_global_rank, get_world_size

from data_injection.corpus.manifest import Manifest, verify_corpus
from data_injection.errors import ConfigError
from eval.records import FILE_NAME as RECORDS_FILE
from eval.records import RecordWriter
from olmo_ext.batch_check import Witness
from olmo_ext.build import Memo, Stream, build_lr, build_model, compile_stream, run_identity, wrap
from olmo_ext.callbacks.base import Callback
from olmo_ext.callbacks.build import build_callbacks
from olmo_ext.compat import open_indices
from olmo_ext.config import ExperimentConfig, complete
from olmo_ext.data import build_host, build_train_dataloader
from olmo_ext.engines.tracking import start_wandb
from olmo_ext.numerics.kernels import computing_as_asked
from olmo_ext.trainer import ExperimentTrainer


@dataclass(frozen=True)
class Prepared:
    """An experiment with everything that follows from it before a device is touched."""

    experiment: ExperimentConfig
    """As asked for, its engine's section filled in from the corpus."""

    manifest: Manifest | None
    """Of the corpus; None for bare token files."""

    stream: Stream
    callbacks: dict[str, Callback]
    """Checked against the plan, in calling order."""

    identity: dict[str, Any]
    """What makes the run that run; see `olmo_ext.build.run_identity`."""

    fields: dict[str, Any]
    """The fields that all records of the run share."""


def prepare(experiment: ExperimentConfig, *, memo: Memo | None = None) -> Prepared:
    """Check an experiment, its corpus and its callbacks, and compile its plan.

    It writes nothing and needs no device and no process group. The experiment's engine section is
    filled in from the corpus.

    Args:
        memo: what experiments prepared one after the other share; see `compile_stream`.

    Raises:
        ConfigError: a value that cannot be trained; names key, value and remedy.
        FileNotFoundError: the corpus is missing.
    """
    memo = Memo() if memo is None else memo
    callbacks = build_callbacks(experiment.callbacks)
    manifest = complete(
        experiment,
        verify=lambda folder: memo.once(("manifest", folder), lambda: verify_corpus(folder)),
    )
    train = experiment.train
    stream = compile_stream(experiment, manifest=manifest, memo=memo)
    for callback in callbacks.values():
        callback.check(stream.plan, train, num_steps=stream.num_steps)
    # Last: it costs most, and the checks before it say better what is wrong.
    parts = repr((train.model, train.optimizer, train.scheduler, stream.num_steps))
    sizes = memo.once(("sizes", parts), lambda: build_on_meta(train, num_steps=stream.num_steps))
    identity = run_identity(experiment, stream)
    fields = _fields(experiment, stream, sizes)
    return Prepared(experiment, manifest, stream, callbacks, identity, fields)


def build_on_meta(train: TrainConfig, *, num_steps: int) -> dict[str, int]:
    """Build model, optimizer and scheduler without memory, and ask for the first and last rate.

    Returns the model's sizes as record fields: params (without the input embedding), params_total.
    Raises ConfigError where the engine or torch refuses: a dry run finds what a run would.
    """
    try:
        model = OLMo(train.model.update_with(init_device="meta"))
        build_optimizer(train, model)
        scheduler = build_lr(train)
        rate = train.optimizer.learning_rate
        for step in (1, num_steps):
            scheduler.get_lr(rate, step, num_steps)
    except (
        OLMoConfigurationError,
        ValueError,
        ArithmeticError,
        TypeError,
        AssertionError,
    ) as error:
        key, remedy = "train.model, optimizer or scheduler", "correct the setting that it names"
        rule = f"cannot be built by the engine ({str(error) or type(error).__name__})"
        raise ConfigError(key=f"train: {key}", rule=rule, remedy=remedy) from error
    return {"params": model.num_params(include_embedding=False), "params_total": model.num_params()}


def _fields(experiment: ExperimentConfig, stream: Stream, sizes: dict[str, int]) -> dict[str, Any]:
    cfg = experiment.train
    return {
        "run": cfg.run_name,
        "rung": experiment.rung,
        **sizes,
        "d_model": cfg.model.d_model,
        "seed": cfg.seed,
        "plan_hash": stream.plan.hash,
        "corpus_hash": stream.identity["corpus_hash"],
        "protocol": experiment.protocol,
        "batch_size": cfg.global_train_batch_size,
        "seq_len": cfg.model.max_sequence_length,
        "learning_rate": cfg.optimizer.learning_rate,
    }


def build_trainer(
    prepared: Prepared, *, device: torch.device, stack: ExitStack
) -> ExperimentTrainer:
    """The trainer of a prepared experiment, on every rank; all must call.

    It makes no claim on the run's folder: the lock, the ledger and the run's files are `train`'s,
    and without a ledger no checkpoint can be saved.

    Args:
        stack: closes the record file.
    """
    experiment, stream = prepared.experiment, prepared.stream
    cfg = _engine_config(experiment.train, stream)
    folder = Path(cfg.save_folder)
    stream.order.folder = folder / "train_data"
    if get_fs_local_rank() == 0:
        stream.order.write(stream.num_positions)
    barrier()
    loader = build_train_dataloader(
        cfg, plan=stream.plan, order=stream.order, num_positions=stream.num_positions
    )
    model = build_model(cfg, device)
    dist_model = wrap(model, cfg, device)
    writer = None
    if get_global_rank() == 0:
        start_wandb(cfg, folder)
        writer = stack.enter_context(RecordWriter(folder / RECORDS_FILE))
    trainer = ExperimentTrainer(
        cfg=cfg,
        epoch=0,
        model=model,
        dist_model=dist_model,
        optim=build_optimizer(cfg, dist_model),
        scheduler=build_lr(cfg),
        train_loader=loader,
        device=device,
        # Without evaluators it would still look for their tokenizer, gpt2 on the hub by default.
        evaluators=cfg.evaluators and import_module("olmo.eval").build_evaluators(cfg, device),
        indices_file=open_indices(cfg, folder),
        plan=stream.plan,
        callbacks=prepared.callbacks,
        run_fields=prepared.fields,
        identity=prepared.identity,
        writer=writer,
        witness=Witness(
            stream.plan,
            stream.order,
            build_host(cfg),
            rank=get_global_rank(),
            world_size=get_world_size(),
        ),
        check_interval=experiment.train.canceled_check_interval,
    )
    return computing_as_asked(trainer, experiment)


def _engine_config(asked: TrainConfig, stream: Stream) -> TrainConfig:
    """A copy with what the engine's own script derives, without its defaults that do harm.

    A copy, since the run's folder keeps what was asked for.
    """
    cfg = copy.deepcopy(asked)
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
    return cfg
