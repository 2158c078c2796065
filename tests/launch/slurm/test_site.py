"""Site profiles: what they refuse, and SLURM's ways to write a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_injection.config import ConfigError
from launch.slurm.site import load_site, parse_time

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
    with pytest.raises(ConfigError, match=r"time must be a time limit as SLURM .*D-HH:MM:SS"):
        parse_time(text, key="time")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partiton: gpu\ntime: 1:00:00", r"unknown key 'partiton'; did you mean 'partition'"),
        ("gpus: 8\ntime: 10", r"unknown key 'gpus'.*The keys are"),
        ("partition: gpu", "time is missing"),
        ("time: 10\npartition: gpu; rm -rf /", "partition must be letters"),
        ("time: 10\nnodes: two", "nodes must be a whole number, got 'two'"),
        ("time: 10\nnodes: 0", "nodes must be larger than 0"),
        ("time: 10\nmfu: 40", "mfu must be in"),
        ("time: 10\nmargin_seconds: nan", "margin_seconds"),
        ("time: 10\nmemory: 10 GB", "memory must be like 900G"),
        ("time: 10\ndirectives: [--time=9]", "--time is written by olmo-ext"),
        # sbatch and srun take a beginning for the whole.
        ('time: 10\ndirectives: ["--sig=USR1@1"]', r"--sig is written by olmo-ext \(--signal\)"),
        ("time: 10\ndirectives: [--no-req]", r"--no-req is written .*\(--no-requeue\)"),
        ("time: 10\nsrun_options: [--ntasks=4]", "srun_options: --ntasks is written by olmo-ext"),
        ("time: 10\nsrun_options: [--kill-on-bad 1]", "--kill-on-bad is written by olmo-ext"),
        ("time: 10\ngpus_per_node: -1", "gpus_per_node must be at least 0, got -1"),
        ("time: 10\nnodes: 2\ntime: 20", "line 3: the key 'time' was there before, in line 1"),
        ("time: 10\ndirectives: [exclusive]", "in its long form"),
        ('time: 10\ndirectives: ["--exclusive\\ntouch x"]', "control characters"),
        ("time: 10\nenvironment: {A B: 1}", "is no variable"),
        ('time: 10\nenvironment: {A: "1\\n2"}', "is no variable"),
        ("time: 10\nenvironment: [A]", "environment must map names"),
        ("time: 10\nsetup: {a: b}", "setup must be a list of lines"),
        ("time: [1]", "time must be one value"),
        ("- a", "maps keys to values"),
        ("{", "is not YAML"),
    ],
)
def test_a_profile_that_cannot_be_meant_is_refused_by_key(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_site(site_file(tmp_path, text))


def test_options_that_begin_as_ours_are_taken(tmp_path: Path) -> None:
    text = "time: 10\ndirectives: [--gpus=8, --mem-per-cpu=2G]\nsrun_options: [--mpi=none]\n"
    assert load_site(site_file(tmp_path, text)).directives == ["--gpus=8", "--mem-per-cpu=2G"]


def test_a_missing_profile_names_where_some_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="configs/sites"):
        load_site(tmp_path / "none.yaml")


def test_a_key_left_empty_is_a_key_left_out(tmp_path: Path) -> None:
    site = load_site(site_file(tmp_path, "time: 10\npartition:\naccount: null\n"))
    assert (site.partition, site.account) == (None, None)
