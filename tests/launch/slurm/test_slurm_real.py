"""The whole way on a real SLURM of one node, which the tests start and end themselves.

    pytest tests/launch/slurm/test_slurm_real.py  # skipped without slurm-wlm and munge

Runs are of two ranks under torchrun on two CPUs, as `olmo-ext submit` writes them.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from refusals import refuses
from rich.console import Console

from eval.audit.audit import audit_run
from eval.checkpoints.checkpoint import find_checkpoints
from eval.records import read_records
from launch.slurm.jobs import read_events
from launch.slurm.site import Cluster
from launch.slurm.status import find_status
from launch.slurm.submit import submit

sys.path.insert(0, str(Path(__file__).parent))
from real_slurm import Slurm, missing, no_network, real_slurm  # type: ignore[import-not-found]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason="; ".join(missing()) or "SLURM is there"),
]

SITE = Cluster(
    time="10", ranks_per_node=2, cpus_per_node=2, prepare_cpus=1, step_seconds=1, margin_seconds=20
)
ONE_RANK = replace(SITE, ranks_per_node=1, cpus_per_node=1)
STEPS = 160


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with real_slurm() as slurm, pytest.MonkeyPatch.context() as patch:
        for name, value in slurm.environment.items():
            patch.setenv(name, value)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield slurm


@pytest.fixture(autouse=True)
def _no_jobs_left(slurm: Slurm) -> Iterator[None]:
    yield
    if slurm.run("squeue", "-h", "-o", "%i").split():
        slurm.run("scancel", "--user=root", check=False)
        wait_for(lambda: not slurm.run("squeue", "-h"), "an empty queue")


def wait_for(happens: Callable[[], object], what: str, *, seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, f"no {what} after {seconds:.0f} s"
        time.sleep(0.1)


def write(write_in: Callable, folder: Path, name: str, **train: object) -> Path:
    """An experiment whose run goes to FOLDER/NAME."""

    def edit(config: dict) -> None:
        config["train"].update(
            max_duration=STEPS, save_interval_unsharded=20, run_name=name,
            save_folder=str(folder / name), wandb={"project": "test"},
        )  # fmt: skip
        config["train"].update(train)
        config["callbacks"] = {"task_eval": {"every": 10}, "progress": {"seconds": 0.2}}

    return write_in(folder)(edit).rename(folder / f"{name}.yaml")


def hold(source: Path, site: Cluster, *, lives: int) -> Cluster:
    """Have the run's first lives wait for their signals (held.py); a site where that is found."""
    edited = yaml.safe_load(source.read_text())
    edited["callbacks"]["held:Hold"] = {"lives": lives}
    source.write_text(yaml.safe_dump(edited))
    here = shlex.quote(str(Path(__file__).parent))
    return replace(site, setup=[f"export PYTHONPATH={here}:$PYTHONPATH"])


def hand_in(source: Path, *, site: Cluster = SITE, **options: object) -> list[str]:
    settings = {"out": None} | options
    return submit(source, site=site, console=Console(quiet=True), **settings)  # type: ignore[arg-type]


def ended(slurm: Slurm, job: str) -> bool:
    state = slurm.job(job).get("JobState", "COMPLETED")
    return state not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")


def finish(slurm: Slurm, job: str, run: Path) -> None:
    wait_for(lambda: ended(slurm, job), f"end of job {job}")
    told = [path.read_text() for path in run.glob("logs/slurm/*/*.out")]
    assert slurm.job(job)["JobState"] == "COMPLETED", told
    assert find_checkpoints(run)[-1].step == STEPS


def losses(run: Path) -> dict[int, float]:
    rows = read_records(run).query("metric == 'train_loss'")
    return dict(zip(rows.step, rows.value, strict=True))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(find_checkpoints(run)[-1].path / "model.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(slurm: Slurm, write_experiment_in: Callable, tmp_path_factory: object) -> Path:
    """A run of two ranks that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")  # type: ignore[attr-defined]
    (job,) = hand_in(write(write_experiment_in, folder, "tiny"))
    finish(slurm, job, folder / "tiny")
    return folder / "tiny"


def test_a_run_of_two_ranks_is_trained_as_submitted(whole: Path) -> None:
    told = json.loads((whole / "run.json").read_text())
    assert [start["world_size"] for start in told["starts"]] == [2]
    assert [event["event"] for event in read_events(whole)] == ["submitted", "started", "finished"]
    assert audit_run(whole, full=True).status == 0
    ((status,), problem) = find_status([whole])
    assert (status.state, status.step, status.num_steps, problem) == ("finished", STEPS, STEPS, "")


def test_a_run_signalled_preempted_and_requeued_is_the_run_that_never_was(
    slurm: Slurm, whole: Path, write_experiment_in: Callable, tmp_path: Path
) -> None:
    """SIGUSR1 (the script requeues), then a preemption (SLURM requeues): nothing is lost."""
    run = tmp_path / "tiny"
    source = write(write_experiment_in, tmp_path, "tiny")
    (job,) = hand_in(source, site=hold(source, SITE, lives=2))
    wait_for(lambda: find_checkpoints(run)[1:], "first checkpoint")
    slurm.run("scancel", "--signal=USR1", job)
    wait_for(lambda: slurm.job(job)["Restarts"] == "1", "requeue")
    saved = json.loads((run / "requeue.marker").read_text())
    assert saved["reason"] == "SIGUSR1"
    assert 0 < saved["step"] == find_checkpoints(run)[-1].step <= 30  # where it is held
    ((status,), _) = find_status([tmp_path])
    assert (status.state, status.requeues, status.step) == ("requeued", 1, saved["step"])
    wait_for(lambda: find_checkpoints(run)[-1].step > saved["step"], "checkpoint after it")
    # Somebody of a higher priority takes the node.
    slurm.run("sbatch", "-p", "urgent", "-n2", "-o", "/dev/null", "--wrap", "sleep 1")
    wait_for((run / "requeue.marker").exists, "marker of the preempted life")
    # SIGTERM went to every process, W&B's service too, and the run saved all the same.
    told = json.loads((run / "requeue.marker").read_text())
    assert told["reason"] == "SIGTERM", (run / "logs" / "train.log").read_text()[-3000:]
    assert told["step"] == find_checkpoints(run)[-1].step
    wait_for(lambda: slurm.job(job)["Restarts"] == "2", "preemption")
    finish(slurm, job, run)

    audit = audit_run(run, full=True)
    assert audit.status == 0, audit
    told = json.loads((run / "run.json").read_text())
    assert len(told["starts"]) == len(list((run / "ledger").glob("segment-*.bin"))) == 3
    assert losses(run) == losses(whole)
    ours, theirs = weights(run), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    segments = sorted(path.name for path in (run / "wandb").glob("offline-run-*"))
    (identity,) = {name.rpartition("-")[2] for name in segments}
    assert len(segments) == 3
    assert identity == (run / "wandb_id").read_text()
    assert not (run / "requeue.marker").exists()


def test_a_cancelled_job_leaves_no_process_and_does_not_come_back(
    slurm: Slurm, write_experiment_in: Callable, tmp_path: Path
) -> None:
    run = tmp_path / "tiny"
    source = write(write_experiment_in, tmp_path, "tiny", max_duration=10**4, wandb=None)
    edited = yaml.safe_load(source.read_text())
    edited["train"]["data"]["num_workers"] = 1
    source.write_text(yaml.safe_dump(edited))
    (job,) = hand_in(source)
    wait_for(lambda: find_checkpoints(run)[1:], "first checkpoint")
    below = slurm.processes()
    assert len(below) >= 5  # script, agent, two ranks, their workers
    assert hand_in(source) == []  # it is in the queue already
    slurm.run("scancel", job)
    wait_for(lambda: slurm.job(job)["JobState"] == "CANCELLED", "cancellation")
    wait_for(lambda: not slurm.run("squeue", "-h"), "empty queue")
    # A loader's worker that lost its parent notices within five seconds. One that has ended has no
    # environment any more, and is in /proc until its parent has taken note.
    wait_for(
        lambda: not slurm.processes() and not any(Path(f"/proc/{pid}").exists() for pid in below),
        "end of every process",
        seconds=60,  # the run itself would go on for longer
    )
    assert slurm.job(job)["Restarts"] == "0"
    ((status,), _) = find_status([run])
    assert status.state == "cancelled"
    assert audit_run(run).status == 0


def test_a_sweep_is_an_array_that_keeps_its_limit_and_skips_what_is_finished(
    slurm: Slurm, write_experiment_in: Callable, tmp_path: Path
) -> None:
    write(
        write_experiment_in,
        tmp_path,
        "base",
        max_duration=30,
        save_interval_unsharded=30,
        wandb=None,
    )
    sweep = tmp_path / "grid.yaml"
    seeds = ", ".join(f"s{seed}: {{train.seed: {seed}}}" for seed in range(1, 5))
    sweep.write_text(f"experiments: [base.yaml]\naxes: {{seed: {{{seeds}}}}}\n")
    runs = [tmp_path / "out" / "grid" / f"s{seed}" for seed in range(1, 5)]

    def pretend(run: Path) -> None:
        last = run / "step30-unsharded"
        last.mkdir(parents=True)
        for name in ("model.pt", "optim.pt", "train.pt", "config.yaml", "olmo_ext.json"):
            (last / name).touch()

    pretend(runs[0])
    site = replace(ONE_RANK, array_limit=1)
    (job,) = hand_in(sweep, site=site, out=tmp_path / "out")
    wait_for(lambda: (runs[1] / "plan.json").exists(), "start of the first")
    states = slurm.run("squeue", "-h", "-r", "-o", "%i %T %r").splitlines()
    # A CPU is free: it is the limit that the others wait for.
    assert sorted(states) == [
        f"{job}_2 RUNNING None",
        f"{job}_3 PENDING JobArrayTaskLimit",
        f"{job}_4 PENDING JobArrayTaskLimit",
    ]
    assert [run.state for run in find_status([tmp_path / "out"])[0]] == [
        "running",
        "pending",
        "pending",
    ]
    pretend(runs[3])  # somebody else trained it meanwhile
    wait_for(lambda: not slurm.run("squeue", "-h"), "end of the array")
    assert [event["event"] for event in read_events(runs[2])][1:] == ["started", "finished"]
    assert [event["event"] for event in read_events(runs[3])][1:] == ["finished"]
    seeds_told = [json.loads((run / "plan.json").read_text())["train"]["seed"] for run in runs[1:3]]
    assert seeds_told == [2, 3]
    assert hand_in(sweep, site=site, out=tmp_path / "out") == []


def test_a_run_waits_for_its_corpus_and_never_starts_where_there_is_none(
    slurm: Slurm, write_experiment_in: Callable, tmp_path: Path
) -> None:
    text = tmp_path / "a text.jsonl"
    lines = [{"id": str(n), "text": f"Document {n} says {n * n}. " * 40} for n in range(60)]
    text.write_text("\n".join(map(json.dumps, lines)))

    def experiment(name: str) -> Path:
        source = write(write_experiment_in, tmp_path, name, max_duration=4, wandb=None)
        edited = yaml.safe_load(source.read_text())
        del edited["train"]["data"]["paths"]
        for key in ("eos_token_id", "pad_token_id"):
            del edited["train"]["model"][key]
        edited["train"]["model"] |= {"vocab_size": 50280, "embedding_size": 50304}
        edited["corpus"] = f"{name} corpus"
        source.write_text(yaml.safe_dump(edited))
        return source

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            hand_in(experiment("good"))
        words = f"'{text}' --tokenizer dolma-v1_5"
        good = hand_in(experiment("good"), site=ONE_RANK, prepare=words)
        bad = hand_in(experiment("bad"), site=ONE_RANK, prepare="nothing-here.jsonl")
    assert len(good) == len(bad) == 2
    wait_for(lambda: ended(slurm, good[1]) and ended(slurm, bad[1]), "end")
    states = [slurm.job(job)["JobState"] for job in (*good, *bad)]
    assert states == ["COMPLETED", "COMPLETED", "FAILED", "CANCELLED"]
    assert find_checkpoints(tmp_path / "good")[-1].step == 4
    assert not (tmp_path / "bad" / "plan.json").exists()


def test_paths_with_shell_characters_reach_slurm_as_they_are(
    slurm: Slurm, write_experiment_in: Callable, tmp_path: Path
) -> None:
    """And a run that fails is not requeued; status has its last error."""
    folder = tmp_path / "it's $(touch x); `touch x` & %j"
    folder.mkdir()
    source = write(write_experiment_in, folder, "tiny")
    torchrun = folder / "torchrun"
    torchrun.write_text("#!/bin/sh\necho 'ValueError: the reason'\nexit 3\n")
    torchrun.chmod(0o755)
    site = replace(SITE, setup=["PATH=$PWD:$PATH"], activate="/dev/null")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (job,) = hand_in(source, site=site)
    wait_for(lambda: ended(slurm, job), "end")
    assert slurm.job(job)["JobState"] == "FAILED"
    (out,) = (folder / "tiny").glob("logs/slurm/1/*.out")
    assert "not requeued" in out.read_text()
    assert out.name == f"{job}.out"
    assert not list(tmp_path.rglob("x"))
    ((status,), _) = find_status([folder])
    log = folder / "tiny" / "logs" / "train.log"  # of a start that ends before ours could tell
    assert (status.state, str(log) in status.error) == ("failed", True)
    assert "ValueError: the reason" in log.read_text()


def test_what_sbatch_refuses_is_told_in_its_words(
    slurm: Slurm, write_experiment_in: Callable, tmp_path: Path
) -> None:
    source = write(write_experiment_in, tmp_path, "tiny")
    script = tmp_path / "tiny/logs/slurm/1/train.sbatch"
    said = "invalid partition specified: none"
    with refuses(key=f"sbatch --parsable {script}", rule=said):
        hand_in(source, site=replace(SITE, partition="none"))
    assert read_events(tmp_path / "tiny") == []


def test_no_daemon_outlives_its_block() -> None:
    """The last test: the module's own SLURM is another one, and undisturbed."""
    with real_slurm() as other:
        folder = other.folder
        job = other.run("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "sleep 600").strip()
        wait_for(other.processes, f"process of job {job}")
    assert not folder.exists()
    left = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True).stdout
    assert left.split() == []


def test_two_nodes_train_the_run_that_one_node_trains_and_requeue_it(
    whole: Path,
    write_experiment_in: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two hosts with addresses of their own: two agents meet, are signalled, and meet again."""
    if why := no_network():
        pytest.skip("; ".join(why))
    run, site = tmp_path / "tiny", replace(ONE_RANK, nodes=2)
    with real_slurm(cpus=1, num_nodes=2) as slurm:
        monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
        source = write(write_experiment_in, tmp_path, "tiny")
        (job,) = hand_in(source, site=hold(source, site, lives=1))
        wait_for(lambda: find_checkpoints(run)[1:], "first checkpoint")
        assert slurm.job(job)["NumNodes"] == "2"
        slurm.run("scancel", "--signal=USR1", job)
        wait_for(lambda: slurm.job(job)["Restarts"] == "1", "requeue")
        finish(slurm, job, run)
    told = json.loads((run / "run.json").read_text())
    assert [start["world_size"] for start in told["starts"]] == [2, 2]
    assert audit_run(run, full=True).status == 0
    assert losses(run) == losses(whole)
    ours, theirs = weights(run), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
