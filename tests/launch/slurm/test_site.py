"""Site profiles: what they refuse, and SLURM's ways to write a time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from refusals import refuses

from data_injection.errors import NO_VALUE, ConfigError
from launch.slurm.site import TIME_FORMS, load_site, parse_time

SITES = Path(__file__).parent.parent.parent.parent / "configs" / "sites"


def site_file(folder: Path, text: str) -> Path:
    path = folder / "site.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(SITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_committed_profiles_load(path: Path) -> None:
    assert load_site(path).ranks >= 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90 * 60),
        ("90:30", 90 * 60 + 30),
        ("24:00:00", 86400),
        ("1-12", 36 * 3600),
        ("1-12:30", 36 * 3600 + 1800),
        ("2-00:00:01", 2 * 86400 + 1),
    ],
)
def test_every_form_of_a_time_limit_is_read_as_slurm_reads_it(
    text: str, seconds: int, tmp_path: Path
) -> None:
    assert parse_time(text, key="time") == seconds
    # Through YAML too, which would make 86400 of 24:00:00 by itself.
    assert load_site(site_file(tmp_path, f"time: {text}\n")).seconds == seconds


@pytest.mark.parametrize(
    "text",
    [
        "1h",
        "24h",
        "1:2:3:4",
        "-5",
        "1.5",
        "0",
        "00:00:00",
        "1-",
        "12:60",
        "1:60:00",
        "1-1:1:61",
        "UNLIMITED",
        "10 ",
        "1d",
        "1-2-3",
        "5\n6",
        "٣",
    ],
)
def test_any_other_form_is_refused_with_the_forms_that_there_are(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_time(text, key="time")
    assert (refused.value.key, refused.value.value) == ("time", text)
    assert TIME_FORMS in refused.value.rule


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("partiton: gpu\ntime: 1:00:00", "partiton", NO_VALUE),
        ("gpus: 8\ntime: 10", "gpus", NO_VALUE),
        ("partition: gpu", "the settings", NO_VALUE),
        ("time: 10\npartition: gpu; rm -rf /", "partition", "gpu; rm -rf /"),
        ("time: 10\nnodes: two", "nodes", "two"),
        ("time: 10\nnodes: 0", "nodes", 0),
        ("time: 10\nmfu: 40", "mfu", 40),
        ("time: 10\nrdzv_port: 80", "rdzv_port", 80),
        ("time: 10\nlead_seconds: 65536", "lead_seconds", 65536),
        ("time: 10\nmemory: 10 GB", "memory", "10 GB"),
        ("time: 10\ngpu_option: tres", "gpu_option", "tres"),
        ("time: 10\ndirectives: [--time=9]", "directives", "--time=9"),
        # sbatch and srun take a beginning for the whole.
        ('time: 10\ndirectives: ["--sig=USR1@1"]', "directives", "--sig=USR1@1"),
        ("time: 10\ndirectives: [--no-req]", "directives", "--no-req"),
        ("time: 10\nsrun_options: [--ntasks=4]", "srun_options", "--ntasks=4"),
        ("time: 10\nsrun_options: [--kill-on-bad 1]", "srun_options", "--kill-on-bad 1"),
        ("time: 10\ngpus_per_node: -1", "gpus_per_node", -1),
        ("time: 10\ndirectives: [exclusive]", "directives", "exclusive"),
        ('time: 10\ndirectives: ["--exclusive\\ntouch x"]', "directives", "--exclusive\ntouch x"),
        ('time: 10\nactivate: "a\\tb"', "activate", "a\tb"),
        ("time: 10\nenvironment: {A B: 1}", "environment", {"A B": "1"}),
        ('time: 10\nenvironment: {A: "1\\n2"}', "environment", {"A": "1\n2"}),
        ("time: 10\nenvironment: [A]", "environment", ["A"]),
        ("time: 10\nsetup: {a: b}", "setup", {"a": "b"}),
        ("time: [1]", "time", ["1"]),
    ],
)
def test_a_profile_that_cannot_be_meant_is_refused_by_key(
    text: str, key: str, value: object, tmp_path: Path
) -> None:
    path = site_file(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load_site(path)
    assert (refused.value.key, refused.value.value) == (key, value)
    assert str(refused.value).startswith(f"{path}: {key} ")


@pytest.mark.parametrize(
    ("text", "key", "value", "rule", "remedy"),
    [
        ("partiton: gpu\ntime: 10", "partiton", NO_VALUE, "no setting", "did you mean partition"),
        ("gpus: 8\ntime: 10", "gpus", NO_VALUE, "no setting", "there are time, partition"),
        ("partition: gpu", "the settings", NO_VALUE, "lacks time", "no default"),
        ("time: 10\nmargin_seconds: nan", "margin_seconds", math.nan, "at least 0", "leave it out"),
        ("time: 10\ndirectives: [--no-req]", "directives", "--no-req", "--no-requeue", "the key"),
        ("time: 10\nnodes: 2\ntime: 20", "line 3: the key 'time'", NO_VALUE, "line 1", "rename"),
        ("- a", "the settings", ["a"], "keys with values", ""),
    ],
)
def test_a_refusal_says_what_to_do(
    text: str, key: str, value: object, rule: str, remedy: str, tmp_path: Path
) -> None:
    path = site_file(tmp_path, text)
    with refuses(key=key, value=value, rule=rule, remedy=remedy, of=path):
        load_site(path)


def test_a_site_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    path = site_file(tmp_path, "{")
    with refuses(key=path, rule="not YAML"):
        load_site(path)


def test_options_that_begin_as_ours_are_taken(tmp_path: Path) -> None:
    text = "time: 10\ndirectives: [--gpus=8, --mem-per-cpu=2G]\nsrun_options: [--mpi=none]\n"
    assert load_site(site_file(tmp_path, text)).directives == ["--gpus=8", "--mem-per-cpu=2G"]


def test_a_missing_profile_names_where_some_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="configs/sites"):
        load_site(tmp_path / "none.yaml")


def test_a_key_left_empty_is_a_key_left_out(tmp_path: Path) -> None:
    site = load_site(site_file(tmp_path, "time: 10\npartition:\naccount: null\n"))
    assert (site.partition, site.account) == (None, None)
