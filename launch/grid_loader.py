"""The experiments of a grid, loaded faster than one by one and equal to that.

    loader = GridLoader()
    experiment = loader.load("paper/20M.yaml", ["train.seed=2", "injection.tasks.0.name=add"])

Most of loading is checking the engine's section against its 200 keys; the points of a grid differ
in few of them (benchmarks/sweep.py has the time for a hundred).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from olmo.config import TrainConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_injection.config import InjectionConfig
from olmo_ext.config import ExperimentConfig, load_experiment, read_raw

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
        self._sections: dict[tuple[object, ...], Any] = {}
        """(file as it is, which section, its overrides) -> what it becomes, never handed out."""

    def load(self, path: str | Path, overrides: Sequence[str]) -> ExperimentConfig:
        """As `load_experiment` without its corpus, with its errors."""
        path = Path(path)
        try:
            experiment = self._load(path, overrides)
        except OmegaConfBaseException:
            experiment = None  # its words need the whole schema
        if experiment is None:
            return load_experiment(path, list(overrides), corpus=False)
        return experiment

    def _load(self, path: Path, overrides: Sequence[str]) -> ExperimentConfig | None:
        by_key = dict(override.partition("=")[::2] for override in overrides)
        # Where a key is set twice the last one has it, as when they are applied in turn.
        own = {name: by_key[f"train.{name}"] for name in PLAIN if f"train.{name}" in by_key}
        if "train" in by_key or not path.is_file():
            return None
        file = (path.resolve(), path.stat().st_mtime_ns, path.stat().st_size)
        rung, others = self._once((file, "ours"), lambda: _describe_ours(path))
        rung = by_key.get("rung", rung)
        if others is None or not isinstance(rung, str) or any(map(_refers, overrides)):
            return None
        values = {name: OmegaConf.create(f"value: {text}").value for name, text in own.items()}
        values["rung"] = OmegaConf.create(f"value: {rung}").value
        if any(type(value) is not PLAIN.get(name, str) for name, value in values.items()):
            return None
        engine = [o for o in overrides if o.startswith("train.") and o.split("=")[0][6:] not in own]
        ours = [o for o in overrides if not o.startswith(("train.", "rung="))]
        train = self._once((file, "engine", *engine), lambda: _engine_section(path, engine))
        rest = self._once((others, *ours), lambda: _our_sections(path, ours))
        train, rest = copy.deepcopy(train), copy.deepcopy(rest)
        rest.rung = values.pop("rung")
        for name, value in values.items():
            setattr(train, name, value)
        return ExperimentConfig(rest.rung, rest.corpus, train, rest.injection, rest.callbacks)

    def _once(self, key: tuple[object, ...], make: Callable[[], Any]) -> Any:
        if key not in self._sections:
            self._sections[key] = make()
        return self._sections[key]


def _describe_ours(path: Path) -> tuple[object, str | None]:
    """A file's rung and, as text, its other sections of ours, which the rungs of a ladder share.

    None for a file whose values follow from one another, or whose engine's section is none.
    """
    raw = read_raw(path, ())
    if not isinstance(raw, DictConfig) or _refers(path.read_text()):
        return None, None
    if not isinstance(raw.get("train"), DictConfig):
        return None, None
    ours = OmegaConf.to_container(raw, resolve=False)
    assert isinstance(ours, dict)
    del ours["train"]
    return ours.pop("rung", None), repr(ours)


def _engine_section(path: Path, overrides: Sequence[str]) -> TrainConfig:
    section = TrainConfig.update_legacy_settings(read_raw(path, overrides).train)
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), section))


def _our_sections(path: Path, overrides: Sequence[str]) -> _Ours:
    raw = read_raw(path, overrides, without="train")
    ours = OmegaConf.to_object(OmegaConf.merge(_schema(), raw))
    assert isinstance(ours, _Ours)
    return ours


def _refers(text: str) -> bool:
    """Whether one value may follow from another."""
    return "${" in text.replace("${flash_attn_available:}", "")
