"""One run as every room of launch knows it: planned, checked and compiled before it is started.

    runs = plan_runs(load_sweep("configs/confirm/single.yaml"), Path("runs/single"))
    runs[0].folder, runs[0].arguments, runs[0].finished

Of a sweep or of an experiment alone, trained on this machine or handed to SLURM. What runs of a
grid share (looks at the corpus, equal plans) is worked out once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from data_injection.errors import ConfigError
from data_injection.files import check_folder, read_json, replace_file
from eval.checkpoints.checkpoint import find_checkpoints
from eval.run import LATER, told_settings, with_config
from launch.grid import Point, Sweep, point_overrides

if TYPE_CHECKING:
    from olmo_ext.build import Stream
    from olmo_ext.config import ExperimentConfig


@dataclass(frozen=True)
class Run:
    """One run, whether it was started or not; a process that trains it is not a part of it."""

    name: str
    folder: Path
    arguments: tuple[str, ...]
    """Of olmo-ext, as one would type them: train FILE --resume --override A ..."""
    num_steps: int
    num_tokens: int
    settings: dict[str, Any] | None = None
    """All that the weights and records of a sweep's run depend on (`olmo_ext.build.run_identity`);
    None for an experiment's own run, and where the corpus is still to be made."""

    experiment: ExperimentConfig | None = field(default=None, repr=False)
    """What is trained, for its cost."""
    stream: Stream | None = field(default=None, repr=False)
    point: Point | None = field(default=None, repr=False)
    corpus: Path | None = None
    """Absolute; None without one."""
    parent: Run | None = field(default=None, repr=False)
    """The run of the sweep that it begins with, at `point.origin`'s step."""

    @property
    def waits(self) -> bool:
        """Whether its parent has not saved yet what it begins with."""
        if self.parent is None or self.parent.finished or self.saved_step:
            return False
        assert self.point is not None
        return not _origin_of(self.point, self.folder.parent).is_dir()

    @property
    def log(self) -> Path:
        return self.folder / "logs" / "train.log"

    @property
    def saved_step(self) -> int:
        """Of the last whole checkpoint; 0 without any."""
        checkpoints = find_checkpoints(self.folder)
        return checkpoints[-1].step if checkpoints else 0

    @property
    def finished(self) -> bool:
        return self.num_steps > 0 and self.saved_step >= self.num_steps

    def check_settings(self) -> None:
        """Raise ConfigError if the folder's run was started with other settings than these."""
        if self.settings is None:
            return
        told = self.log.with_name("settings.json")
        if told.exists():
            before = read_json(told)
            if before != self.settings != with_config(before, self.folder, _keys(self.point)):
                rule = "was trained with other settings than these"
                remedy = "choose another --out, or remove that folder to train it again"
                raise ConfigError(key=self.folder, rule=rule, remedy=remedy)
            return
        told.parent.mkdir(parents=True, exist_ok=True)
        replace_file(told, json.dumps(self.settings, indent=1), sync=True)


class Planner:
    """Plans runs one after the other: loaded, checked and compiled as `olmo-ext train` would.

    Args:
        corpus_comes_later: a corpus that is not there yet is no error. Such a run is checked as far
            as can be without it, and by `olmo-ext train` again when it starts: then too whether its
            folder holds another run, since a run's identity has the corpus in it.
    """

    def __init__(self, *, corpus_comes_later: bool = False) -> None:
        from launch.grid_loader import GridLoader
        from olmo_ext.build import Memo

        self._later, self._memo, self._loader = corpus_comes_later, Memo(), GridLoader()

    def run(self, file: Path, overrides: Sequence[str]) -> Run:
        """An experiment's own; its folder is made absolute."""
        file = file.resolve()
        folder = Path(self._loader.load(file, overrides).train.save_folder).resolve()
        return self._plan(file, [*overrides, f"train.save_folder={json.dumps(str(folder))}"])

    def point(self, sweep: Sweep, point: Point, out: Path, overrides: Sequence[str] = ()) -> Run:
        """A sweep's, in OUT/<labels>."""
        name, folder = f"{sweep.name}-{point.name}", out / point.name
        # Before the point's, so that one of these is seen, and refused, as one by -o is.
        given = [f"train.run_name={name}", f"train.save_folder={_path(folder)}"]
        given += point_overrides(sweep, point)
        if point.origin is not None:
            given.append(f"train.load_path={_path(_origin_of(point, out))}")
        given += overrides
        try:
            return self._plan(point.experiment, given, point=point, own=(name, folder))
        except ConfigError as error:
            raise error.told_of(f"sweep {sweep.name}, run {point.name}") from None

    def _plan(
        self,
        file: Path,
        overrides: list[str],
        *,
        point: Point | None = None,
        own: tuple[str, Path] | None = None,
    ) -> Run:
        from olmo_ext.checks import num_steps
        from olmo_ext.config import load_experiment
        from olmo_ext.prepare import prepare

        experiment = self._loader.load(file, overrides)
        if own is not None:
            _check_own(experiment, *own)
        corpus = Path(experiment.corpus).resolve() if experiment.corpus else None
        try:
            prepared = prepare(experiment, memo=self._memo)
        except FileNotFoundError:
            if not self._later or corpus is None:
                raise
            # What the corpus would fill in stands open; everything else is checked.
            without = [*overrides, "corpus=null", "train.data.paths=[/dev/null]"]
            experiment, prepared = load_experiment(file, without), None
        train, stream, settings = experiment.train, None, None
        steps = num_steps(train) if prepared is None else prepared.stream.num_steps
        if prepared is not None:
            stream = prepared.stream
            also = told_settings(asdict(train), _keys(point))
            settings = prepared.identity | {
                "train": prepared.identity["train"] | also,
                "num_steps": steps,
                "callbacks": json.loads(json.dumps(experiment.callbacks, default=str)),
            }
            if point is not None and point.origin is not None:
                settings["init_from"] = list(point.origin)
        options = [part for override in overrides for part in ("--override", override)]
        folder = Path(train.save_folder) if own is None else own[1]
        arguments = ("train", str(file), "--resume", *options)
        tokens = steps * train.global_train_batch_size * train.model.max_sequence_length
        return Run(
            str(train.run_name), folder, arguments, steps, tokens,
            None if own is None else settings, experiment, stream, point, corpus,
        )  # fmt: skip


def _keys(point: Point | None) -> tuple[str, ...]:
    """What else of the engine's settings a sweep's run depends on; a twin's origin is told by its
    name, for --out may move."""
    begins = () if point is not None and point.origin is not None else ("load_path",)
    return (*LATER, *begins)


def plan_runs(
    sweep: Sweep, out: Path, *, overrides: Sequence[str] = (), corpus_comes_later: bool = False
) -> list[Run]:
    """The sweep's runs, checked by loading and compiling each before any is started.

    Raises:
        ConfigError: a point that cannot run; the message names it.
        FileNotFoundError: a corpus that is not there, unless it comes later.
    """
    check_folder(out, "--out")
    planner = Planner(corpus_comes_later=corpus_comes_later)
    runs = {point.name: planner.point(sweep, point, out, overrides) for point in sweep.points()}
    return [_with_parent(run, runs) for run in runs.values()]


def _with_parent(run: Run, runs: Mapping[str, Run]) -> Run:
    """A run that begins with another's checkpoint, knowing it. Raises ConfigError if it cannot."""
    from olmo_ext.engines.origin import check_parent

    if run.point is None or run.point.origin is None:
        return run
    name, step = run.point.origin
    parent = runs[name]
    assert run.experiment and parent.experiment  # noqa: PT018
    try:
        check_parent(
            run.experiment.train, run.stream, parent.experiment.train, parent.stream, step=step
        )
    except ConfigError as error:
        raise error.told_of(f"run {run.point.name}, which begins with {name}") from None
    tokens = run.num_tokens // run.num_steps * (run.num_steps - step)
    return replace(run, parent=parent, num_tokens=tokens)


def _origin_of(point: Point, out: Path) -> Path:
    """The checkpoint that a point begins with."""
    assert point.origin is not None
    return out / point.origin[0] / f"step{point.origin[1]}-unsharded"


def plan_sweeps(sweeps: Sequence[Sweep], out: Path, *, overrides: Sequence[str] = ()) -> list[Run]:
    """The runs of several sweeps, each in OUT/<its name>. Raises ConfigError as `plan_runs`."""
    names = [sweep.name for sweep in sweeps]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        rule = f"share the names {repeated}, so that their runs would share folders"
        raise ConfigError(key="sweeps", rule=rule, remedy="rename one")
    return [
        run for sweep in sweeps for run in plan_runs(sweep, out / sweep.name, overrides=overrides)
    ]


def _check_own(experiment: ExperimentConfig, name: str, folder: Path) -> None:
    """Raise ConfigError for a setting of all runs that gave them one name or folder."""
    for key, own in {"run_name": name, "save_folder": str(folder)}.items():
        if (got := getattr(experiment.train, key)) != own:
            rule, remedy = f"is each run's own, {own}", "leave it out (--out moves the runs)"
            raise ConfigError(key=f"train.{key}", value=got, rule=rule, remedy=remedy)


def _path(path: Path) -> str:
    """A path as an override: in quotes where YAML would read something else."""
    text = str(path)
    if "${" in text:
        rule = "must not hold ${, which the engine's YAML fills in"
        raise ConfigError(key="--out", value=text, rule=rule)
    try:
        plain = yaml.safe_load(f"value: {text}") == {"value": text}
    except yaml.YAMLError:
        plain = False
    return text if plain else json.dumps(text)
