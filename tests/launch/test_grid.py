"""A grid is planned in shared parts, and equals its points planned one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from refusals import Words, refuses

import data_injection.plan
import olmo_ext.build
from data_injection.errors import ConfigError
from launch.grid import Sweep, load_sweep
from launch.grid_loader import GridLoader
from launch.runs import plan_runs
from olmo_ext.build import compile_stream, run_identity
from olmo_ext.config import load_experiment

Write = Callable[..., Path]

CONFIGS = Path(__file__).parent.parent.parent / "configs"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often plans were compiled and token files looked at."""
    counts = {"plans": 0, "looks": 0}

    def counting(name: str, function: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    for name, attribute in (("plans", "compile_plan"), ("looks", "check_memmaps")):
        function = getattr(olmo_ext.build, attribute)
        monkeypatch.setattr(olmo_ext.build, attribute, counting(name, function))
    assert olmo_ext.build.compile_plan is not data_injection.plan.compile_plan
    return counts


def hundred_cells(experiment: Path) -> Sweep:
    axes = {
        "width": {f"w{w}": {"rung": f"w{w}", "train.model.d_model": w} for w in (8, 16, 24, 32)},
        "rate": {f"r{n}": {"injection.tasks.0.schedule.rate": f"1/{n}"} for n in range(1, 6)},
        "seed": {f"s{n}": {"train.seed": n} for n in range(5)},
    }
    return Sweep("demo", (experiment,), axes)


def test_a_hundred_cells_of_five_plans_compile_five_and_look_at_the_corpus_once(
    write_experiment: Write, tmp_path: Path, counted: dict[str, int]
) -> None:
    runs = plan_runs(hundred_cells(write_experiment()), tmp_path / "out")
    assert len(runs) == 100
    # Sizes and model seeds share a plan; the row order, and with it the stream, is each seed's own.
    assert counted == {"plans": 5, "looks": 1}
    assert len({run.settings["plan_hash"] for run in runs}) == 5
    assert {run.settings["data_seed"] for run in runs} == set(range(5))


def test_a_grids_runs_are_those_planned_one_by_one(write_experiment: Write, tmp_path: Path) -> None:
    for run in plan_runs(hundred_cells(write_experiment()), tmp_path / "out")[::17]:
        overrides = [part for part in run.arguments[3:] if part != "--override"]
        alone = load_experiment(run.arguments[1], overrides)
        assert alone == run.experiment
        stream = compile_stream(alone, manifest=None)
        assert run_identity(alone, stream).items() <= run.settings.items()
        assert stream.num_steps == run.num_steps


EXPERIMENTS = [
    path
    for path in sorted(CONFIGS.glob("olmo_4M_to_4B/*/*.yaml"))
    if "experiments" not in yaml.safe_load(path.read_text())
]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=str)
def test_a_grid_loads_each_file_as_it_is_loaded_alone(path: Path) -> None:
    loader = GridLoader()
    for overrides in (
        ["train.seed=4", "train.run_name=a", "train.save_folder=b"],
        ["train.seed=5", "injection.tasks.0.schedule.rate=1/7", "callbacks.task_eval.every=3"],
        ["train.run_name=c", "train.fsdp.wrapping_strategy=by_block", "rung=x"],
        ["train.save_folder=runs/${train.run_name}", "train.run_name=d"],
        ["injection.tasks=[{name: x}]", "train.seed=null"],
    ):
        assert loaded(loader.load, path, overrides) == loaded(
            partial(load_experiment, corpus=False), path, overrides
        )


def loaded(load: Callable, path: Path, overrides: list[str]) -> object:
    """The experiment, or the error's words."""
    try:
        return load(path, overrides)
    except ConfigError as error:
        return str(error)


@pytest.mark.parametrize(
    ("override", "key", "rule"),
    [
        ("train.sed=1", "train.sed", ("Key 'sed' not in 'TrainConfig'", "'seed'")),
        ("injecton.seed=1", "injecton", ("Key 'injecton' not in", "'injection'")),
        ("train.seed=x", "train.seed", "Value 'x'"),
        (
            "injection.tasks.0.train_fraction=abc",
            "injection.tasks[0].train_fraction",
            "Value 'abc'",
        ),
        ("train=3", "experiment", "int is not a subclass of TrainConfig"),
    ],
)
def test_a_wrong_key_in_a_grid_is_said_as_alone(
    override: str, key: str, rule: Words, write_experiment: Write
) -> None:
    path = write_experiment()
    with refuses(key=key, rule=rule) as alone:
        load_experiment(path, [override])
    with pytest.raises(ConfigError) as grid:
        GridLoader().load(path, [override])
    assert str(grid.value) == str(alone.value)


def test_a_file_that_changed_is_read_again(write_experiment: Write) -> None:
    assert load_experiment(write_experiment()).train.max_duration == 12
    changed = write_experiment(lambda config: config["train"].update(max_duration=345))
    assert load_experiment(changed).train.max_duration == 345


def test_only_names_points_of_the_grid(tmp_path: Path) -> None:
    text = "experiments: [a.yaml]\naxes: {s: {s1: {}, s2: {}}, t: {t1: {}, t2: {}}}\n"
    path = tmp_path / "sweep.yaml"
    path.write_text(text + "only: [s2-t1, s1-t2]\n")
    assert [point.name for point in load_sweep(path).points()] == ["s1-t2", "s2-t1"]
    for where, only in (("sweep sweep", ["s3-t1"]), ("sweep sweep", []), (path, 3)):
        path.write_text(text + f"only: {only}\n")
        with refuses(key=f"{where}: only", value=only, rule="points of the grid"):
            load_sweep(path).points()
