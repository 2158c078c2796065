"""ExperimentConfig: the stock training config, the corpus, what is injected, what is measured.

    experiment = load_experiment("experiment.yaml", overrides=["train.seed=1"])

`train:` is the engine's own TrainConfig, key for key; the other sections are ours. An unknown key,
a wrong type or a value that cannot work raises ConfigError before any work starts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from olmo.config import TrainConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_injection.config import InjectionConfig
from data_injection.corpus.manifest import Manifest, corpus_paths, verify_corpus
from data_injection.errors import NO_VALUE, ConfigError
from data_injection.files import replace_file
from eval.run import load_config
from olmo_ext.checks import check
from olmo_ext.numerics.kernels import has_flash_attention
from olmo_ext.overrides import check_environment, explained, override
from olmo_ext.shipped import locate, shipped


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
    """Settings of callbacks by name; see `olmo_ext.callbacks.build.CALLBACKS`. An import path has
    dots of its own: in an override or a sweep `callbacks[mypkg.callbacks:HeadNorms].every=50`."""

    deterministic: bool = False
    """Deterministic algorithms alone: the same bits on CUDA too (numerics/deterministic.py)."""

    chunked_loss: bool = False
    """Output layer and loss in chunks: equal to stock's to rounding (numerics/chunked_loss.py)."""

    fused_optimizer: bool = False
    """AdamW's step in one kernel: equal to stock's to rounding (numerics/kernels.py)."""

    bf16_on_cpu: bool = False
    """Allows train.precision amp_bf16 without a GPU, to explore with: see docs/engine.md."""

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
    raw: Any = OmegaConf.create()
    try:
        raw = read_raw(path, overrides or [])
        _check_text(raw)
        if isinstance(raw.get("train"), DictConfig):
            raw.train = TrainConfig.update_legacy_settings(raw.train)
        experiment = OmegaConf.to_object(OmegaConf.merge(_schema(), raw))
    except OmegaConfBaseException as error:
        raise explained(error, path, raw) from None
    except TypeError:
        rule = "must have lists where lists belong and keys with values where those do"
        raise ConfigError(key=str(path), value=overrides or NO_VALUE, rule=rule) from None
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
    for word in overrides:
        override(raw, word)
    return raw


def _check_text(raw: Any) -> None:
    """Refuse names that YAML has read as something else: `no` is False, `1e3` the number 1000.0."""
    for key in ("rung", "train.run_name"):
        value = OmegaConf.select(raw, key)
        if isinstance(value, bool | float):
            remedy = "put it in quotes, as in '\"1e3\"'"
            raise ConfigError(key=key, value=value, rule="must be text", remedy=remedy)


@cache
def _schema() -> DictConfig:
    """Built once, which takes longer than the rest of loading; a merge copies it."""
    return OmegaConf.structured(ExperimentConfig)


@lru_cache(maxsize=64)
def _read_yaml(path: Path, changed: int, size: int) -> Any:
    """A file as it was at a time: a grid reads each of its few files a hundred times."""
    known = [one.name for one in fields(ExperimentConfig)]
    rule = f"is no experiment: it has none of the keys {', '.join(known)}"
    what = {"rule": rule, "remedy": "configs/quickstart.yaml is one"}
    raw = load_config(path, **what)
    check_environment(path.read_text(encoding="utf-8", errors="replace"), where=str(path))
    # Plain text is read as one key; nobody wants to see all of it as an unknown one.
    if len(raw) and not set(raw) & set(known):
        raise ConfigError(key=path, **what)
    return raw


def complete(
    experiment: ExperimentConfig, *, verify: Callable[[str], Manifest] = verify_corpus
) -> Manifest | None:
    """Fill the engine's section from the corpus and check every value that can be checked now.

    `verify` checks a corpus' files and reads its manifest; a grid does so once for all its runs.
    """
    manifest = None if experiment.corpus is None else _use_corpus(experiment, verify)
    check(experiment)
    return manifest


def save_experiment(experiment: ExperimentConfig | TrainConfig, path: Path) -> None:
    """Write an experiment, or the engine's section alone, as YAML."""
    replace_file(path, OmegaConf.to_yaml(OmegaConf.structured(experiment)), sync=True)


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
    wanted: dict[str, Any] = {
        "data.paths": [str(p) for p in corpus_paths(experiment.corpus, manifest)],
        "data.memmap_dtype": manifest.dtype,
        "tokenizer.identifier": str(Path(experiment.corpus) / manifest.tokenizer),
        "model.eos_token_id": manifest.eos_token_id,
        "model.pad_token_id": manifest.pad_token_id,
    }
    for key, value in wanted.items():
        section, name = key.split(".")
        given = getattr(getattr(train, section), name)
        if given not in (getattr(getattr(stock, section), name), value):
            rule = f"must be {value!r}, which the corpus {experiment.corpus} has"
            remedy = "remove the key (the corpus sets it) or remove `corpus`"
            raise ConfigError(key=f"train.{key}", value=given, rule=rule, remedy=remedy)
        setattr(getattr(train, section), name, value)
    if manifest.vocab_size > train.model.vocab_size:
        most = manifest.vocab_size - 1
        rule = f"must be above the corpus' token ids, {experiment.corpus} has them up to {most}"
        key, remedy = "train.model.vocab_size", f"set it to {manifest.vocab_size}"
        raise ConfigError(key=key, value=train.model.vocab_size, rule=rule, remedy=remedy)
    return manifest
