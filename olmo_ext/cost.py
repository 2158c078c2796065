"""What a run costs: floating-point operations, memory a GPU, hours.

    cost = run_cost(experiment.train, num_steps=50_000, gpus=8)
    cost.flops, cost.memory.total, cost.hours

Nothing is allocated: the parameters are counted on a model on the meta device. Memory and hours are
estimates, reckoned as in configs/olmo_4M_to_4B/README.md; on one GPU three rungs needed
6 to 16% less (docs/findings/gpu).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from olmo.config import DistributedStrategy, TrainConfig
from olmo.model import OLMo
from torch.distributed.fsdp import ShardingStrategy

from data_injection.errors import ConfigError

if TYPE_CHECKING:
    from olmo_ext.config import ExperimentConfig

PEAK_TFLOPS = 989.0
"""H100 SXM, dense bf16: half of the 1,979 "with sparsity" of NVIDIA's data sheet."""

MFU = 0.4
"""Share of the peak that goes into the model: what runs of 1B and more reach with care. Small
models reach far less, since their operations are too small to fill a GPU."""

GPUS_A_NODE = 8

OPTIMIZER_BYTES = {"adamw": 8, "lionw": 4}
"""Bytes a parameter: two moments in fp32, or one."""

LOGIT_BYTES = 12
"""Bytes a logit at the peak: fp32 log-probabilities, their gradient, the gradient of the logits."""

BLOCK_BYTES = {"fp32": (50, 8), "amp_bf16": (34, 4)}
"""Bytes a token, layer and unit of d_model that a block keeps for its backward pass: the first
number and the second times mlp_ratio. Counted with saved_tensors_hooks on SwiGLU blocks without
dropout whose attention never holds a matrix of seq_len x seq_len (flash or SDPA)."""


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU, at the peak of a step and, in `start`, before the first one."""

    weights: float
    gradients: float
    optimizer: float
    working_copies: float
    """DDP: its buckets for gradients, and the bf16 copy of the weights. FSDP: see `gathered`."""

    activations: float
    """Estimate: micro-batch tokens x layers x d_model x `BLOCK_BYTES`."""

    logits: float
    """Estimate: micro-batch tokens x embedding_size x `LOGIT_BYTES`."""

    start: float
    """The whole model in fp32, which each rank builds, and under FSDP a second copy of the unit
    that is being flattened. It is gone before a step needs anything."""

    @property
    def state(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.working_copies

    @property
    def step(self) -> float:
        return self.state + self.activations + self.logits

    @property
    def total(self) -> float:
        """The larger of two peaks that are never at once."""
        return max(self.start, self.step)


@dataclass(frozen=True)
class Cost:
    """One run on `gpus` GPUs."""

    num_params: int
    """Without the input embedding, as the engine counts in its forward operations."""

    num_params_total: int
    num_tokens: int
    flops: float
    """Of the whole run, as the engine counts them: attention included, and 4 a parameter with the
    input embedding in the backward pass, which overstates models that are mostly embedding."""

    flops_6nd: float
    """6 x `num_params` x `num_tokens`."""

    gpus: int
    peak_tflops: float
    mfu: float
    microbatch: int
    """Rows a GPU computes at once."""

    memory: Memory

    @property
    def hours(self) -> float:
        return self.flops / (self.gpus * self.peak_tflops * 1e12 * self.mfu) / 3600

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.gpus


def check_throughput(*, peak_tflops: float, mfu: float) -> None:
    """Raise ConfigError for a peak or a share of it that no GPU has."""
    if not 0 < mfu <= 1:
        usual = "0.4 is usual at 1B and above"
        raise ConfigError(key="--mfu", value=mfu, rule="must be in (0, 1]", remedy=usual)
    if not 0 < peak_tflops < float("inf"):
        rule = "must be positive and finite"
        remedy = "an H100 has 989"
        raise ConfigError(key="--peak-tflops", value=peak_tflops, rule=rule, remedy=remedy)


def run_cost(
    train: TrainConfig,
    *,
    num_steps: int,
    gpus: int = 1,
    peak_tflops: float = PEAK_TFLOPS,
    mfu: float = MFU,
) -> Cost:
    """Reckon a run of `num_steps` steps; the measures of the callbacks are not in it.

    Args:
        gpus: world size, a divisor of the global batch.
        peak_tflops: of one GPU, in 1e12 operations a second.
        mfu: model FLOPs utilisation, in (0, 1].

    Raises:
        ConfigError: an option out of its range.
    """
    batch = train.global_train_batch_size
    if gpus < 1 or batch % gpus:
        rule = f"must divide train.global_train_batch_size {batch}"
        raise ConfigError(key="--gpus", value=gpus, rule=rule, remedy="choose a divisor")
    check_throughput(peak_tflops=peak_tflops, mfu=mfu)
    model = OLMo(train.model.update_with(init_device="meta"))
    tokens = num_steps * batch * train.model.max_sequence_length
    microbatch = min(train.device_train_microbatch_size, batch // gpus)
    num_params = model.num_params(include_embedding=False)
    return Cost(
        num_params=num_params,
        num_params_total=model.num_params(),
        num_tokens=tokens,
        flops=float((model.num_fwd_flops + model.num_bck_flops) * tokens),
        flops_6nd=float(6 * num_params * tokens),
        gpus=gpus, peak_tflops=peak_tflops, mfu=mfu, microbatch=microbatch,
        memory=run_memory(train, model, gpus=gpus, microbatch=microbatch),
    )  # fmt: skip


def run_memory(train: TrainConfig, built: OLMo, *, gpus: int, microbatch: int) -> Memory:
    """Bytes a GPU needs for a model (its parameters are counted) and one micro-batch of rows."""
    model, shards = train.model, num_shards(train, gpus=gpus)
    num_params, mixed = built.num_params(), train.precision == "amp_bf16"
    if train.distributed_strategy == DistributedStrategy.fsdp:
        copies, flattened = gathered(train, built), max(wrapped_units(train, built))
    else:
        copies, flattened = (4 + 2 * mixed) * num_params, 0
    fixed, per_ratio = BLOCK_BYTES["amp_bf16" if mixed else "fp32"]
    ratio = model.mlp_hidden_size / model.d_model if model.mlp_hidden_size else model.mlp_ratio
    tokens = microbatch * model.max_sequence_length
    return Memory(
        weights=4 * num_params / shards,
        gradients=4 * num_params / shards,
        optimizer=OPTIMIZER_BYTES[str(train.optimizer.name)] * num_params / shards,
        working_copies=float(copies),
        activations=tokens * model.n_layers * model.d_model * (fixed + per_ratio * ratio),
        logits=float(tokens * (model.embedding_size or model.vocab_size) * LOGIT_BYTES),
        start=float(4 * (num_params + flattened)),
    )


ATTENTION_COPIES = 2
"""Of a layer at work, in fp32, beside the one that each layer keeps: counted on torch's plain
attention, which CUDA takes for fp32 (flash cannot, the engine has the memory-efficient one off)."""


def extra_bytes(experiment: ExperimentConfig, cost: Cost) -> dict[str, float]:
    """Bytes a GPU needs beside `Memory.step`, by the setting that asks for them; by arithmetic.

    The callbacks' are copies of the measured parameters, as their files count them.
    """
    train, tasks = experiment.train, len(experiment.injection.tasks)
    model, found = train.model, {}
    if train.precision == "fp32":
        matrix = 4.0 * cost.microbatch * model.n_heads * model.max_sequence_length**2
        found["train.precision"] = (model.n_layers + ATTENTION_COPIES) * matrix
    copy = cost.memory.weights  # in fp32, a rank's shards
    for name, settings in experiment.callbacks.items():
        measured = len((settings or {}).get("tasks") or []) or tasks
        if settings is None or not tasks:
            continue
        if name == "interference" and "model" in settings.get("groups", ["model"]):
            copies = 1 if settings.get("offload") else tasks + 3 * measured + 2
            found["callbacks.interference.groups"] = copies * copy
        elif name == "loss_budget":
            found["callbacks.loss_budget.tasks"] = (3 * tasks + 3 * measured + 5) * copy
    return found


REMEDIES = {
    "train.precision": "set train.precision=amp_bf16, whose attention keeps no such matrix, or a "
    "smaller train.device_train_microbatch_size",
    "callbacks.interference.groups": "set callbacks.interference.offload=true, which leaves one "
    "copy on the GPU, measure [mlp_top] alone or fewer tasks, or train with FSDP on more GPUs",
    "callbacks.loss_budget.tasks": "follow fewer tasks, or train with FSDP on more GPUs",
    "train.activation_checkpointing": "set it to whole_layer, which makes them again in the "
    "backward pass, or a smaller train.device_train_microbatch_size",
}


def too_large(
    experiment: ExperimentConfig, cost: Cost, *, gpu_bytes: float
) -> Iterator[tuple[str, str, str, str]]:
    """(key, value, reason, remedy) of each setting without which a step would fit, and does not."""
    extra = extra_bytes(experiment, cost)
    if cost.memory.step + sum(extra.values()) <= gpu_bytes:
        return
    for key, size in extra.items():
        what = f"which takes {size / 1e9:.0f} GB beside the step's {cost.memory.step / 1e9:.0f}"
        reason = f"{what}, and a GPU has {gpu_bytes / 1e9:.0f}"
        value = "fp32" if key == "train.precision" else "of the whole model"
        yield key, value, reason, REMEDIES[key]
    key, kept = "train.activation_checkpointing", cost.memory.activations
    without = cost.memory.step - kept  # an upper bound of what is left when they are made again
    if without <= gpu_bytes < cost.memory.step and not experiment.train.activation_checkpointing:
        what = f"so that activations take {kept / 1e9:.0f} GB of the step's"
        reason = f"{what} {cost.memory.step / 1e9:.0f}, and a GPU has {gpu_bytes / 1e9:.0f}"
        yield key, "null", reason, REMEDIES[key]


def gathered(train: TrainConfig, model: OLMo) -> int:
    """Bytes of what FSDP has unsharded at the peak of a step.

    Weights, in the precision of the compute: where they are sharded between forward and backward
    (FULL_SHARD, HYBRID_SHARD) two units, the one at work and the next, which is prefetched, and
    what belongs to no unit (by_block: embeddings and the last norm; torch keeps the root gathered);
    else, as under SHARD_GRAD_OP, the whole model. Gradients of one unit and the root until they are
    scattered: as the backward pass made them and, in another precision, as they are reduced.
    """
    unit, root = wrapped_units(train, model)
    num_params, precision = model.num_params(), train.fsdp_precision
    weight = reduced = 4
    if precision is not None:
        assert precision.param_dtype is not None
        assert precision.reduce_dtype is not None
        weight, reduced = precision.param_dtype.itemsize, precision.reduce_dtype.itemsize
    assert train.fsdp is not None
    again = (ShardingStrategy.FULL_SHARD, ShardingStrategy.HYBRID_SHARD)
    resharded = train.fsdp.sharding_strategy in again
    num_gathered = min(root + 2 * unit, num_params) if resharded else num_params
    gradient = weight + (reduced if reduced != weight else 0)
    return weight * num_gathered + gradient * (root + unit)


def wrapped_units(train: TrainConfig, model: OLMo) -> tuple[int, int]:
    """Parameters of the largest unit that FSDP gathers by itself, and of what is left to the root.

    As torch wraps: from the inside outwards, asking the engine's policy (`build.wrap`).
    """
    assert train.fsdp is not None
    policy = model.get_fsdp_wrap_policy(train.fsdp.wrapping_strategy)
    units = [0]

    def left(module: torch.nn.Module) -> int:
        """Parameters of a module that are in none of its units."""
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        for child in module.children():
            num = left(child)
            if policy is not None and policy(child, recurse=False, nonwrapped_numel=num):
                units.append(num)
            else:
                own += num
        return own

    root = left(model)
    return max(units), root


def checkpoint_bytes(train: TrainConfig, num_params: int, *, step: int = 1) -> int:
    """Of one checkpoint, whatever the strategy: fp32 weights and, once a step is taken, moments.

    The files' own headers and the trainer's state (tens of kB) are left out.
    """
    moments = OPTIMIZER_BYTES[str(train.optimizer.name)] if step else 0
    return (4 + moments) * num_params


def kept_checkpoints(train: TrainConfig, num_steps: int) -> list[int]:
    """The steps whose checkpoints a run leaves behind when it was not interrupted."""
    every, keep = train.save_interval_unsharded, train.save_num_unsharded_checkpoints_to_keep
    steps = [] if train.no_pre_train_checkpoint else [0]
    if every is not None and keep != 0:
        steps += range(every, num_steps + 1, every)
    if every is not None and steps[-1:] != [num_steps]:
        steps.append(num_steps)
    return steps[-keep:] if keep > 0 else steps


def storage_bytes(train: TrainConfig, num_params: int, num_steps: int) -> int:
    """Of all checkpoints that a run leaves behind."""
    steps = kept_checkpoints(train, num_steps)
    return sum(checkpoint_bytes(train, num_params, step=step) for step in steps)


def num_shards(train: TrainConfig, *, gpus: int) -> int:
    """Over how many GPUs the state is spread: 1 under DDP, all under FSDP, a node's if hybrid."""
    if train.distributed_strategy != DistributedStrategy.fsdp:
        return 1
    assert train.fsdp is not None
    strategy = train.fsdp.sharding_strategy
    if strategy == ShardingStrategy.NO_SHARD:
        return 1
    if strategy in (ShardingStrategy.HYBRID_SHARD, ShardingStrategy._HYBRID_SHARD_ZERO2):
        replicas = train.fsdp.hybrid_sharding_num_model_replicas
        return max(gpus // replicas, 1) if replicas else min(gpus, GPUS_A_NODE)
    return gpus
