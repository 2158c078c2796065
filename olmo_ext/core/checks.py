"""What of an OLMo-core run cannot carry a plan, or cannot be measured exactly: refused by name."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from data_injection.errors import ConfigError
from olmo_ext.core.compat import (
    BatchSizeSchedulerCallback,
    SequenceLengthSchedulerCallback,
    TransformerTrainModule,
)
from olmo_ext.core.loader import Injected

SERVED = ("interference", "task_eval", "retention", "features", "loss_budget")
"""Callbacks that run on both engines. OLMo-core has its own progress line."""

GRADIENTS = ("interference", "loss_budget")
"""Need that a row's first tokens give its loss: nothing in the model may look further."""


def check_run(trainer: Any, callbacks: Collection[str]) -> None:
    """Raise ConfigError for a trainer that would train something else than the plan says."""
    loader, train = trainer.data_loader, trainer.train_module
    if not isinstance(loader, Injected):
        rule = "must carry a plan: call olmo_ext.core.loader.inject before the trainer is built"
        raise ConfigError(key="data_loader", value=type(loader).__name__, rule=rule)
    data: Any = loader
    at = (trainer.epoch - 1) * data.total_batches + data.batches_processed
    if at != trainer.global_step:
        rule = f"must stand at step {trainer.global_step} of the checkpoint: its batches had "
        rule += "another size, or other rows, so that the order cannot be taken up"
        remedy = "start from its weights alone, by load_trainer_state=False"
        raise ConfigError(key="data_loader", value=at, rule=rule, remedy=remedy)
    if unserved := sorted(set(callbacks) - set(SERVED)):
        rule = f"must be of {', '.join(SERVED)} under OLMo-core"
        raise ConfigError(key="callbacks", value=unserved, rule=rule, remedy="leave them out")
    for name, callback in trainer.callbacks.items():
        if isinstance(callback, BatchSizeSchedulerCallback | SequenceLengthSchedulerCallback):
            rule = "must be left out: a plan is compiled for one batch size and one row length"
            kind = type(callback).__name__
            raise ConfigError(key=f"trainer.callbacks.{name}", value=kind, rule=rule)
    if not isinstance(train, TransformerTrainModule):
        rule = "must be TransformerTrainModule: no pipeline parallelism, no OLMoDDP"
        raise ConfigError(key="train_module", value=type(train).__name__, rule=rule)
    for name, used in (
        ("cp", train.cp_enabled),
        ("tp", train.tp_enabled),
        ("ep", train.ep_enabled),
    ):
        if used:
            rule = "must be None: ranks that share a row see parts of it only"
            raise ConfigError(key=f"train_module.{name}_config", value="set", rule=rule)
    for name in sorted({*GRADIENTS} & {*callbacks}):
        _check_exact(train, loader, name)
    if "loss_budget" in callbacks and type(train.optim) is not AdamW:
        rule = "must be AdamW for callbacks.loss_budget, whose split of an update is derived for it"
        kind, remedy = type(train.optim).__name__, "change it or remove callbacks.loss_budget"
        raise ConfigError(key="train_module.optim", value=kind, rule=rule, remedy=remedy)


def _check_exact(train: Any, loader: Any, callback: str) -> None:
    """Raise ConfigError where short rows do not give a task's gradient."""
    model = train.model
    dropout = any(isinstance(one, nn.Dropout) and one.p > 0 for one in model.modules())
    source = getattr(loader, "dataset", None)
    lengths = loader.generate_doc_lengths if source is None else source._generate_doc_lengths
    sharding = "" if train.dp_config is None else str(train.dp_config.name)
    unfit = {
        "model.dropout": (dropout, "a second pass draws another dropout"),
        "model.feed_forward_moe": (model.is_moe, "auxiliary losses are of the whole batch"),
        "train_module.float8_config": (
            getattr(model, "_fp8_enabled", False),
            "its scales are of the whole batch",
        ),
        "data_loader.generate_doc_lengths": (lengths, "short rows have other documents"),
        "train_module.dp_config.name": (
            sharding == "hsdp",
            "its layout was never measured; use fsdp or ddp",
        ),
    }
    for key, (used, why) in unfit.items():
        if used:
            rule = f"must be off for callbacks.{callback}: {why}"
            raise ConfigError(key=key, rule=rule, remedy=f"or remove callbacks.{callback}")


def settings_for_checks(train_module: Any) -> Any:
    """As much of ai2-olmo's TrainConfig as the callbacks' own checks read."""
    width = getattr(train_module.model.blocks["0"], "feed_forward", None)
    hidden = 0 if width is None else 2 * width.w1.weight.shape[0]
    model = SimpleNamespace(
        n_layers=len(train_module.model.blocks),
        d_model=train_module.model.d_model,
        mlp_hidden_size=hidden,
        activation_type="swiglu",
        block_group_size=1,
        alibi=False,
        attention_dropout=0.0,
        residual_dropout=0.0,
        embedding_dropout=0.0,
    )
    data = SimpleNamespace(generate_doc_lengths=False)
    sharded = any(isinstance(one, DTensor) for one in train_module.model.parameters())
    return SimpleNamespace(
        model=model,
        data=data,
        distributed_strategy="fsdp" if sharded else "ddp",
        fsdp=None,
        # What loss_budget asks for; `check_run` has seen to it.
        optimizer=SimpleNamespace(name="adamw", selective_updates=False),
        max_grad_norm_ratio=None,
    )
