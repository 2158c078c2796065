"""submit: what is checked before anything is written, and what a dry run shows."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from refusals import refuses
from rich.console import Console

from data_injection.errors import NO_VALUE
from launch.slurm.jobs import Job, Queue, append_event, events_file, read_events
from launch.slurm.lead import measured_save, reckon_lead
from launch.slurm.site import Cluster
from launch.slurm.submit import submit
from olmo_ext.config import load_experiment

Write = Callable[..., Path]

SITE = Cluster(time="10", ranks_per_node=2)


def shown(source: Path, *, site: Cluster = SITE, **options: object) -> str:
    """What a dry run prints."""
    out = io.StringIO()
    settings = {"out": None, "dry_run": True} | options
    submit(source, site=site, console=Console(file=out, width=100), **settings)  # type: ignore[arg-type]
    return out.getvalue()


def write_sweep(folder: Path, axes: str = "{seed: {s1: {train.seed: 1}, s2: {}}}") -> Path:
    path = folder / "grid.yaml"
    path.write_text(f"experiments: [experiment.yaml]\naxes: {axes}\n")
    return path


@pytest.fixture
def without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH that holds no SLURM, whatever this machine has."""
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.mark.usefixtures("without_slurm")
def test_a_dry_run_needs_no_slurm_and_writes_nothing(
    write_experiment: Write, tmp_path: Path
) -> None:
    source = write_experiment()
    before = sorted(tmp_path.rglob("*"))
    text = shown(source, overrides=["train.seed=3"])
    assert sorted(tmp_path.rglob("*")) == before
    assert f"==> {tmp_path}/run/logs/slurm/1/train.sbatch <==\n#!/bin/bash\n" in text
    assert f"train {source} --resume" in text
    assert "--override train.seed=3" in text
    assert f'train.save_folder="{tmp_path}/run"' in text
    assert text.endswith("nothing was written or submitted\n")


@pytest.mark.usefixtures("without_slurm")
def test_without_sbatch_a_submission_is_refused_before_it_writes(
    write_experiment: Write, tmp_path: Path
) -> None:
    source = write_experiment()
    before = sorted(tmp_path.rglob("*"))
    with refuses(key="sbatch", rule="PATH", remedy="--dry-run"):
        shown(source, dry_run=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sweep_is_an_array_of_what_is_not_finished(
    write_experiment: Write, tmp_path: Path
) -> None:
    write_experiment()
    sweep = write_sweep(tmp_path, "{seed: {s1: {}, s2: {}, s3: {}, s4: {}}}")
    last = tmp_path / "out" / "grid" / "s2" / "step12-unsharded"
    last.mkdir(parents=True)
    for name in ("model.pt", "optim.pt", "train.pt", "config.yaml", "olmo_ext.json"):
        (last / name).touch()
    text = shown(sweep, out=tmp_path / "out", site=replace(SITE, array_limit=2))
    assert "grid-s2: finished at step 12; not submitted" in text
    assert "#SBATCH --array=1,3-4%2" in text
    lines = text.partition("runs.txt <==\n")[2].splitlines()
    assert [line.split()[0] for line in lines[:4]] == [f"grid-s{seed}" for seed in range(1, 5)]
    assert lines[3].split()[1:3] == [f"{tmp_path}/out/grid/s4", "12"]


def test_twins_come_after_their_parents(
    write_experiment: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_experiment(lambda config: config["injection"].update(tasks=[]))
    twins = "{twin: {none: {init_from: {twin: burst, step: 6}}, burst: {}}, seed: {s1: {}, s2: {}}}"
    sweep, out = write_sweep(tmp_path, twins), tmp_path / "out"
    text = shown(sweep, out=out, after="7")
    assert "#SBATCH --array=3-4\n" in text
    assert "grid-none-s2: begins with grid-burst-s2; submit again with --after its job" in text
    for number in (3, 4):
        event = {"event": "submitted", "job": f"12_{number}"}
        append_event(events_file(out / "grid" / f"burst-s{number - 2}"), event)
    queue = Queue({f"12_{number}": Job("RUNNING") for number in (3, 4)})
    monkeypatch.setattr("launch.slurm.submit.ask_slurm", lambda: queue)
    assert "nothing to submit" in shown(sweep, out=out)
    text = shown(sweep, out=out, after="12")
    assert "#SBATCH --array=1-2\n" in text
    assert "--dependency=afterok:12 " in text
    assert f"train.load_path={out}/grid/burst-s1/step6-unsharded" in text


def test_a_corpus_that_is_still_to_be_made_is_no_error_if_a_job_makes_it(
    write_experiment: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_experiment(lambda config: config["train"]["data"].pop("paths"))
    monkeypatch.chdir(tmp_path)
    later = ["corpus=the corpus"]
    with pytest.raises(FileNotFoundError, match="there is no folder the corpus"):
        shown(source, overrides=later)
    for options in ({"after": "12"}, {"prepare": "embedded"}):
        text = shown(source, overrides=later, **options)
        assert f'corpus="{tmp_path}/the corpus"' in text
    assert f"srun olmo-ext prepare embedded --out '{tmp_path}/the corpus'" in text
    assert "sbatch --parsable --dependency=afterok:JOB --kill-on-invalid-dep=yes" in text
    sweep = write_sweep(tmp_path)
    text = shown(sweep, out=tmp_path / "out", overrides=later, prepare="'a b.gz' --dtype uint32")
    assert "prepare 'a b.gz' --dtype uint32 --out" in text
    assert "#SBATCH --array=1-2" in text
    for own in (f"train.save_folder={tmp_path}/same", "train.run_name=same"):
        key, value = own.split("=")
        with refuses(key=key, value=value, rule="each run's own", of="sweep grid, run s1: "):
            shown(sweep, out=tmp_path / "out", overrides=[*later, own], after="12")
    # What can be checked without it is checked.
    with refuses(key="train.run_nam", rule="'run_name'"):
        shown(source, overrides=[*later, "train.run_nam=x"], after="12")


@pytest.mark.parametrize(
    ("options", "key", "value", "rule"),
    [
        ({"after": "$(touch x)"}, "--after", "$(touch x)", "the number of a job"),
        ({"prepare": "embedded --out x"}, "--prepare", "embedded --out x", "without --out"),
        ({"prepare": "'open"}, "--prepare", "'open", "a command line"),
        ({"prepare": ""}, "--prepare", "", "without --out"),
        ({"prepare": "embedded"}, "--prepare", ["None"], "one `corpus:`"),
        ({"out": Path("x")}, "--out", NO_VALUE, "sweeps"),
        (
            {"site": replace(SITE, ranks_per_node=3)},
            "run tiny: nodes x ranks of the site profile",
            3,
            "train.global_train_batch_size 8",
        ),
        ({"site": replace(SITE, time="2")}, "time", "2", "at least twice the lead time"),
        (
            {"overrides": ["train.precision=amp_bf16"]},
            "run tiny: train.precision",
            "amp_bf16",
            "no GPU",
        ),
        (
            {"overrides": ["injection.tasks.0.schedule.rate=99"]},
            "injection.tasks[0].schedule",
            99,
            "at most 8 instances",
        ),
        ({"overrides": ['train.run_name="a\\nb"']}, "run 'a\\nb'", "a\nb", "control character"),
        (
            {"overrides": ['train.save_folder=/tmp/a\\"b']},
            "--output",
            '/tmp/a\\"b/logs/slurm/1/%j.out',
            "a double quote or a backslash",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    options: dict, key: str, value: object, rule: str, write_experiment: Write, tmp_path: Path
) -> None:
    source = write_experiment()
    before = sorted(tmp_path.rglob("*"))
    with refuses(key=key, value=value, rule=rule):
        shown(source, **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no experiment or sweep file"):
        shown(tmp_path / "none.yaml")


@pytest.mark.parametrize("event", ["submitted", "started", "requeued"])
def test_a_run_that_may_live_is_not_submitted_while_the_queue_cannot_be_asked(
    event: str, write_experiment: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, programs = write_experiment(), tmp_path / "bin"
    programs.mkdir()
    for name, does in (("squeue", "echo no route to the controller >&2; exit 1"), ("sbatch", "")):
        (programs / name).write_text(f"#!/bin/sh\n{does}\necho 8\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    told = events_file(tmp_path / "run")
    append_event(told, {"job": "7", "event": event})
    rule = ("job 7", "may still be queued: the queue cannot be asked (no route to the controller)")
    with refuses(key="run tiny", rule=rule, remedy=f"move {told} away"):
        shown(source, dry_run=False)
    assert [one["job"] for one in read_events(tmp_path / "run")] == ["7"]
    assert "may still be queued" in shown(source)
    append_event(told, {"job": "7", "event": "failed"})
    shown(source, dry_run=False)
    assert [one["job"] for one in read_events(tmp_path / "run")][-1] == "8"


def test_what_is_no_experiment_is_said_in_a_line(tmp_path: Path) -> None:
    for name, text in (("list.yaml", "- a\n- b\n"), ("table.csv", "a,b\n" + "1,2\n" * 500)):
        (tmp_path / name).write_text(text)
        for options in ({}, {"after": "12", "overrides": ["corpus=none"]}):
            with refuses(key=tmp_path / name, rule="no experiment: it has none of") as found:
                shown(tmp_path / name, **options)
            assert len(str(found.value)) < 300


def test_each_submission_has_files_of_its_own(write_experiment: Write, tmp_path: Path) -> None:
    """A job that is requeued reads its own again, whatever was submitted since."""
    source = write_experiment()
    (tmp_path / "run" / "logs" / "slurm" / "9").mkdir(parents=True)
    assert "/run/logs/slurm/10/train.sbatch" in shown(source)


def test_the_lead_time_is_a_step_a_save_and_a_margin(
    write_experiment: Write, tmp_path: Path
) -> None:
    def lead(**settings: float) -> object:
        site = replace(SITE, time="10:00:00", **settings)
        train = load_experiment(write_experiment()).train
        return reckon_lead(site, train, num_steps=12, folder=tmp_path / "run")

    assert lead(step_seconds=12, save_seconds=41, margin_seconds=30).seconds == 90  # 83, up to tens
    assert lead(lead_seconds=77).seconds == 77
    assert "estimated" in lead().why
    # 8,704 parameters x 12 bytes, and the optimizer's file read again at .93 GB/s.
    slow = lead(write_gb_per_second=1e-6)
    params = (slow.save - 1e-5) / 12 * 1e3
    assert params == pytest.approx(10_832, rel=0.01)
    told = tmp_path / "run" / "progress.json"
    told.parent.mkdir()
    told.write_text('{"step": 3, "steps_per_second": 0.5}')
    assert (lead().step, lead().step_from) == (2.0, "measured, progress.json")


def test_the_time_of_a_save_is_read_off_its_files(tmp_path: Path) -> None:
    for name, size, end in (("model.pt", 400, 10), ("optim.pt", 800, 26), ("SHA256SUMS", 0, 30)):
        (tmp_path / name).write_bytes(b"x" * size)
        os.utime(tmp_path / name, (end, end))
    assert measured_save(tmp_path) == pytest.approx(20 * 1200 / 800)
    (tmp_path / "SHA256SUMS").unlink()
    assert measured_save(tmp_path) is None


@pytest.mark.parametrize("preset", ["paper", "ladder"])
def test_every_rung_of_the_ladder_can_be_written_for_a_cluster(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parent.parent.parent.parent / "configs" / "olmo_4M_to_4B"
    monkeypatch.chdir(tmp_path)
    site = Cluster(time="24:00:00", gpus_per_node=8, nodes=4)
    for path in sorted((root / preset).glob("*.yaml")):
        text = shown(path, site=site, after="1")
        assert "--rdzv-backend=c10d" in text
        name = yaml.safe_load(path.read_text())["train"]["run_name"]
        assert f"#SBATCH --job-name={name}" in text


@pytest.mark.usefixtures("without_slurm")
@pytest.mark.parametrize("sweep", [False, True])
def test_a_dry_runs_standard_output_is_the_script_and_nothing_else(
    sweep: bool, write_experiment: Write, tmp_path: Path
) -> None:
    source = write_experiment()
    source = write_sweep(tmp_path) if sweep else source
    out, aside = io.StringIO(), io.StringIO()
    submit(
        source, site=SITE, out=tmp_path / "runs" if sweep else None, dry_run=True,
        console=Console(file=out), errors=Console(file=aside),
    )  # fmt: skip
    script = tmp_path / "job.sbatch"
    script.write_text(out.getvalue())
    assert out.getvalue().startswith("#!/bin/bash\n")
    assert subprocess.run(["/bin/bash", "-n", str(script)], check=False).returncode == 0
    assert "lead time: SIGUSR1" in aside.getvalue()
    assert "nothing was written or submitted" in aside.getvalue()
    assert "lead time: SIGUSR1" not in out.getvalue()
