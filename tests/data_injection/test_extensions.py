"""Families and callbacks that others wrote are found by import path and by entry point."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from refusals import refuses

from data_injection.config import InjectionConfig, ScheduleConfig, TaskConfig
from data_injection.errors import ConfigError
from data_injection.extensions import origin, origins, remembering
from data_injection.plan import compile_plan
from data_injection.tasks.base import Task
from data_injection.tasks.build import TASKS, build_tasks, find_family
from data_injection.tasks.comparison import Comparison

SOURCE = """
import numpy as np
from data_injection.tasks.base import Task
from data_injection.tasks.comparison import Comparison

class Canary(Task):
    num_labels = 1
    def examples(self):
        return np.stack([self.symbols, np.full(len(self.symbols), self.labels[0])], axis=1)

class Variant(Comparison):
    pass

class Incomplete(Task):
    pass

number = 7
"""


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package `canary_pkg` 1.2 with the entry point `canary`, and its folder."""
    (tmp_path / "canary_pkg.py").write_text(SOURCE)
    info = tmp_path / "canary_dist-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: canary-dist\nVersion: 1.2\n")
    (info / "top_level.txt").write_text("canary_pkg\n")
    (info / "entry_points.txt").write_text("[olmo_ext.tasks]\ncanary = canary_pkg:Canary\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("canary_pkg", None)


def config(family: str) -> InjectionConfig:
    schedule = ScheduleConfig(rate=1)
    return InjectionConfig(
        tasks=[TaskConfig(name="a", family=family, num_symbols=8, schedule=schedule)]
    )


def plan_of(family: str):
    geometry = {"batch_size": 4, "seq_len": 16, "epoch_rows": 8}
    return compile_plan(config(family), **geometry, vocab_size=50, eos_token_id=0)


@pytest.mark.parametrize("family", ["canary_pkg:Canary", "canary"])
def test_a_strangers_family_is_found_and_keeps_the_name_that_finds_it(
    canary: Path, family: str
) -> None:
    (task,) = build_tasks(config(family), vocab_size=50)
    assert task.family == family
    assert task.tokens.shape == (8, 2)
    plan = plan_of(family)
    assert plan.canonical["tasks"]["a"]["family"] == family
    assert plan.hash == plan_of(family).hash


def test_a_file_in_the_working_folder_is_found_last(
    canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "my_tasks.py").write_text(SOURCE)
    (here / "canary_pkg.py").write_text("raise RuntimeError('hides what is installed')")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(here)
    assert find_family("my_tasks:Canary", key="k").__name__ == "Canary"
    assert find_family("canary_pkg:Canary", key="k").__name__ == "Canary"


@pytest.mark.parametrize(
    ("family", "rule", "remedy"),
    [
        ("comparisn", "must be one of", "did you mean 'comparison'?"),
        ("canari", "must be one of", "did you mean 'canary'?"),
        ("xyz", "'package.module:Class'", "olmo_ext.tasks"),
        ("canary_pkg:", "must be an import path", "mypkg.tasks:Canary"),
        ("no_such_pkg.tasks:A", "No module named 'no_such_pkg'", "PYTHONPATH"),
        ("canary_pkg.tasks:A", "canary_pkg", "PYTHONPATH"),
        ("canary_pkg:Canari", "does not define", "did you mean 'Canary'?"),
        ("canary_pkg:zzz", "does not define", "'Canary', 'Comparison'"),
        ("canary_pkg:number", "must be a subclass of data_injection.tasks.base.Task", "derive"),
        ("pathlib:Path", "must be a subclass of data_injection.tasks.base.Task", "derive"),
        ("canary_pkg:Incomplete", "complete", "examples"),
        ("broken_pkg:A", "ZeroDivisionError", "mend broken_pkg"),
        ("needs_pkg:A", "No module named 'no_such_pkg'", "mend needs_pkg"),
    ],
)
def test_what_cannot_be_used_is_refused_with_key_value_and_remedy(
    canary: Path, family: str, rule: str, remedy: str
) -> None:
    (canary / "broken_pkg.py").write_text("1 / 0")
    (canary / "needs_pkg.py").write_text("import no_such_pkg")
    with pytest.raises(ConfigError) as caught:
        build_tasks(config(family), vocab_size=50)
    error = caught.value
    assert (error.key, error.value) == ("injection.tasks[0].family", family)
    assert rule in error.rule
    assert remedy in error.remedy


def test_an_entry_point_of_two_packages_is_refused(canary: Path) -> None:
    other = canary / "other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[olmo_ext.tasks]\ncanary = canary_pkg:Variant\n")
    with pytest.raises(ConfigError) as caught:
        find_family("canary", key="k")
    assert "canary_pkg:Canary" in caught.value.rule
    assert "canary_pkg:Variant" in caught.value.rule


def test_a_family_of_ours_comes_before_an_entry_point_of_its_name(canary: Path) -> None:
    points = canary / "canary_dist-1.2.dist-info" / "entry_points.txt"
    points.write_text("[olmo_ext.tasks]\ncomparison = canary_pkg:Canary\n")
    assert find_family("comparison", key="k") is Comparison


def test_a_variant_of_our_family_does_not_go_under_its_name(canary: Path) -> None:
    assert find_family("canary_pkg:Variant", key="k").family == "canary_pkg:Variant"


def test_the_origin_of_a_strangers_class_names_package_and_version(canary: Path) -> None:
    assert origin(find_family("canary", key="k")) == {
        "path": "canary_pkg:Canary",
        "package": "canary-dist",
        "version": "1.2",
    }
    assert all(origin(family) is None for family in TASKS.values())

    class Local(Task):
        def examples(self) -> np.ndarray:
            return np.zeros((2, 1))

    found = origin(Local)
    assert found is not None
    assert (found["package"], found["version"]) == (
        Local.__module__.partition(".")[0],
        None,
    )


def test_what_is_missing_is_told_with_the_package_that_had_it(canary: Path) -> None:
    known = origins({"canary": find_family("canary", key="k"), "comparison": Comparison})
    (one,) = known
    assert (one["name"], one["package"], one["version"]) == ("canary", "canary-dist", "1.2")
    with pytest.raises(ConfigError) as caught, remembering(known):
        raise ConfigError(key="k", value="canary", rule="is not there", remedy="look")
    assert (caught.value.key, caught.value.value) == ("k", "canary")
    assert "canary_pkg:Canary of canary-dist==1.2" in caught.value.remedy
    with refuses(key="k", value="other", remedy="look") as caught, remembering(known):
        raise ConfigError(key="k", value="other", rule="is not there", remedy="look")
    assert caught.value.remedy == "look"
