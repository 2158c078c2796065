"""What a sweep is: a grid of points from one YAML. Its runs are planned in launch/runs.py.

sweep = load_sweep("configs/confirm/single.yaml")
[point.name for point in sweep.points()]

name: single                          # of the sweep; its runs are single-w16-r8-s1, ...
experiments: [../quickstart.yaml]     # relative to this file; several stand for one more axis
set: {train.max_duration: 1200}       # for all runs
axes:                                 # every combination is a run, named by its labels
  width: {w16: {rung: w16, train.model.d_model: 16}, w32: {...}}
  seed: {s1: {train.seed: 1}}
  twin:                               # one run up to step 800, two from there
    burst: {}
    none: {init_from: {twin: burst, step: 800}, injection.tasks: []}
only: [w16-s1-burst]                  # of the grid, these alone; by default all
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from data_injection.errors import ConfigError
from launch.yaml_file import read_yaml
from olmo_ext.shipped import locate, shipped

KEYS = ("name", "experiments", "set", "axes", "only")
ORIGIN = "init_from"
"""Among a label's settings: labels of the run to begin with, and after which of its steps."""

_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._]*")

Settings = Mapping[str, Any]
"""Dotted keys of an experiment and their values."""


@dataclass(frozen=True)
class Point:
    """One point of a sweep's grid: its labels, its experiment file and what it sets there."""

    labels: tuple[str, ...]
    experiment: Path
    settings: dict[str, Any]
    origin: tuple[str, int] | None = None
    """The point that it begins with, by name, and after how many of its steps (`init_from`)."""

    @property
    def name(self) -> str:
        return "-".join(self.labels)


@dataclass(frozen=True)
class Sweep:
    """A grid of runs: every experiment with every combination of the axes' settings."""

    name: str
    experiments: tuple[Path, ...]
    axes: Mapping[str, Mapping[str, Settings]]
    """Axis -> label -> settings. A label is a part of the run's name: letters, digits, . and _."""
    settings: Settings = field(default_factory=dict)
    """For all runs; an axis' settings go over them."""
    only: tuple[str, ...] | None = None
    """The labels, joined by "-", of the points that are meant; None: all."""

    def points(self) -> list[Point]:
        """The grid, the last axis running fastest. Raises ConfigError for names that cannot be."""
        stems = [path.stem for path in self.experiments]
        several = len(stems) > 1
        parts = [label for axis in self.axes.values() for label in axis]
        for label in [self.name, *parts, *(stems if several else ())]:
            if not _LABEL.fullmatch(str(label)):
                rule = "must be letters, digits, . and _ only, not . first: it becomes a part of "
                rule += "run names and folders"
                raise ConfigError(key=f"sweep {self.name}: a label", value=label, rule=rule)
        for name, axis in self.axes.items():
            # Some file systems take w and W for one folder.
            if not axis or len({str(label).lower() for label in axis}) < len(axis):
                key = f"sweep {self.name}: axes.{name}"
                rule = "must have labels, all different as text (in lower case too)"
                raise ConfigError(key=key, value=list(axis), rule=rule)
        if len({stem.lower() for stem in stems}) < len(stems):
            rule = "must differ in their file names, which become names of folders"
            key = f"sweep {self.name}: experiments"
            raise ConfigError(key=key, value=stems, rule=rule, remedy="rename one")
        points = []
        for experiment in self.experiments:
            for choice in product(*(axis.items() for axis in self.axes.values())):
                labels = ((experiment.stem,) if several else ()) + tuple(str(k) for k, _ in choice)
                settings = dict(self.settings)
                for _, chosen in choice:
                    for key, value in chosen.items():
                        settings.pop(key, None)  # an axis' settings come after the sweep's
                        settings[key] = value
                own = dict(zip(self.axes, labels[several:], strict=True))
                origin = self._origin(settings.pop(ORIGIN, None), own, labels[:several])
                points.append(Point(labels, experiment, settings, origin))
        by_name = {point.name: point for point in points}
        for point in points:
            before = by_name[point.origin[0]].origin if point.origin is not None else None
            if before is not None and point.origin is not None and before[1] >= point.origin[1]:
                rule = f"must be above {before[1]}, where {point.origin[0]} begins with {before[0]}"
                key = f"sweep {self.name}: {ORIGIN}.step"  # in a circle it is never
                raise ConfigError(key=key, value=point.origin[1], rule=rule)
        if self.only is None:
            return points
        if (unknown := sorted(set(self.only) - set(by_name))) or not self.only:
            rule = f"must name points of the grid, such as {points[0].name}"
            raise ConfigError(key=f"sweep {self.name}: only", value=unknown, rule=rule)
        for name in self.only:
            if (origin := by_name[name].origin) is not None and origin[0] not in self.only:
                rule = f"must name {origin[0]} too, which {name} begins with"
                raise ConfigError(key=f"sweep {self.name}: only", value=list(self.only), rule=rule)
        return [point for name, point in by_name.items() if name in self.only]

    def _origin(
        self, asked: Any, own: dict[str, str], experiment: tuple[str, ...]
    ) -> tuple[str, int] | None:
        """Name and step of the point that has the labels asked for and else one's own."""
        if asked is None:
            return None
        others = {**asked} if isinstance(asked, dict) else {}
        step = others.pop("step", None)
        labels = own | {axis: str(label) for axis, label in others.items()}
        known = all(label in map(str, self.axes.get(axis, ())) for axis, label in labels.items())
        if not (others and known and type(step) is int and step > 0):
            rule = "must give labels of the sweep's axes and a step above 0 of the run with them"
            remedy, key = "for example {burst: burst, step: 800}", f"sweep {self.name}: {ORIGIN}"
            raise ConfigError(key=key, value=asked, rule=rule, remedy=remedy)
        return "-".join((*experiment, *labels.values())), step


def load_sweep(path: str | Path) -> Sweep:
    """Read a sweep's YAML. Raises FileNotFoundError, or ConfigError naming key and remedy."""
    path = locate(path)
    if not path.is_file():
        raise FileNotFoundError(f"no sweep file {path}; see {shipped('configs/confirm')} for some")
    raw = read_yaml(path)
    if not isinstance(raw, dict) or set(raw) - set(KEYS):
        unknown = sorted(set(raw) - set(KEYS), key=str) if isinstance(raw, dict) else raw
        rule = f"must have the keys {', '.join(KEYS)} of a sweep"
        raise ConfigError(key=path, value=unknown, rule=rule)
    files, axes, settings = raw.get("experiments"), raw.get("axes"), raw.get("set") or {}
    if not isinstance(files, list) or not files:
        rule = "must list at least one experiment file"
        raise ConfigError(key=f"{path}: experiments", value=files, rule=rule)
    if not isinstance(settings, dict):
        rule = "must map dotted keys to values"
        raise ConfigError(key=f"{path}: set", value=settings, rule=rule)
    if not isinstance(axes, dict) or not axes:
        rule = "must map names to {label: settings}"
        raise ConfigError(key=f"{path}: axes", value=axes, rule=rule)
    for axis, labels in axes.items():
        if not isinstance(labels, dict) or not all(isinstance(s, dict) for s in labels.values()):
            rule = "must map labels to settings, for example {s1: {train.seed: 1}}"
            raise ConfigError(key=f"{path}: axes.{axis}", value=labels, rule=rule)
    only = raw.get("only")
    if only is not None and not (isinstance(only, list) and all(isinstance(o, str) for o in only)):
        rule = "must list points of the grid as w16-s1"
        raise ConfigError(key=f"{path}: only", value=only, rule=rule)
    experiments = tuple((path.parent / str(file)).resolve() for file in files)
    name = str(raw.get("name") or path.stem)
    return Sweep(name, experiments, axes, settings, None if only is None else tuple(only))


def is_sweep(path: Path) -> bool:
    """Whether a YAML is a sweep's, and not an experiment's."""
    raw = read_yaml(path) if path.is_file() else None
    return isinstance(raw, dict) and ("experiments" in raw or "axes" in raw)


def point_overrides(sweep: Sweep, point: Point) -> list[str]:
    """What a point sets in its experiment, as on the command line."""
    return [
        f"{key}={_as_text(value, key=key, sweep=sweep.name)}"
        for key, value in point.settings.items()
    ]


def _as_text(value: Any, *, key: str, sweep: str) -> str:
    """A setting as on the command line. YAML's dates and binary have no such form."""
    try:
        return json.dumps(value)
    except TypeError:
        rule, remedy = "must be text, a number, a list or a mapping", "put it in quotes"
        key = f"sweep {sweep}: {key}"
        raise ConfigError(key=key, value=value, rule=rule, remedy=remedy) from None
