"""A checkpoint of ai2-olmo, anybody's, to go on from: `train.load_path: .../step1000-unsharded`.

    path = find_origin(experiment.train, stream)     # before anything is written

Its rows so far must be those of this run's stream, its model this one, and the plan begin there.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import OmegaConf

from data_injection.errors import ConfigError
from data_injection.schedules.fits import check_beginning
from eval.checkpoints.checkpoint import by_step, load_model_config, read_identity, verify_checkpoint
from eval.run import differences, load_config, told_differences

if TYPE_CHECKING:
    from olmo.config import TrainConfig

    from olmo_ext.build import Stream
    from olmo_ext.trainer import ExperimentTrainer

KEY = "train.load_path"
MODEL = (
    *("d_model", "n_layers", "n_heads", "activation_type", "block_type", "rope", "alibi"),
    *("layer_norm_type", "layer_norm_with_affine", "attention_layer_norm", "embedding_layer_norm"),
    *("attention_layer_norm_with_affine", "include_bias", "weight_tying"),
)
FILES = ("model.pt", "optim.pt", "train.pt", "config.yaml")


def find_origin(train: TrainConfig, stream: Stream) -> Path:
    """The checkpoint that a run without one of its own begins with.

    Raises ConfigError: not a whole one, of other rows or another model, or a plan begun before it.
    """
    assert train.load_path is not None
    path = by_step(Path(train.load_path))
    named = re.fullmatch(r"step(\d+)-unsharded", path.name)
    if named is None or not all((path / name).is_file() for name in FILES):
        rule = f"must be a folder stepN-unsharded with {', '.join(FILES)}"
        remedy = "unshard others with AI2's scripts/unshard.py"
        raise ConfigError(key=KEY, value=train.load_path, rule=rule, remedy=remedy)
    if problems := verify_checkpoint(path):
        raise ConfigError(key=KEY, value=train.load_path, rule=f"is damaged: {'; '.join(problems)}")
    if read_identity(path).get("plan", {}).get("tasks"):
        rule = "was trained with a plan of its own"
        remedy = "resume that run in its own folder"
        raise ConfigError(key=KEY, value=train.load_path, rule=rule, remedy=remedy)
    rows = _rows_of(OmegaConf.structured(train)), _rows_of(load_config(path / "config.yaml"))
    model = _model_of(asdict(train.model)), _model_of(load_model_config(path))
    another = "give train.model those values, or another checkpoint"
    for rule, both, remedy in (
        ("was trained on other rows, or otherwise (", rows, "take those settings"),
        ("holds another model (train.model, ", model, another),
    ):
        if found := differences(*both):
            rule += "; ".join(told_differences(found, then="then")) + ")"
            raise ConfigError(key=KEY, value=train.load_path, rule=rule, remedy=remedy)
    check_beginning(stream.plan.schedules, int(named[1]))
    return path


def _rows_of(config: Any) -> dict[str, Any]:
    """What fixes which row stands at which position, by the engine's keys; and the strategy: the
    optimizer's state of another loads without an error, into other parameters."""
    keys = ["global_train_batch_size", "model.max_sequence_length", "data.memmap_dtype"]
    keys += ["data.instance_filter", "distributed_strategy", "optimizer.name"]
    rows = {key: OmegaConf.select(config, key) for key in keys}
    seed = OmegaConf.select(config, "data.seed")
    rows["data.seed"] = OmegaConf.select(config, "seed") if seed is None else seed
    for key in ("data.paths", "data.label_mask_paths"):
        # A copy of the corpus lies elsewhere; its files keep their names and order.
        paths = OmegaConf.select(config, key) or ()
        rows[key] = [str(path).rsplit("/", 1)[-1] for path in paths]
    return rows


def _model_of(config: dict[str, Any]) -> dict[str, Any]:
    """What fixes a model's weights, by the engine's keys, with its defaults worked out."""
    model = {key: config[key] for key in MODEL}
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
