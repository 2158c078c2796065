"""From an experiment to what the engine trains: process group, model, wrapper, plan, identity.

The initial weights are a function of (model config, seed, device type) alone: every rank builds the
whole model with the same seed before it is wrapped, so DDP, FSDP and any world size start equal.
(The engine's script initialises FSDP's shards after wrapping, so that its weights depend on the
world size.)
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from olmo.config import DistributedStrategy, TrainConfig
from olmo.model import OLMo
from olmo.optim import BoltOnWarmupScheduler, Scheduler, build_scheduler
from olmo.torch_util import get_local_rank, get_world_size, seed_all
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import ShardingStrategy
from torch.nn.parallel import DistributedDataParallel as DDP

from data_injection.corpus.encoder import text_encoder
from data_injection.corpus.manifest import Manifest
from data_injection.errors import ConfigError
from data_injection.order import RowOrder
from data_injection.plan import InjectionPlan, compile_plan
from data_injection.tasks.base import Task
from data_injection.tasks.sequence_file import Encode
from eval.checkpoints.checkpoint import by_step
from eval.run import differences, told_differences, told_settings, with_config
from olmo_ext.checks import num_steps
from olmo_ext.config import ExperimentConfig
from olmo_ext.data import build_host, check_memmaps, data_seed, fingerprint
from olmo_ext.numerics.kernels import compile_blocks

log = logging.getLogger(__name__)

# malloc.h: blocks of fewer bytes come from the heap; free bytes at its end that go back (-1: none).
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1


def keep_memory() -> None:
    """Have glibc keep freed memory, for a process that trains on the CPU.

    A step frees the logits and asks for them again: by default they go back to the kernel, which
    hands over each page anew, zeroed: a third of a small model's step. No number changes. What was
    needed once stays taken: the 4M rung's process is larger for it (benchmarks/RESULTS.md). Whoever
    sets one of malloc's own variables (MALLOC_TRIM_THRESHOLD_, say) is left their choice.
    """
    if torch.cuda.is_available() or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl and macOS have none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, -1)


def init_process_group() -> torch.device:
    """Join torchrun's process group, or make one of a single process; returns this rank's device.

    nccl on CUDA, gloo on the CPU. The engine needs a process group on one process too.
    """
    cuda = torch.cuda.is_available()
    backend = "nccl" if cuda else "gloo"
    if not dist.is_initialized():
        if "RANK" in os.environ:
            _check_restart()
            if cuda:
                torch.cuda.set_device(get_local_rank())
            # Long enough for rank 0 to write a large unsharded checkpoint while the others wait.
            dist.init_process_group(backend, timeout=timedelta(hours=1))
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return torch.device("cuda", get_local_rank()) if cuda else torch.device("cpu")


def _check_restart() -> None:
    """Raise ConfigError where restarted ranks would wait for the addresses of dead ones."""
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if restarted and several and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        rule = "gives restarted ranks the store of dead ones, where they would find dead addresses"
        remedy = "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, or start by `olmo-ext launch torchrun`"
        raise ConfigError(key="torchrun --max-restarts", rule=rule, remedy=remedy)


@dataclass(frozen=True)
class Stream:
    """What the run reads: the plan, the order of the rows, and their identity."""

    plan: InjectionPlan
    order: RowOrder
    num_steps: int
    identity: dict[str, Any]
    """Everything that fixes which tokens stand at which position, as JSON values."""

    @property
    def num_positions(self) -> int:
        return self.num_steps * self.order.batch_size


class Memo(dict[Any, Any]):
    """What was worked out once and is the same for other experiments of a grid."""

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self:
            self[key] = make()
        return self[key]


def _geometry(
    train: TrainConfig, manifest: Manifest | None, *, epoch_rows: int
) -> tuple[dict[str, Any], set[int]]:
    """What a plan is compiled for, and the token ids that no task may draw."""
    reserved = {train.model.eos_token_id, train.model.pad_token_id}
    if manifest is not None:
        reserved |= {*manifest.special_token_ids, *manifest.byte_token_ids}
    geometry = {
        "batch_size": train.global_train_batch_size,
        "seq_len": train.model.max_sequence_length,
        "epoch_rows": epoch_rows,
        "vocab_size": train.model.vocab_size if manifest is None else manifest.vocab_size,
        "eos_token_id": train.model.eos_token_id,
    }
    return geometry, reserved


def compile_tasks(experiment: ExperimentConfig, *, manifest: Manifest | None) -> tuple[Task, ...]:
    """The tasks of an experiment, by the manifest of its corpus alone: no token file is read."""
    train = experiment.train
    if manifest is not None:  # as `complete` does
        train.model.eos_token_id = manifest.eos_token_id
        train.model.pad_token_id = manifest.pad_token_id
    geometry, reserved = _geometry(train, manifest, epoch_rows=train.global_train_batch_size)
    plan = compile_plan(
        experiment.injection,
        **geometry,
        reserved_tokens=reserved,
        num_steps=num_steps(train),
        encode=corpus_encode(experiment, manifest),
    )
    return tuple(plan.tasks)


def corpus_encode(experiment: ExperimentConfig, manifest: Manifest | None) -> Encode | None:
    """The corpus's tokenizer; None where none is named."""
    if manifest is not None and experiment.corpus is not None:
        return text_encoder(Path(experiment.corpus) / manifest.tokenizer)
    named = experiment.train.tokenizer.identifier
    return text_encoder(named) if Path(named).is_file() else None


def compile_stream(
    experiment: ExperimentConfig, *, manifest: Manifest | None, memo: Memo | None = None
) -> Stream:
    """Check the corpus and compile the plan. Raises ConfigError before any work starts.

    Args:
        memo: what experiments compiled one after the other share: looks at the corpus, and plans
            (sizes and model seeds have the same). By default nothing is kept.
    """
    memo = Memo() if memo is None else memo
    train = experiment.train
    assert train.data.paths is not None
    batch_size, seq_len = train.global_train_batch_size, train.model.max_sequence_length
    read_as = (train.data.effective_memmap_dtype, seq_len, train.model.vocab_size)
    corpus = ("corpus", *train.data.paths, *read_as)
    memo.once(corpus, lambda: check_memmaps(train))
    # The filter only marks rows: how many there are follows from files and row length alone.
    num_rows = memo.once(("rows", *corpus), lambda: len(build_host(train)))
    order = RowOrder(num_rows=num_rows, batch_size=batch_size, seed=data_seed(train))
    geometry, reserved = _geometry(train, manifest, epoch_rows=order.epoch_rows)
    steps = num_steps(train)
    sizes = tuple(geometry.values())
    asked = ("plan", repr(experiment.injection), sizes, frozenset(reserved), steps)
    plan: InjectionPlan = memo.once(
        asked,
        lambda: compile_plan(
            experiment.injection,
            **geometry,
            reserved_tokens=reserved,
            num_steps=steps,
            encode=corpus_encode(experiment, manifest),
        ),
    )
    memo.once(("check", asked, steps), lambda: plan.check(steps))
    for index, (task, schedule) in enumerate(zip(plan.tasks, plan.schedules, strict=True)):
        if schedule.rate > 0 and plan.instances(index, steps) == 0:
            log.warning(
                "task %s has no instance in %d steps: its rate is one in %.4g steps",
                *(task.name, steps, 1 / schedule.rate),
            )
    masks, rules = train.data.label_mask_paths, train.data.instance_filter

    def hash_files(paths: Sequence[str]) -> str:
        return memo.once(("files", *paths), lambda: fingerprint(paths))

    identity = {
        "plan_hash": plan.hash,
        "plan": plan.canonical,
        "corpus_hash": manifest.hash if manifest is not None else hash_files(train.data.paths),
        "label_masks": hash_files(masks) if masks else None,
        "instance_filter": asdict(rules) if rules else None,
        "data_seed": data_seed(train),
        "memmap_dtype": train.data.memmap_dtype,
        "vocab_size": geometry["vocab_size"],
        "reserved_tokens": sorted(reserved),
    }
    return Stream(plan=plan, order=order, num_steps=steps, identity=identity)


SETTINGS = (
    *("seed", "run_name", "model", "optimizer", "scheduler", "precision", "distributed_strategy"),
    *("max_grad_norm", "max_grad_norm_ratio", "softmax_auxiliary_loss"),
    "auxiliary_loss_multiplier",
)
"""What else of the engine's settings makes a run that run, with those of `eval.run.LATER`. What may
change from one start to the next is the rest: max_duration (which bends a cosine schedule from
there on), world size, micro-batch, workers, intervals of saving and logging, W&B, callbacks."""

OURS = ("deterministic", "chunked_loss", "fused_optimizer")
"""Settings of ours, all false by default, that do so as well."""


def origin_step(train: TrainConfig) -> int:
    """Steps behind train.load_path's checkpoint; ConfigError if it names none."""
    path = Path(str(train.load_path))  # resuming with a fresh optimizer, a link may have moved
    path = path if train.reset_optimizer_state else by_step(path)
    if (named := re.fullmatch(r"step(\d+)-unsharded", path.name)) is None:
        rule = "must be a folder stepN-unsharded"
        remedy = "unshard others with AI2's scripts/unshard.py; for a fresh optimizer name no link"
        raise ConfigError(key="train.load_path", value=train.load_path, rule=rule, remedy=remedy)
    return int(named[1])


def build_lr(cfg: TrainConfig) -> Scheduler:
    """The engine's scheduler; warmed up anew from where the optimizer is fresh, as its script's."""
    scheduler = build_scheduler(cfg)
    if not cfg.reset_optimizer_state:
        return scheduler
    in_tokens = cfg.scheduler.units == "tokens"
    a_step = cfg.global_train_batch_size * cfg.model.max_sequence_length if in_tokens else 1
    start = origin_step(cfg) * a_step
    return BoltOnWarmupScheduler.wrap(scheduler, start, start + int(cfg.scheduler.t_warmup))


def run_identity(experiment: ExperimentConfig, stream: Stream) -> dict[str, Any]:
    """A run's identity as JSON values: its stream and every setting that shapes its weights."""
    train = asdict(experiment.train)
    settings = {name: train[name] for name in SETTINGS} | told_settings(train)
    # Set by the machine, not by the experiment.
    for name in ("precision", "init_device", "flash_attention"):
        settings["model"].pop(name)
    # Only where set: runs of before are the same runs.
    if experiment.train.compile is not None:
        settings["compile"] = train["compile"]
    ours: dict[str, Any] = {name: True for name in OURS if getattr(experiment, name)}
    if experiment.train.reset_optimizer_state:
        ours["fresh_optimizer_at"] = origin_step(experiment.train)
    # Through JSON, so that tuples and enumerations compare with what a file gives back.
    told = stream.identity | ours | {"rung": experiment.rung, "train": settings}
    return json.loads(json.dumps(told, default=str))


def check_same_run(now: dict[str, Any], before: dict[str, Any], *, where: str) -> None:
    """Raise ConfigError with every difference if a run would go on as another one.

    Both are as from `run_identity`; before is of the folder `where`.
    """
    if found := differences(now, with_config(before, Path(where))):
        # The hash says only that something differs; the other keys say what.
        found = [one for one in found if one[0] != "plan_hash"] or found
        remedy = "Restore these settings, or start a new run in another train.save_folder"
        rule = "was trained as another run; it cannot be resumed"
        lines = "\n  ".join(told_differences(found))
        message = f"{where} {rule}:\n  {lines}\n{remedy}."
        raise ConfigError(message, key=where, value=found, rule=rule, remedy=remedy)


def build_model(train: TrainConfig, device: torch.device) -> OLMo:
    """The OLMo model on the device, initialised from train.seed alone."""
    train.model.precision = train.precision
    train.model.init_device = str(device)
    seed_all(train.seed)
    model = OLMo(train.model)
    model.set_activation_checkpointing(train.activation_checkpointing)
    compile_blocks(model, train)
    return model


def wrap(model: OLMo, train: TrainConfig, device: torch.device) -> DDP | FSDP:
    """The model in the engine's wrapper for the chosen strategy."""
    if train.distributed_strategy == DistributedStrategy.ddp:
        assert train.ddp is not None
        return DDP(model, find_unused_parameters=train.ddp.find_unused_params)
    assert train.fsdp is not None
    kwargs: dict[str, Any] = {}
    hybrid = ShardingStrategy.HYBRID_SHARD, ShardingStrategy._HYBRID_SHARD_ZERO2
    if train.fsdp.sharding_strategy in hybrid:
        kwargs["device_mesh"] = _hybrid_mesh(train, device)
    return FSDP(
        model,
        sharding_strategy=train.fsdp.sharding_strategy,
        mixed_precision=train.fsdp_precision if device.type == "cuda" else None,
        auto_wrap_policy=model.get_fsdp_wrap_policy(train.fsdp.wrapping_strategy),
        use_orig_params=train.fsdp.use_orig_params,
        limit_all_gathers=True,
        device_id=device,
        **kwargs,
    )


def _hybrid_mesh(train: TrainConfig, device: torch.device) -> Any:
    """One sharded replica a node, or as many replicas as the config says."""
    from torch.distributed.device_mesh import init_device_mesh

    assert train.fsdp is not None
    world = get_world_size()
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    replicas = train.fsdp.hybrid_sharding_num_model_replicas or max(world // local, 1)
    if replicas < 1 or world % replicas:
        key, rule = "train.fsdp.hybrid_sharding_num_model_replicas", "must divide the world size"
        raise ConfigError(key=key, value=replicas, rule=f"{rule} {world}")
    return init_device_mesh(device.type, (replicas, world // replicas))
