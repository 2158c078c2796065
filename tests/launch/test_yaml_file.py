"""Our own YAML files: a key that stands twice is refused, and no message is a whole file."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refuses

from data_injection.errors import ConfigError, short
from launch.grid import load_sweep
from launch.plan.cost import read_experiments
from launch.scaling.mixture import load_plan
from launch.yaml_file import read_yaml


def write(folder: Path, text: str) -> Path:
    path = folder / "file.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("axes", "key", "rule"),
    [
        ("{seed: {s1: {train.seed: 1}, s1: {train.seed: 2}}}", "s1", "in line 2"),
        ("{seed: {s1: {}}, seed: {s2: {}}}", "seed", "in line 2"),
        ("{seed: {yes: {}, 1: {}}}", "1", "for YAML the same as 'yes'"),
        ("{seed: {s1: {train.seed: 1, train.seed: 2}}}", "train.seed", "in line 2"),
    ],
)
def test_a_sweep_that_would_lose_cells_is_refused(
    axes: str, key: str, rule: str, tmp_path: Path
) -> None:
    path = write(tmp_path, f"experiments: [a.yaml]\naxes: {axes}\n")
    with refuses(key=f"line 2: the key {key!r}", rule=rule, remedy="rename", of=path):
        load_sweep(path)


def test_a_mixtures_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "tokens: 1e9\ntasks: []\nrungs: []\ntokens: 2e9\n")
    with refuses(key="line 4: the key 'tokens'", rule="in line 1", of=path):
        load_plan(path)


def test_what_a_merge_brings_in_may_be_replaced(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, y: 3}\nd: {'1': 1, 1: 2}\n"
    found = read_yaml(write(tmp_path, text))
    assert found["b"] == {"x": 2, "y": 1}
    assert found["c"] == {"x": 2, "y": 3}
    assert found["d"] == {"1": 1, 1: 2}


@pytest.mark.parametrize("text", ["{", "a: 2024-13-45\n"])
def test_what_is_no_yaml_is_said(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with refuses(key=path, rule="not YAML"):
        read_yaml(path)


def test_a_table_in_a_sweeps_place_is_not_printed_whole(tmp_path: Path) -> None:
    path = write(tmp_path, "step,loss\n" + "1,2.5\n" * 1000)
    for read, given in ((load_sweep, path), (read_experiments, [path])):
        with pytest.raises(ConfigError) as found:
            read(given)
        assert len(str(found.value)) < 300
    assert len(short("x" * 1000)) <= 80
