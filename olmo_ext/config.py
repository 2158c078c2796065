"""ExperimentConfig: the stock training config, the corpus, what is injected, what is measured.

    experiment = load_experiment("experiment.yaml", overrides=["train.seed=1"])

`train:` is the engine's own TrainConfig, key for key; the other sections are ours. An unknown key,
a wrong type or a value that cannot work raises ConfigError before any work starts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from olmo.config import TrainConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data_injection.config import ConfigError, InjectionConfig
from data_injection.corpus.prepare import Manifest, corpus_paths, verify_corpus
from data_injection.files import replace_file
from olmo_ext.shipped import locate, shipped

UNUSED = {
    "dry_run": "pass --dry-run",
    "load_path": "pass --resume to go on with a run",
    "try_load_latest_save": "pass --resume to go on with a run",
    "reset_optimizer_state": "start a new run",
    "reset_trainer_state": "start a new run",
    "restore_dataloader": "start a new run for another stream",
    "force_save_unsharded": "set save_interval_unsharded",
    "epoch": "rely on the step: the stream has no epochs to count",
    "fast_forward_batches": "choose another data seed: a position follows from the step alone",
    "compile": "train uncompiled",
    "save_overwrite": "move the checkpoint away: none is ever written over",
    "remote_save_folder": "copy the run's folder",
}
"""Settings of the engine's own script that a run of olmo-ext does not read, and what to do."""


@dataclass
class ExperimentConfig:
    """One training run."""

    rung: str = "???"
    """Name of the model size; it stands in every record and labels a row of the heatmap."""

    corpus: str | None = None
    """Folder made by `olmo-ext prepare`. Sets train.data.paths, memmap_dtype and the EOS and
    padding ids of train.model. Without it train.data.paths must be given."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """The engine's configuration."""

    injection: InjectionConfig = field(default_factory=InjectionConfig)
    """Rare tasks and their schedules; an empty task list trains on the host text alone."""

    callbacks: dict[str, Any] = field(default_factory=dict)
    """Settings of callbacks by name; see `olmo_ext.callbacks.build.CALLBACKS`."""

    @property
    def protocol(self) -> str:
        """ "single" (the study's: one task a run), "mixture" or "none"."""
        return {0: "none", 1: "single"}.get(len(self.injection.tasks), "mixture")


def load_experiment(
    path: str | Path, overrides: list[str] | None = None, *, corpus: bool = True
) -> ExperimentConfig:
    """Read an experiment from YAML, apply dotted overrides, fill in the corpus, check it all.

    Args:
        corpus: False leaves out what needs the corpus' files; for the cost of a run, which may be
            asked where they are not.

    Raises:
        ConfigError: names the key, the value and the remedy.
        FileNotFoundError: the file or the corpus is missing.
    """
    path = Path(path)
    try:
        raw = read_raw(path, overrides or [])
        if isinstance(raw.get("train"), DictConfig):
            raw.train = TrainConfig.update_legacy_settings(raw.train)
        experiment = OmegaConf.to_object(OmegaConf.merge(_schema(), raw))
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error, path)) from None
    assert isinstance(experiment, ExperimentConfig)
    if corpus:
        complete(experiment)
    return experiment


def read_raw(path: Path, overrides: Sequence[str], *, without: str | None = None) -> Any:
    """An experiment's YAML with its overrides, nothing checked yet, as OmegaConf holds it.

    Without the section of that name, if one is given: copying the engine's is most of reading.
    """
    path = locate(path)
    if not path.is_file():
        example = shipped("configs/quickstart.yaml")
        raise FileNotFoundError(f"no experiment file {path}; see {example} for one")
    # The engine's resolvers (path.glob, path.choose) may stand in its section.
    TrainConfig._register_resolvers(validate_paths=False)
    OmegaConf.register_new_resolver("flash_attn_available", has_flash_attention, replace=True)
    stat = path.stat()
    raw = _read_yaml(path.resolve(), stat.st_mtime_ns, stat.st_size)
    if without is not None and isinstance(raw, DictConfig):
        raw = OmegaConf.masked_copy(raw, [str(key) for key in raw if key != without])
    raw = copy.deepcopy(raw)
    for override in overrides:
        _override(raw, override)
    return raw


@cache
def _schema() -> DictConfig:
    """Built once, which takes longer than the rest of loading; a merge copies it."""
    return OmegaConf.structured(ExperimentConfig)


@lru_cache(maxsize=64)
def _read_yaml(path: Path, changed: int, size: int) -> Any:
    """A file as it was at a time: a grid reads each of its few files a hundred times."""
    known = [one.name for one in fields(ExperimentConfig)]
    try:
        raw = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {_problem(error)}") from None
    # Plain text is read as one key; nobody wants to see all of it as an unknown one.
    if not isinstance(raw, DictConfig) or (len(raw) and not set(raw) & set(known)):
        raise ConfigError(
            f"{path} is no experiment: it has none of the keys {', '.join(known)}; "
            "configs/quickstart.yaml is one"
        )
    return raw


def _problem(error: Exception) -> str:
    """YAML's own words in one line: what is wrong and where."""
    mark, said = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    line = f", line {mark.line + 1}" if mark is not None else ""
    return f"{said or str(error).splitlines()[0]}{line}"


def complete(
    experiment: ExperimentConfig, *, verify: Callable[[str], Manifest] = verify_corpus
) -> Manifest | None:
    """Fill the engine's section from the corpus and check every value that can be checked now.

    `verify` checks a corpus' files and reads its manifest; a grid does so once for all its runs.
    """
    manifest = None if experiment.corpus is None else _use_corpus(experiment, verify)
    _check(experiment)
    return manifest


def save_experiment(experiment: ExperimentConfig | TrainConfig, path: Path) -> None:
    """Write an experiment, or the engine's section alone, as YAML."""
    replace_file(path, OmegaConf.to_yaml(OmegaConf.structured(experiment)), sync=True)


def num_steps(train: TrainConfig) -> int:
    """Optimizer steps of the whole run. Raises ConfigError for a duration in epochs."""
    value = train.max_duration
    text = str(value).strip()
    try:
        if text.endswith("T"):
            tokens = int(float(text[:-1]))
            return math.ceil(
                tokens / (train.global_train_batch_size * train.model.max_sequence_length)
            )
        return int(float(text))
    except ValueError:
        raise ConfigError(
            f"train.max_duration must be steps (2400) or tokens ('210e9T'), got {value!r}; epochs "
            "are not supported because the stream has no end"
        ) from None


def has_flash_attention() -> bool:
    """Whether attention can run in the flash-attn package here: it imports, and there is CUDA.

    `train.model.flash_attention: ${flash_attn_available:}` asks for it. The engine falls back where
    the import fails, but on a CPU it would call the package and fail in the first step.
    """
    if not torch.cuda.is_available():
        return False
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        return False
    return True


def _override(raw: Any, override: str) -> None:
    """Set one dotted key, list entries by number: injection.tasks.0.schedule.rate=3."""
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"override {override!r} must be key=value, for example train.seed=1")
    try:
        value = OmegaConf.create(f"value: {text}" if text else "value: null").value
    except YAMLError as error:
        raise ConfigError(
            f"override {override!r} is not YAML ({str(error).splitlines()[-1].strip()}); "
            f"put text in quotes, {key}='\"...\"'"
        ) from None
    OmegaConf.update(raw, key, value, merge=True, force_add=True)


def _explain(error: OmegaConfBaseException, path: Path) -> str:
    """The error in one line: file, key, what is wrong and, for an unknown key, the known ones."""
    key = getattr(error, "full_key", None) or getattr(error, "key", None) or "?"
    message = (error.msg or str(error)).splitlines()[0]
    known = list(getattr(getattr(error, "object_type", None), "__dataclass_fields__", {}))
    unhelped = " not in " in message and "Did you mean" not in message
    hint = f"; known keys there: {', '.join(known)}" if known and unhelped else ""
    return f"{path}: {key}: {message}{hint}"


def _use_corpus(experiment: ExperimentConfig, verify: Callable[[str], Manifest]) -> Manifest:
    """Point the engine at the corpus; a setting of its own that says otherwise is an error."""
    assert experiment.corpus is not None
    if not Path(experiment.corpus).is_dir():
        raise FileNotFoundError(
            f"corpus: there is no folder {experiment.corpus}; make it with `olmo-ext prepare "
            f"'TEXT/*.json.gz' --out {experiment.corpus}`, or name another with -o corpus=FOLDER "
            "(docs/data.md says where the text comes from)"
        )
    manifest = verify(experiment.corpus)
    train, stock = experiment.train, TrainConfig()
    wanted: list[tuple[str, Any, str, Any, Any]] = [
        ("train.data.paths", train.data, "paths", stock.data.paths,
         [str(p) for p in corpus_paths(experiment.corpus, manifest)]),
        ("train.data.memmap_dtype", train.data, "memmap_dtype", stock.data.memmap_dtype,
         manifest.dtype),
        ("train.tokenizer.identifier", train.tokenizer, "identifier", stock.tokenizer.identifier,
         str(Path(experiment.corpus) / manifest.tokenizer)),
        ("train.model.eos_token_id", train.model, "eos_token_id", stock.model.eos_token_id,
         manifest.eos_token_id),
        ("train.model.pad_token_id", train.model, "pad_token_id", stock.model.pad_token_id,
         manifest.pad_token_id),
    ]  # fmt: skip
    for key, section, name, default, value in wanted:
        given = getattr(section, name)
        if given not in (default, value):
            raise ConfigError(
                f"{key} is {given!r} but the corpus {experiment.corpus} has {value!r}; remove the "
                "key (the corpus sets it) or remove `corpus`"
            )
        setattr(section, name, value)
    if manifest.vocab_size > train.model.vocab_size:
        raise ConfigError(
            f"train.model.vocab_size is {train.model.vocab_size} but the corpus "
            f"{experiment.corpus} has token ids up to {manifest.vocab_size - 1}; "
            f"set it to {manifest.vocab_size}"
        )
    return manifest


def _check(experiment: ExperimentConfig) -> None:
    train = experiment.train
    if experiment.rung in ("", "???"):
        raise ConfigError("rung must name the model size, for example 20M")
    if train.run_name is None:
        raise ConfigError("train.run_name must be given: every record carries it")
    if not train.data.paths or train.data.datasets:
        raise ConfigError(
            "corpus or train.data.paths must be given, and train.data.datasets be unset; "
            "`olmo-ext prepare` makes a corpus"
        )
    if not train.data.drop_last:
        raise ConfigError(
            "train.data.drop_last must be true: the stream is made of whole batches, and the "
            "engine's partial last batch has no step of its own"
        )
    if num_steps(train) < 1:
        raise ConfigError(f"train.max_duration must be at least 1 step, got {train.max_duration!r}")
    for key, value in _counts(train):
        if value is None or value < 1:
            raise ConfigError(f"{key} must be at least 1, got {value}")
    strategy = str(train.distributed_strategy)
    if strategy in ("ddp", "fsdp") and getattr(train, strategy) is None:
        raise ConfigError(
            f"train.{strategy} must be given for distributed_strategy {strategy}; write "
            f"`{strategy}: {{}}` for the engine's defaults"
        )
    if train.data.num_workers == 0 and train.data.timeout:
        raise ConfigError("train.data.timeout needs train.data.num_workers; set it to 0")
    for name, remedy in UNUSED.items():
        if getattr(train, name) != getattr(TrainConfig(), name):
            raise ConfigError(f"train.{name} has no effect here; remove it and {remedy}")
    # Measured with torch 2.13, 2 ranks: files of torch_legacy are refused by torch.load, torch_new
    # cannot build its reader, local crashes while saving, and olmo_core restores without an error
    # but goes on along another trajectory. Unsharded files restore bit for bit.
    if train.save_interval is not None or train.save_interval_ephemeral is not None:
        raise ConfigError(
            "train.save_interval and save_interval_ephemeral must be null: no sharded checkpoint "
            "of ai2-olmo 0.6.0 restores exactly under this torch; set train.save_interval_unsharded"
        )
    model = train.model
    if model.d_model % model.n_heads:
        raise ConfigError(
            f"train.model.n_heads must divide d_model, got d_model={model.d_model}, "
            f"n_heads={model.n_heads}"
        )
    if model.rope and (model.d_model // model.n_heads) % 2:
        raise ConfigError(
            "train.model.d_model / n_heads must be even, since RoPE turns pairs; got "
            f"{model.d_model} / {model.n_heads} = {model.d_model // model.n_heads}"
        )
    if model.embedding_size is not None and model.embedding_size < model.vocab_size:
        raise ConfigError(
            f"train.model.embedding_size must be at least vocab_size {model.vocab_size} or null, "
            f"got {model.embedding_size}"
        )
    if model.n_heads % model.effective_n_kv_heads:
        raise ConfigError(
            f"train.model.n_kv_heads must divide n_heads {model.n_heads}, got {model.n_kv_heads}"
        )
    if train.precision not in ("fp32", "amp_bf16"):  # amp_fp16 would need a gradient scaler
        raise ConfigError(f"train.precision must be fp32 or amp_bf16, got {train.precision!r}")
    if train.data.generate_doc_lengths:
        try:
            import flash_attn  # noqa: F401
        except ImportError:
            raise ConfigError(
                "train.data.generate_doc_lengths needs flash-attn (the engine asserts it, "
                "model.py:543); install the extra `flash` on a CUDA machine or set it to false"
            ) from None
    if train.data.effective_memmap_dtype not in (np.uint8, np.uint16, np.uint32, np.uint64):
        raise ConfigError(
            f"train.data.memmap_dtype must be an unsigned integer type, got "
            f"{train.data.memmap_dtype!r}"
        )


def _counts(train: TrainConfig) -> list[tuple[str, int | None]]:
    """Settings of which less than one would end in a division by zero or an endless loop."""
    names = (
        *("global_train_batch_size", "device_train_microbatch_size", "device_eval_batch_size"),
        *("save_interval_unsharded", "console_log_interval", "canceled_check_interval"),
        "eval_interval",
    )
    shape = ("d_model", "n_heads", "n_layers", "mlp_ratio", "max_sequence_length", "vocab_size")
    counts = [(f"train.{name}", getattr(train, name)) for name in names]
    return counts + [(f"train.model.{name}", getattr(train.model, name)) for name in shape]


def check_device(train: TrainConfig, *, world_size: int) -> None:
    """What depends on the machine: precision on a CPU, and the batch over the ranks."""
    if train.precision != "fp32" and not torch.cuda.is_available():
        raise ConfigError(
            f"train.precision is {train.precision} but there is no CUDA device, where the engine "
            "would silently train in fp32; run it on a CUDA machine, or set train.precision=fp32"
        )
    if train.precision == "fp32" and train.model.flash_attention and has_flash_attention():
        raise ConfigError(
            "train.model.flash_attention is true but train.precision is fp32, which the flash-attn "
            "package cannot compute in; set train.model.flash_attention=false"
        )
    if train.global_train_batch_size % world_size:
        raise ConfigError(
            f"train.global_train_batch_size {train.global_train_batch_size} must be a multiple of "
            f"the world size {world_size}; use a number of ranks that divides it"
        )
    if train.distributed_strategy is None:
        raise ConfigError(
            "train.distributed_strategy must be ddp or fsdp, also on one device: the engine saves "
            "no weights otherwise"
        )
