"""The experiments of a grid, loaded faster than one by one and equal to that.

    loader = GridLoader()
    experiment = loader.load("paper/20M.yaml", ["train.seed=2", "injection.tasks.0.name=add"])

Most of loading is checking the engine's section against its 200 keys; the points of a grid differ
in few of them. A hundred points of the ladder: 0.5 s instead of 4 (benchmarks/sweep.py).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from olmo.config import TrainConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_injection.config import InjectionConfig
from olmo_ext.config import ExperimentConfig, complete, load_experiment, read_raw

PLAIN = {"run_name": str, "save_folder": str, "seed": int}
"""Keys of the engine's section that are most points' own; nothing else in it follows from them."""


@dataclass
class _Ours:
    """ExperimentConfig without the engine's section."""

    rung: str = "???"
    corpus: str | None = None
    injection: InjectionConfig = field(default_factory=InjectionConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)


@cache
def _schema() -> DictConfig:
    return OmegaConf.structured(_Ours)


class GridLoader:
    """`load_experiment` for many points; what is unusual in any way takes the slow path."""

    def __init__(self) -> None:
        self._engine: dict[str, TrainConfig] = {}
        """The engine's section without PLAIN, as JSON, and what it becomes."""

    def load(
        self, path: str | Path, overrides: Sequence[str], *, corpus: bool = True
    ) -> ExperimentConfig:
        """As `load_experiment`, with its errors."""
        path = Path(path)
        try:
            experiment = self._load(path, overrides)
        except (OmegaConfBaseException, TypeError):
            experiment = None  # its words need the whole schema
        if experiment is None:
            return load_experiment(path, list(overrides), corpus=corpus)
        if corpus:
            complete(experiment)
        return experiment

    def _load(self, path: Path, overrides: Sequence[str]) -> ExperimentConfig | None:
        if _refers(path.read_text() if path.is_file() else "") or any(map(_refers, overrides)):
            return None
        raw = read_raw(path, overrides)
        engine = raw.pop("train", None)
        if not isinstance(engine, DictConfig):
            return None
        own = {key: engine.pop(key, None) for key in PLAIN}
        if any(type(value) is not PLAIN[key] for key, value in own.items()):
            return None
        key = json.dumps(OmegaConf.to_container(engine, resolve=False))
        if key not in self._engine:
            section = TrainConfig.update_legacy_settings(engine)
            schema = OmegaConf.structured(TrainConfig)
            self._engine[key] = OmegaConf.to_object(OmegaConf.merge(schema, section))
        train = copy.deepcopy(self._engine[key])
        for name, value in own.items():
            setattr(train, name, value)
        ours = OmegaConf.to_object(OmegaConf.merge(_schema(), raw))
        assert isinstance(ours, _Ours)
        return ExperimentConfig(ours.rung, ours.corpus, train, ours.injection, ours.callbacks)


def _refers(text: str) -> bool:
    """Whether one value may follow from another."""
    return "${" in text.replace("${flash_attn_available:}", "")
