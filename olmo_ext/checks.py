"""Which values of an experiment can be trained: the one table of rules, asked before any work.

    check(experiment)                                  # every number and every rule below
    check_device(experiment, device, world_size=8)     # what depends on the machine that trains

To add a rule: a line in NUMBERS (a range) or in RULES (anything else), and a line in its test.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from olmo.config import TrainConfig

from data_injection.errors import ConfigError
from olmo_ext.numerics.chunked_loss import check_chunked
from olmo_ext.numerics.kernels import check_compiler, check_kernels, has_flash_attention

if TYPE_CHECKING:
    from olmo_ext.config import ExperimentConfig

UNUSED = {
    "dry_run": "pass --dry-run",
    "try_load_latest_save": "pass --resume to go on with a run",
    "reset_trainer_state": "start a new run",
    "restore_dataloader": "start a new run for another stream",
    "force_save_unsharded": "set save_interval_unsharded",
    "epoch": "rely on the step: the stream has no epochs to count",
    "fast_forward_batches": "choose another data seed: a position follows from the step alone",
    "save_overwrite": "move the checkpoint away: none is ever written over",
    "remote_save_folder": "copy the run's folder",
}
"""Settings of the engine's own script that a run of olmo-ext does not read, and what to do."""

NO_LIMIT = ("time_limit", "stop_at", "grad_norm", "norm_ratio", "stopping_factor", "clip_qkv")
"""Ends of keys whose null sets no limit: what people write .inf for."""
MAX_ROWS = 2**32
"""Rows of a run: the engine numbers them in uint32 (olmo/data/iterable_dataset.py)."""


class Range(NamedTuple):
    """What a number must be; a null passes unless the setting is `needed`."""

    low: float
    high: float = math.inf
    open: str = ""
    """Which ends are themselves outside: "low", "high"."""
    needed: bool = False

    def holds(self, value: float) -> bool:
        above = value > self.low if "low" in self.open else value >= self.low
        return above and (value < self.high if "high" in self.open else value <= self.high)

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"must be {'above' if 'low' in self.open else 'at least'} {self.low}"
        ends = "(["["low" not in self.open], ")]"["high" not in self.open]
        return f"must be in {ends[0]}{self.low}, {self.high}{ends[1]}"


COUNT, NOT_NEGATIVE, POSITIVE = Range(1), Range(0), Range(0, open="low")
NEEDED, SHARE = Range(1, needed=True), Range(0, 1, open="high")

NUMBERS: dict[str, Range] = {
    f"{section}.{name}": allowed
    for allowed, section, names in (
        # The generators of Python, NumPy and torch take 32 bits; the row order's takes any natural.
        (Range(0, 2**32 - 1), "train", "seed"),
        # Blocks are built one by one, on meta too: a slip of zeros would never end.
        (Range(1, 1000, needed=True), "model", "n_layers"),
        # Less than one would end in a division by zero or an endless loop.
        (NEEDED, "train", "global_train_batch_size device_train_microbatch_size eval_interval"),
        (NEEDED, "train", "device_eval_batch_size save_interval_unsharded console_log_interval"),
        (NEEDED, "train", "canceled_check_interval"),
        (NEEDED, "model", "d_model n_heads mlp_ratio max_sequence_length vocab_size"),
        (COUNT, "train", "stop_after gen1_gc_interval"),
        (COUNT, "model", "n_kv_heads mlp_hidden_size block_group_size"),
        (COUNT, "wandb", "log_interval"),
        (COUNT, "scheduler", "t_max"),
        (COUNT, "data", "prefetch_factor"),
        (COUNT, "speed_monitor", "window_size"),
        (COUNT, "instance_filter", "repetition_max_period repetition_min_period"),
        (COUNT, "instance_filter", "repetition_max_count"),
        (COUNT, "fsdp", "hybrid_sharding_num_model_replicas"),
        # 0 says: not before the end; at W&B's interval; none, to AdamW.
        (NOT_NEGATIVE, "train", "time_limit auxiliary_loss_multiplier stop_at"),
        (NOT_NEGATIVE, "data", "seed num_workers timeout"),
        (NOT_NEGATIVE, "model", "eos_token_id pad_token_id"),
        (NOT_NEGATIVE, "optimizer", "metrics_log_interval eps learning_rate weight_decay"),
        (NOT_NEGATIVE, "scheduler", "t_warmup alpha_f grad_clip_warmup_steps warmup_min_lr"),
        (POSITIVE, "train", "max_grad_norm max_grad_norm_ratio early_stopping_factor"),
        (POSITIVE, "model", "rope_theta layer_norm_eps clip_qkv alibi_bias_max init_std"),
        (POSITIVE, "model", "emb_init_std init_cutoff_factor"),
        (POSITIVE, "scheduler", "grad_clip_warmup_factor"),
        (POSITIVE, "speed_monitor", "gpu_flops_available"),
        (SHARE, "model", "attention_dropout residual_dropout embedding_dropout"),
        (SHARE, "optimizer", "betas"),
        # -1 keeps all checkpoints, evaluates on all batches.
        (Range(-1), "train", "save_num_checkpoints_to_keep eval_subset_num_batches"),
        (Range(-1), "train", "save_num_unsharded_checkpoints_to_keep"),
    )
    for name in names.split()
}
"""Setting (section and name) -> its range. A number that is not here need only be finite."""


class Rule(NamedTuple):
    """What one setting must be, in the light of the others."""

    key: str
    holds: Callable[[Any, TrainConfig], bool]
    """Of its value and the engine's section."""

    rule: str
    """As the sentence goes on from the key; {train...} stands for other settings."""

    remedy: str = ""


def _given_under(strategy: str) -> Callable[[Any, TrainConfig], bool]:
    return lambda v, t: str(t.distributed_strategy) != strategy or v is not None


def _as_by_default(name: str) -> Callable[[Any, TrainConfig], bool]:
    return lambda v, t: v == getattr(TrainConfig(), name)


RULES = (
    Rule("rung", lambda v, t: v not in ("", "???"), "must name the model size", "for example 20M"),
    Rule("train.run_name", lambda v, t: v is not None, "must be given", "every record carries it"),
    Rule(
        "train.data.paths", lambda v, t: bool(v), "or corpus must be given",
        "`olmo-ext prepare` makes a corpus",
    ),
    Rule(
        "train.data.datasets", lambda v, t: not v, "must be unset", "list files in train.data.paths"
    ),
    Rule(
        "train.data.drop_last", lambda v, t: v, "must be true",
        "the stream is made of whole batches, and the engine's partial last batch has no step of "
        "its own",
    ),
    Rule(
        "train.max_duration", lambda v, t: num_steps(t) >= 1, "must be at least 1 step",
        "give steps (2400) or tokens ('210e9T')",
    ),
    Rule(
        "train.max_duration",
        lambda v, t: num_steps(t) * t.global_train_batch_size <= MAX_ROWS,
        f"must be at most {MAX_ROWS} rows, which the engine numbers in 32 bits",
        "train fewer steps or longer rows",
    ),
    Rule(
        "train.scheduler.warmup_min_lr",
        lambda v, t: v is None or v < t.optimizer.learning_rate,
        "must be below train.optimizer.learning_rate", "null takes a tenth of it",
    ),
    *(
        Rule(
            f"train.{name}", _given_under(name), f"must be given for distributed_strategy {name}",
            f"write `{name}: {{{{}}}}` for the engine's defaults",
        )
        for name in ("ddp", "fsdp")
    ),
    Rule(
        "train.data.timeout", lambda v, t: t.data.num_workers or not v,
        "needs train.data.num_workers", "set it to 0",
    ),
    Rule(
        "train.reset_optimizer_state", lambda v, t: not v or t.load_path is not None,
        "needs train.load_path, a checkpoint to begin with",
    ),
    *(
        Rule(
            f"train.{name}", _as_by_default(name), "has no effect here", f"remove it and {remedy}"
        )
        for name, remedy in UNUSED.items()
    ),
    # Measured with torch 2.13, 2 ranks: files of torch_legacy are refused by torch.load, torch_new
    # cannot build its reader, local crashes while saving, and olmo_core restores without an error
    # but goes on along another trajectory. Unsharded files restore bit for bit.
    *(
        Rule(
            f"train.{name}", lambda v, t: v is None,
            "must be null: no sharded checkpoint of ai2-olmo 0.6.0 restores exactly under this "
            "torch",
            "set train.save_interval_unsharded",
        )
        for name in ("save_interval", "save_interval_ephemeral")
    ),
    Rule(
        "train.model.n_heads", lambda v, t: t.model.d_model % v == 0,
        "must divide d_model={train.model.d_model}",
    ),
    Rule(
        "train.model.d_model",
        lambda v, t: not t.model.rope or v // t.model.n_heads % 2 == 0,
        "must be an even multiple of n_heads={train.model.n_heads}, since RoPE turns pairs",
    ),
    Rule(
        "train.model.embedding_size", lambda v, t: v is None or v >= t.model.vocab_size,
        "must be at least vocab_size {train.model.vocab_size} or null",
    ),
    Rule(
        "train.model.n_kv_heads", lambda v, t: t.model.n_heads % (v or t.model.n_heads) == 0,
        "must divide n_heads {train.model.n_heads}",
    ),
    # amp_fp16 would need a gradient scaler.
    Rule("train.precision", lambda v, t: v in ("fp32", "amp_bf16"), "must be fp32 or amp_bf16"),
    Rule(
        "train.data.generate_doc_lengths",
        lambda v, t: not v or find_spec("flash_attn") is not None,
        "needs flash-attn (the engine asserts it, model.py:543)",
        "install the extra `flash` on a CUDA machine or set it to false",
    ),
    Rule(
        "train.data.memmap_dtype",
        lambda v, t: t.data.effective_memmap_dtype in (np.uint8, np.uint16, np.uint32, np.uint64),
        "must be an unsigned integer type",
    ),
)  # fmt: skip


def check(experiment: ExperimentConfig) -> None:
    """Raise ConfigError (key, value, rule, remedy) for the first value that cannot be trained."""
    for key, number in numbers(experiment.train, "train"):
        _check_number(key, number)
    for key, holds, rule, remedy in RULES:
        value: Any = experiment
        for name in key.split("."):
            value = getattr(value, name)
        if not holds(value, experiment.train):
            said = rule.format(train=experiment.train)
            raise ConfigError(key=key, value=value, rule=said, remedy=remedy.format())
    check_chunked(experiment)
    check_kernels(experiment)


def numbers(section: Any, key: str) -> Iterator[tuple[str, float | None]]:
    """Every number of a section and of those in it, with its dotted key; nulls as None."""
    if is_dataclass(section):
        for one in fields(section):
            yield from numbers(getattr(section, one.name), f"{key}.{one.name}")
    elif isinstance(section, list | tuple):
        for index, value in enumerate(section):
            yield from numbers(value, f"{key}[{index}]")
    elif section is None or (isinstance(section, int | float) and not isinstance(section, bool)):
        yield key, section


def _check_number(key: str, value: float | None) -> None:
    # An evaluator's data have the rules of the run's.
    parts = re.sub(r"\[\d+\]", "", key).split(".")
    allowed = NUMBERS.get(".".join(parts[-2:]))
    if value is None:
        if allowed is not None and allowed.needed:
            raise ConfigError(key=key, value=value, rule=str(allowed))
    elif not math.isfinite(value):
        no_limit = "null sets no limit" if key.endswith(NO_LIMIT) else ""
        raise ConfigError(key=key, value=value, rule="must be a finite number", remedy=no_limit)
    elif allowed is not None and not allowed.holds(value):
        raise ConfigError(key=key, value=value, rule=str(allowed))


def num_steps(train: TrainConfig) -> int:
    """Optimizer steps of the whole run. Raises ConfigError for a duration in epochs."""
    value = train.max_duration
    try:
        number = float((text := str(value).strip()).removesuffix("T"))
    except ValueError:
        rule = "must be steps (2400) or tokens ('210e9T')"
        remedy = "epochs are not supported because the stream has no end"
        raise ConfigError(key="train.max_duration", value=value, rule=rule, remedy=remedy) from None
    if not math.isfinite(number):
        raise ConfigError(key="train.max_duration", value=value, rule="must be a finite number")
    if text.endswith("T"):
        tokens = train.global_train_batch_size * train.model.max_sequence_length
        return math.ceil(int(number) / tokens)
    return int(number)


def check_device(experiment: ExperimentConfig, device: torch.device, *, world_size: int) -> None:
    """Raise ConfigError for what this machine cannot do, or so many ranks."""
    train = experiment.train
    if train.precision != "fp32" and device.type == "cpu" and not experiment.bf16_on_cpu:
        rule = "needs a CUDA device; without one the engine would silently train in fp32"
        remedy = "use a CUDA machine, set train.precision=fp32, or explore by bf16_on_cpu=true"
        value = str(train.precision)
        raise ConfigError(key="train.precision", value=value, rule=rule, remedy=remedy)
    if train.precision == "fp32" and train.model.flash_attention and has_flash_attention():
        rule = "must be false in train.precision fp32, in which flash-attn cannot compute"
        remedy = "set train.model.flash_attention=false"
        raise ConfigError(key="train.model.flash_attention", value=True, rule=rule, remedy=remedy)
    if (batch := train.global_train_batch_size) % world_size:
        rule = f"must be a multiple of the world size {world_size}"
        remedy = "use a number of ranks that divides it"
        key = "train.global_train_batch_size"
        raise ConfigError(key=key, value=batch, rule=rule, remedy=remedy)
    if train.distributed_strategy is None:
        rule = "must be ddp or fsdp, also on one device: the engine saves no weights otherwise"
        raise ConfigError(key="train.distributed_strategy", value=None, rule=rule)
    if train.compile is not None:
        check_compiler(train.compile.asdict(), device)
