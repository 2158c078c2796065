"""A checkpoint of ai2-olmo, anybody's, to go on from: `train.load_path: .../step1000-unsharded`.

    path = find_origin(experiment.train, stream)     # before anything is written

Its rows so far must be those of this run's stream, its model this one, and the plan begin there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import OmegaConf

from data_injection.errors import ConfigError
from data_injection.ledger import LEDGER_FOLDER, position_from, read_segments
from data_injection.lineage import is_effective, lineage
from data_injection.schedules.fits import check_beginning
from eval.checkpoints.checkpoint import by_step, load_model_config, read_identity, verify_checkpoint
from eval.run import differences, load_config, told_differences
from olmo_ext.build import origin_step
from olmo_ext.checks import num_steps

if TYPE_CHECKING:
    from olmo.config import TrainConfig

    from olmo_ext.build import Stream
    from olmo_ext.trainer import ExperimentTrainer

KEY = "train.load_path"
FREE = (
    *("precision", "init_device", "flash_attention"),  # the machine's
    *("init_fn", "init_std", "init_cutoff_factor", "scale_emb_init", "emb_init_std"),
    *("attention_dropout", "residual_dropout", "embedding_dropout"),
    *("max_sequence_length", "vocab_size", "eos_token_id", "pad_token_id"),  # the rows'
    *("multi_query_attention", "mlp_ratio"),  # worked out below
)
"""What of train.model may be another than a checkpoint's: its weights compute the same."""
FILES = ("model.pt", "optim.pt", "train.pt", "config.yaml")


def find_origin(train: TrainConfig, stream: Stream) -> Path:
    """The checkpoint that a run without one of its own begins with.

    Raises ConfigError: not a whole one, of other rows or another model, or late for run or plan.
    """
    path, step = by_step(Path(str(train.load_path))), origin_step(train)
    _check_longer(train, step)
    if not all((path / name).is_file() for name in FILES):
        rule = f"must hold a checkpoint: {', '.join(FILES)}"
        raise ConfigError(key=KEY, value=train.load_path, rule=rule)
    if problems := verify_checkpoint(path):
        raise ConfigError(key=KEY, value=train.load_path, rule=f"is damaged: {'; '.join(problems)}")
    if why := _placed_something(path, step):
        remedy = "resume that run in its own folder"
        raise ConfigError(key=KEY, value=train.load_path, rule=why, remedy=remedy)
    data = stream.identity, read_identity(path)
    _check_same(train, load_config(path / "config.yaml"), load_model_config(path), data)
    check_beginning(stream.plan.schedules, step)
    return path


def check_parent(
    train: TrainConfig, stream: Stream | None, parent: TrainConfig, parents: Stream | None, *,
    step: int,
) -> None:  # fmt: skip
    """Raise ConfigError unless a run can begin with what another, still to be trained, will save.

    A stream is None where the corpus is still to be made: its plan is then checked at the start.
    """
    last = num_steps(parent)
    _check_longer(train, step)
    kept = parent.save_num_unsharded_checkpoints_to_keep == -1
    if step > last or not kept or (step % parent.save_interval_unsharded and step != last):
        rule = f"must leave a checkpoint of step {step}, in a run of {last} steps"
        remedy = f"set it to a divisor of {step}, and keep all (save_num_unsharded_checkpoints_to_"
        key, value = "train.save_interval_unsharded", parent.save_interval_unsharded
        raise ConfigError(key=key, value=value, rule=rule, remedy=f"{remedy}keep: -1)")
    data = tuple(one.identity if one is not None else {} for one in (stream, parents))
    _check_same(train, OmegaConf.structured(parent), asdict(parent.model), data)
    for one in (stream, parents):
        if one is not None:
            check_beginning(one.plan.schedules, step)


def _check_longer(train: TrainConfig, step: int) -> None:
    if step >= num_steps(train):
        rule = f"must be above {step}, the step that it begins with"
        raise ConfigError(key="train.max_duration", value=train.max_duration, rule=rule)


def _placed_something(path: Path, step: int) -> str:
    """Why a checkpoint may hold instances of a plan, by the ledger beside it; empty if none."""
    identity = read_identity(path)
    if not identity.get("plan", {}).get("tasks"):
        return ""
    place = position_from(identity.get("ledger"), where=str(path))
    try:
        segments = read_segments(path.parent / LEDGER_FOLDER)
    except FileNotFoundError:
        segments = {}
    line = lineage(segments, place, step=step)
    before = [segments[one.segment] for one in line.stretches]
    if place is None or line.problems or any(one.header.get("lost") for one in before):
        return "was trained with a plan of its own, and no whole ledger lies beside it"
    rows = sum(int(is_effective(one, line.stretches).sum()) for one in before)
    return f"was trained with a plan of its own ({rows} instances until then)" if rows else ""


def _check_same(
    train: TrainConfig, theirs: Any, their_model: dict[str, Any], data: Sequence[dict[str, Any]]
) -> None:
    """Raise ConfigError for other rows or another model than a checkpoint's.

    data: identities of both streams, ours first; theirs is empty where it is not known.
    """
    fresh = train.reset_optimizer_state
    # Files of one name may hold other tokens: a checkpoint of ours says which they were.
    told = [key for key in ("corpus_hash", "label_masks") if all(key in one for one in data)]
    each = zip((OmegaConf.structured(train), theirs), data, strict=True)
    rows = [_rows_of(config, fresh) | {key: one[key] for key in told} for config, one in each]
    model = _model_of(asdict(train.model)), _model_of(their_model)
    another = "give train.model those values, or another checkpoint"
    same = "take those settings; with train.reset_optimizer_state the optimizer may be another"
    for rule, both, remedy in (
        ("was trained on other rows, or otherwise (", rows, same),
        ("holds another model (train.model, ", model, another),
    ):
        if found := differences(*both):
            rule += "; ".join(told_differences(found, then="then")) + ")"
            raise ConfigError(key=KEY, value=train.load_path, rule=rule, remedy=remedy)


def _rows_of(config: Any, fresh: bool) -> dict[str, Any]:
    """What fixes which row stands at which position, by the engine's keys; and, without a fresh
    optimizer, the strategy and its groups: another's state would reach other parameters."""
    keys = ["global_train_batch_size", "model.max_sequence_length", "data.memmap_dtype"]
    keys += ["data.instance_filter"]
    names = ("name", "decay_norm_and_bias", "decay_embeddings")
    keys += [] if fresh else ["distributed_strategy", *(f"optimizer.{name}" for name in names)]
    rows = {key: OmegaConf.select(config, key) or None for key in keys}  # old configs lack a False
    seed = OmegaConf.select(config, "data.seed")
    rows["data.seed"] = OmegaConf.select(config, "seed") if seed is None else seed
    for key in ("data.paths", "data.label_mask_paths"):
        # A copy of the corpus lies elsewhere; its files keep their names and order.
        rows[key] = [str(path).rsplit("/", 1)[-1] for path in OmegaConf.select(config, key) or ()]
    return rows


def _model_of(config: dict[str, Any]) -> dict[str, Any]:
    """What fixes a model's function, by the engine's keys, with its defaults worked out."""
    model = {key: value for key, value in config.items() if key not in FREE}
    heads = 1 if config["multi_query_attention"] else config["n_heads"]
    model["n_kv_heads"] = config["n_kv_heads"] or heads
    model["mlp_hidden_size"] = config["mlp_hidden_size"] or config["mlp_ratio"] * config["d_model"]
    model["embedding_size"] = config["embedding_size"] or config["vocab_size"]
    if (bias := config["bias_for_layer_norm"]) is None:
        bias = config["include_bias"]
    return model | {"bias_for_layer_norm": bias}


def stock_state() -> AbstractContextManager[Any]:
    """Let torch.load read a train.pt as the engine writes it: paths, and NumPy's generator.

    Wart: the engine reads it without an allow-list (checkpoint.py:316), which torch refuses since
    2.6; see `olmo_ext.compat.plain_trainer_state`.
    """
    made = np.core.multiarray._reconstruct  # type: ignore[attr-defined]
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    known = [np.ndarray, np.dtype, type(np.dtype(np.uint32)), PosixPath]
    return torch.serialization.safe_globals([*known, *((made, name) for name in names)])


def check_taken_up(trainer: ExperimentTrainer) -> None:
    """Raise ConfigError if a checkpoint's rows were not the first of the order, once it is read."""
    seen = trainer.global_train_examples_seen_this_epoch
    if seen != trainer.global_step * trainer.cfg.global_train_batch_size:
        rule = f"must have read {trainer.global_step} batches in order, not {seen} rows: it began "
        rule += "another epoch, or left some out"
        raise ConfigError(key=KEY, value=trainer.cfg.load_path, rule=rule)
