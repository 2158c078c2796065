"""What a sweep is: a grid of runs from one YAML, each loaded and compiled before any is started.

    runs = plan_runs(load_sweep("configs/confirm/single.yaml"), Path("runs/single"))

    name: single                          # of the sweep; its runs are single-w16-r8-s1, ...
    experiments: [../quickstart.yaml]     # relative to this file; several stand for one more axis
    set: {train.max_duration: 1200}       # for all runs
    axes:                                 # every combination is a run, named by its labels
      width: {w16: {rung: w16, train.model.d_model: 16}, w32: {...}}
      seed: {s1: {train.seed: 1}}
    only: [w16-s1]                        # of the grid, these alone; by default all

What runs of a grid share (looks at the corpus, equal plans) is worked out once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from data_injection.config import ConfigError
from data_injection.files import replace_file
from eval.checkpoints.checkpoint import find_checkpoints
from launch.yaml_file import read_yaml, short
from olmo_ext.shipped import locate, shipped

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

    from olmo_ext.build import Stream
    from olmo_ext.config import ExperimentConfig

KEYS = ("name", "experiments", "set", "axes", "only")
_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._]*")
_STEP = re.compile(r"step (\d+)/(\d+)")

Settings = Mapping[str, Any]
"""Dotted keys of an experiment and their values."""


@dataclass(frozen=True)
class Point:
    """One point of a sweep's grid: its labels, its experiment file and what it sets there."""

    labels: tuple[str, ...]
    experiment: Path
    settings: dict[str, Any]

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
                raise ConfigError(
                    f"sweep {self.name}: {label!r} becomes a part of run names and folders; use "
                    "letters, digits, . and _ only, not . first"
                )
        for name, axis in self.axes.items():
            # Some file systems take w and W for one folder.
            if not axis or len({str(label).lower() for label in axis}) < len(axis):
                raise ConfigError(
                    f"sweep {self.name}: axes.{name} must have labels, all different as text (in "
                    f"lower case too), got {list(axis)}"
                )
        if len({stem.lower() for stem in stems}) < len(stems):
            raise ConfigError(
                f"sweep {self.name}: experiments {stems} share a file name, so that their runs "
                "would share a folder; rename one"
            )
        points = []
        for experiment in self.experiments:
            for choice in product(*(axis.items() for axis in self.axes.values())):
                labels = ((experiment.stem,) if several else ()) + tuple(str(k) for k, _ in choice)
                settings = dict(self.settings)
                for _, chosen in choice:
                    for key, value in chosen.items():
                        settings.pop(key, None)  # an axis' settings come after the sweep's
                        settings[key] = value
                points.append(Point(labels, experiment, settings))
        if self.only is None:
            return points
        by_name = {point.name: point for point in points}
        if unknown := sorted(set(self.only) - set(by_name)) or len(self.only) < 1:
            raise ConfigError(
                f"sweep {self.name}: only must name points of the grid, such as {points[0].name}, "
                f"got {unknown if isinstance(unknown, list) else list(self.only)}"
            )
        return [point for name, point in by_name.items() if name in self.only]


def load_sweep(path: str | Path) -> Sweep:
    """Read a sweep's YAML. Raises FileNotFoundError, or ConfigError naming key and remedy."""
    path = locate(path)
    if not path.is_file():
        raise FileNotFoundError(f"no sweep file {path}; see {shipped('configs/confirm')} for some")
    raw = read_yaml(path)
    if not isinstance(raw, dict) or set(raw) - set(KEYS):
        unknown = sorted(set(raw) - set(KEYS), key=str) if isinstance(raw, dict) else raw
        raise ConfigError(f"{path}: a sweep has the keys {', '.join(KEYS)}; got {short(unknown)}")
    files, axes, settings = raw.get("experiments"), raw.get("axes"), raw.get("set") or {}
    if not isinstance(files, list) or not files:
        raise ConfigError(f"{path}: experiments must list at least one experiment file")
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: set must map dotted keys to values, got {short(settings)}")
    if not isinstance(axes, dict) or not axes:
        raise ConfigError(f"{path}: axes must map names to {{label: settings}}, got {short(axes)}")
    for axis, labels in axes.items():
        if not isinstance(labels, dict) or not all(isinstance(s, dict) for s in labels.values()):
            raise ConfigError(
                f"{path}: axes.{axis} must map labels to settings, for example "
                f"{{s1: {{train.seed: 1}}}}, got {short(labels)}"
            )
    only = raw.get("only")
    if only is not None and not (isinstance(only, list) and all(isinstance(o, str) for o in only)):
        raise ConfigError(f"{path}: only must list points of the grid as w16-s1, got {short(only)}")
    experiments = tuple((path.parent / str(file)).resolve() for file in files)
    name = str(raw.get("name") or path.stem)
    return Sweep(name, experiments, axes, settings, None if only is None else tuple(only))


@dataclass
class Run:
    """One run of a sweep: its folder, its command and, while it lives, its process."""

    name: str
    folder: Path
    arguments: list[str]
    """Of olmo-ext, as one would type them."""
    num_steps: int
    num_tokens: int
    settings: dict[str, Any]
    """All that the run's weights and records depend on; see `olmo_ext.build.run_identity`."""

    experiment: ExperimentConfig | None = field(default=None, repr=False)
    """What is trained, for its cost."""
    stream: Stream | None = field(default=None, repr=False)
    point: Point | None = field(default=None, repr=False)

    process: ForkServerProcess | None = field(default=None, repr=False)
    """Of its latest start."""
    started_from: tuple[int, int] = (0, 0)
    """At its latest start: the step of its last checkpoint, and bytes of its log."""

    @property
    def log(self) -> Path:
        return self.folder / "logs" / "train.log"

    @property
    def finished(self) -> bool:
        checkpoints = find_checkpoints(self.folder)
        return bool(checkpoints) and checkpoints[-1].step >= self.num_steps

    def check_settings(self) -> None:
        """Raise ConfigError if the folder's run was started with other settings than these."""
        told = self.log.with_name("settings.json")
        if told.exists():
            if json.loads(told.read_text()) != self.settings:
                raise ConfigError(
                    f"{self.folder} was trained with other settings than these; "
                    "choose another --out, or remove that folder to train it again"
                )
            return
        told.parent.mkdir(parents=True, exist_ok=True)
        replace_file(told, json.dumps(self.settings, indent=1), sync=True)

    def note_start(self) -> None:
        """What is there already is an earlier start's: steps after its last save are lost."""
        checkpoints = find_checkpoints(self.folder)
        size = self.log.stat().st_size if self.log.exists() else 0
        self.started_from = (checkpoints[-1].step if checkpoints else 0, size)

    def step(self) -> int:
        """The last step that the log tells of since the latest start, or where that began."""
        begun, size = self.started_from
        if not self.log.exists():
            return begun
        with self.log.open("rb") as file:
            file.seek(size)
            found = _STEP.findall(file.read().decode(errors="replace"))
        return int(found[-1][0]) if found else begun


def plan_runs(sweep: Sweep, out: Path, *, overrides: Sequence[str] = ()) -> list[Run]:
    """The sweep's runs, checked by loading and compiling each before any is started.

    Raises:
        ConfigError: a point that cannot run; the message names it.
    """
    from launch.grid_loader import GridLoader
    from olmo_ext.build import Memo
    from olmo_ext.prepare import prepare

    runs, memo, loader = [], Memo(), GridLoader()
    for point in sweep.points():
        name, folder = f"{sweep.name}-{point.name}", out / point.name
        given = run_overrides(sweep, point, out, overrides)
        try:
            experiment = loader.load(point.experiment, given)
            check_own(experiment, name, folder)
            prepared = prepare(experiment, memo=memo)
        except ConfigError as error:
            raise ConfigError(f"sweep {sweep.name}, run {point.name}: {error}") from None
        stream = prepared.stream
        settings = prepared.identity | {
            "num_steps": stream.num_steps,
            "callbacks": json.loads(json.dumps(experiment.callbacks, default=str)),
        }
        tokens = stream.num_positions * experiment.train.model.max_sequence_length
        arguments = ["train", str(point.experiment), "--resume"]
        arguments += [part for override in given for part in ("--override", override)]
        run = Run(name, folder, arguments, stream.num_steps, tokens, settings)
        run.experiment, run.stream, run.point = experiment, stream, point
        runs.append(run)
    return runs


def run_overrides(
    sweep: Sweep, point: Point, out: Path, overrides: Sequence[str] = ()
) -> list[str]:
    """All that a point's run sets in its experiment, as on the command line."""
    own = [
        f"train.run_name={sweep.name}-{point.name}",
        f"train.save_folder={_path(out / point.name)}",
    ]
    return [*point_overrides(sweep, point), *own, *overrides]


def point_overrides(sweep: Sweep, point: Point) -> list[str]:
    """What a point sets in its experiment, as on the command line."""
    return [
        f"{key}={_as_text(value, key=key, sweep=sweep.name)}"
        for key, value in point.settings.items()
    ]


def check_own(experiment: ExperimentConfig, name: str, folder: Path) -> None:
    """Raise ConfigError for a setting of all runs that gave them one name or folder."""
    train = experiment.train
    for key, own, got in (
        ("train.run_name", name, train.run_name),
        ("train.save_folder", str(folder), train.save_folder),
    ):
        if got != own:
            raise ConfigError(
                f"{key} is each run's own, {own}, got {got}; leave it out (--out moves the runs)"
            )


def _path(path: Path) -> str:
    """A path as an override: in quotes where YAML would read something else."""
    text = str(path)
    if "${" in text:
        raise ConfigError(f"--out must not hold ${{, which the engine's YAML fills in, got {text}")
    try:
        plain = yaml.safe_load(f"value: {text}") == {"value": text}
    except yaml.YAMLError:
        plain = False
    return text if plain else json.dumps(text)


def _as_text(value: Any, *, key: str, sweep: str) -> str:
    """A setting as on the command line. YAML's dates and binary have no such form."""
    try:
        return json.dumps(value)
    except TypeError:
        raise ConfigError(
            f"sweep {sweep}: {key} must be text, a number, a list or a mapping, got {value!r}; "
            "put it in quotes"
        ) from None


def plan_sweeps(sweeps: Sequence[Sweep], out: Path, *, overrides: Sequence[str] = ()) -> list[Run]:
    """The runs of several sweeps, each in OUT/<its name>. Raises ConfigError as `plan_runs`."""
    names = [sweep.name for sweep in sweeps]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"sweeps share the names {repeated}, so that their runs would share folders; rename one"
        )
    return [
        run for sweep in sweeps for run in plan_runs(sweep, out / sweep.name, overrides=overrides)
    ]
