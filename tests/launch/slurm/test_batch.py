"""Batch files: what a shell makes of them, with programs in SLURM's place (test_slurm_real has it).

Every script is run by bash, with fakes of srun and scontrol that write down their arguments.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses

from eval.audit.audit import audit_run
from launch.runs import Run
from launch.slurm.batch import (
    Where,
    directive,
    ranges,
    render_prepare,
    render_train,
    runs_text,
)
from launch.slurm.lead import Lead
from launch.slurm.site import Cluster
from olmo_ext.engines.ending import write_marker

LEAD = Lead(1.0, 2.0, 60.0, "test", "test")

HOSTILE = [
    "a b",
    "it's",
    'say "x"',
    "$(touch x)",
    "`touch x`",
    "a;touch x",
    "a&&touch x",
    "a|touch x",
    "a>x",
    "*",
    "~",
    "{a,b}",
    "-n",
    "#x",
    "!x",
    "${HOME}",
    "\\$(touch x)",
    "'; touch x; '",
    "x -o y --override z",
    "%j",
]


def one_run(name: str, folder: Path, num_steps: int, arguments: tuple[str, ...]) -> Run:
    return Run(name, folder, arguments, num_steps, num_tokens=0)


@dataclass
class Bench:
    """A folder with fakes of SLURM's programs, and a run in it."""

    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "bin").mkdir(parents=True)
        # srun runs its command, the fakes torchrun and olmo-ext behind it, on "each node".
        self.fake("srun", 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"')
        self.fake("torchrun", 'printf "%s\\0" "$@" > "$FAKES/torchrun.arguments"; eval "$BEHAVE"')
        self.fake("olmo-ext", 'printf "%s\\0" "$@" > "$FAKES/olmo-ext.arguments"')
        self.fake("scontrol", 'echo "$@" >> "$FAKES/scontrol.log"; [ "$1" != show ] || echo node1')

    def fake(self, name: str, does: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{does}\n")
        path.chmod(0o755)

    def where(self, script: Path) -> Where:
        return Where(script, "olmo-ext submit", self.folder, self.folder / "bin")

    def write(self, task: Run, *, site: Cluster | None = None) -> Path:
        site = site or Cluster(time="60")
        script = task.folder / "logs" / "slurm" / "1" / "train.sbatch"
        where = self.where(script)
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(render_train(site, {1: task}, name=task.name, lead=LEAD, where=where))
        return script

    def bash(self, script: Path, behave: str = "", **variables: str) -> subprocess.CompletedProcess:
        environment = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "FAKES": str(self.folder),
            "HOME": str(self.folder),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "BEHAVE": behave,
        }
        return subprocess.run(
            ["bash", str(script)], env=environment | variables, capture_output=True, text=True,
            cwd=self.folder, timeout=300,
        )  # fmt: skip

    def arguments(self, program: str = "torchrun") -> list[str]:
        text = (self.folder / f"{program}.arguments").read_text()
        return text.split("\0")[:-1]

    def requeued(self) -> bool:
        log = self.folder / "scontrol.log"
        return log.exists() and "requeue 7" in log.read_text()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    # `sleep 60` waits for SLURM to end the script after a requeue; nobody does here.
    bench = Bench(tmp_path / "bench")
    bench.fake("sleep", "exit 0")
    return bench


def marker(step: int | None, job: str = "$SLURM_JOB_ID", restart: int = 0) -> str:
    told = {"step": step, "num_steps": 40, "reason": "SIGUSR1", "job": "JOB", "restart": restart}
    text = json.dumps(told, indent=1).replace("JOB", f"'\"{job}\"'")
    return f"printf '%s' '{text}' > \"$RUN/requeue.marker\"; "


def events(task: Run) -> list[str]:
    lines = (task.folder / "logs" / "jobs.jsonl").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]


SAFE_IN_DIRECTIVES = [word for word in HOSTILE if '"' not in word and "\\" not in word]
NAMES = ["-n", "~", "".join(SAFE_IN_DIRECTIVES).replace("/", "_")]
"""An option, a home, and every other sign that a shell heeds, in one name."""

WORDS = st.lists(st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1), min_size=1)


@pytest.mark.parametrize("name", NAMES)
def test_no_character_of_a_name_a_path_or_an_override_reaches_a_shell(
    name: str, bench: Bench
) -> None:
    """All of them arrive as they were given, and nothing else happens."""
    overrides = [part for word in HOSTILE for part in ("-o", f"train.run_name={word}", word)]
    task = one_run(name, bench.folder / "out" / name, 40, ("train", f"/a {name}/x", *overrides))
    before = set(bench.folder.rglob("*"))
    done = bench.bash(bench.write(task))
    assert done.returncode == 0, done.stderr
    assert bench.arguments()[-len(task.arguments) :] == list(task.arguments)
    new = {path for path in bench.folder.rglob("*") if path not in before}
    assert [path.name for path in new if path.name in ("x", "y")] == []
    assert events(task) == ["started", "ended"]
    assert f"{name}: " in done.stdout


@pytest.mark.parametrize("name", sorted(set(HOSTILE) - set(SAFE_IN_DIRECTIVES)))
def test_a_path_that_slurm_would_misread_is_refused(name: str, bench: Bench) -> None:
    task = one_run("r", bench.folder / "out" / name.replace("/", "_"), 40, ("train",))
    with refuses(
        key="--output",
        value=task.folder / "logs/slurm/1/%j.out",
        rule="a double quote or a backslash",
    ):
        bench.write(task)


@settings(max_examples=200, deadline=None)
@given(words=WORDS, name=st.sampled_from(HOSTILE))
def test_any_words_are_one_line_of_the_file_of_commands(words: list[str], name: str) -> None:
    task = one_run(name, Path("/") / name, 40, ("train", *words))
    text = runs_text({1: task})
    assert text.count("\n") == 1
    assert shlex.split(text) == [name, str(task.folder), "40", "train", *words]


def test_an_array_reads_its_own_line_word_for_word(bench: Bench) -> None:
    """Names with quotes too: the array's own folder is another."""
    folder = bench.folder / "out"
    tasks = {
        1: one_run("first", folder / "first", 40, ("train", "one.yaml")),
        2: one_run("".join(HOSTILE), folder / "second", 40, ("train", *HOSTILE)),
    }
    runs_file = folder / "runs $(touch x) 'quoted'.txt"
    folder.mkdir()
    runs_file.write_text(runs_text(tasks))
    script = folder / "train.sbatch"
    site, where = Cluster(time="60", array_limit=3), bench.where(script)
    script.write_text(
        render_train(site, tasks, name="sweep", lead=LEAD, where=where, runs_file=runs_file)
    )
    done = bench.bash(script, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2")
    assert done.returncode == 0, done.stderr
    assert bench.arguments()[-len(HOSTILE) - 1 :] == list(tasks[2].arguments)
    assert not list(bench.folder.rglob("x"))
    (line, _) = (folder / "second" / "logs" / "jobs.jsonl").read_text().splitlines()
    assert json.loads(line)["job"] == "7_2"


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\tb", "a\x1b[0m", "a\x00"])
def test_control_characters_are_refused_wherever_they_stand(bad: str, bench: Bench) -> None:
    good = bench.folder / "out"
    rule = "control character"
    for task, value in (
        (one_run(bad, good, 1, ()), bad),
        (one_run("a", bench.folder / bad, 1, ()), bench.folder / bad),
        (one_run("a", good, 1, ("train", bad)), bad),
    ):
        with refuses(key=f"run {task.name!r}", value=value, rule=rule):
            render_train(
                Cluster(time="60"), {1: task}, name="a", lead=LEAD, where=bench.where(good / "s")
            )
    with refuses(key="--output", value=bad, rule=rule):
        directive("output", bad)
    with refuses(key="--prepare", value=bad, rule=rule):
        render_prepare(Cluster(time="60"), [bad], good, name="a", where=bench.where(good / "s"))


def test_words_of_prepare_are_quoted_too(bench: Bench) -> None:
    script, name = bench.folder / "prepare.sbatch", "".join(HOSTILE)
    corpus, where = bench.folder / name, bench.where(script)
    script.write_text(render_prepare(Cluster(time="60"), HOSTILE, corpus, name=name, where=where))
    assert bench.bash(script).returncode == 0
    assert bench.arguments("olmo-ext") == ["prepare", *HOSTILE, "--out", str(corpus)]
    assert not list(bench.folder.rglob("x"))


def test_a_marker_and_nothing_else_makes_a_requeue(bench: Bench) -> None:
    task = one_run("r", bench.folder / "r", 40, ("train", "x.yaml"))
    script = bench.write(task)
    bench.bash(script, behave=marker(5) + "exit 1", RUN=str(task.folder))
    assert bench.requeued()  # whatever the status
    assert events(task) == ["started", "requeued"]


@pytest.mark.parametrize("status", [0, 1, 137])
def test_without_a_new_marker_no_status_makes_one(status: int, bench: Bench) -> None:
    task = one_run("r", bench.folder / "r", 40, ("train", "x.yaml"))
    script = bench.write(task)
    done = bench.bash(script, behave=f"echo the reason; exit {status}")
    assert done.returncode == status
    assert not bench.requeued()
    assert events(task)[-1] == ("failed" if status else "ended")
    assert "the reason" in done.stdout  # the end of the log


@pytest.mark.parametrize(
    ("job", "restart", "requeued"),
    [("7", 2, True), ("7", 1, False), ("8", 2, False), ("70", 2, False), ("", 2, False)],
)
def test_a_marker_is_known_by_its_job_and_restart_not_by_any_clock(
    job: str, restart: int, requeued: bool, bench: Bench
) -> None:
    """A file server whose clock is an hour slow dates the marker before the start."""
    task = one_run("r", bench.folder / "r", 40, ("train", "x.yaml"))
    old = "touch -d '1 hour ago' \"$RUN/requeue.marker\"; exit 1"
    done = bench.bash(
        bench.write(task), behave=marker(5, job, restart) + old, RUN=str(task.folder),
        SLURM_RESTART_COUNT="2",
    )  # fmt: skip
    assert bench.requeued() == requeued
    said = f"another start's requeue.marker ({job} restart {restart}; this is 7 restart 2)"
    assert (said in done.stdout) == (not requeued)


def test_a_marker_that_training_writes_is_its_batch_scripts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both name a start alike, an array's too."""
    task = one_run("r", bench.folder / "r", 40, ("train", "x.yaml"))
    task.folder.mkdir(parents=True)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    write_marker(task.folder, step=5, num_steps=40, reason="SIGUSR1")
    bench.bash(bench.write(task), **slurm)
    assert bench.requeued()


def test_a_finished_run_is_not_started_and_one_that_ends_is_done_whatever_the_status(
    bench: Bench,
) -> None:
    task = one_run("r", bench.folder / "r", 40, ("train", "x.yaml"))
    script = bench.write(task)
    last = f"mkdir -p {task.folder}/step40-unsharded; touch {task.folder}/step40-unsharded/"
    done = bench.bash(script, behave=f"{last}olmo_ext.json; exit 1")
    assert (done.returncode, events(task)) == (0, ["started", "finished"])
    (bench.folder / "torchrun.arguments").unlink()
    done = bench.bash(script)
    assert (done.returncode, events(task)[-1]) == (0, "finished")
    assert not (bench.folder / "torchrun.arguments").exists()


def test_requeues_without_a_step_forward_come_to_an_end(bench: Bench) -> None:
    task = one_run("r", bench.folder / "r", 40, ("train", "x.yaml"))
    script = bench.write(task, site=Cluster(time="60", max_stalled_requeues=2))
    for step in (5, 5, 6, 6, 6):  # steps forward begin the count anew
        done = bench.bash(script, behave=marker(step), RUN=str(task.folder))
    assert events(task)[1::2] == ["requeued"] * 4 + ["stalled"]
    assert done.returncode == 1
    assert "after 2 requeues without a step forward" in done.stdout
    # Submitted again, with more time: another job, which may try anew.
    bench.bash(script, behave=marker(6), RUN=str(task.folder), SLURM_JOB_ID="8")
    assert events(task)[-1] == "requeued"


def test_steps_to_and_fro_are_no_steps_forward(bench: Bench) -> None:
    task = one_run("r", bench.folder / "r", 40, ("train", "x.yaml"))
    script = bench.write(task, site=Cluster(time="60", max_stalled_requeues=2))
    for step in (0, 1, 0, 1):
        bench.bash(script, behave=marker(step), RUN=str(task.folder))
    assert events(task)[1::2] == ["requeued"] * 3 + ["stalled"]


@pytest.mark.parametrize("told", [marker(None), marker(None).replace("step", "stop")])
def test_a_marker_without_a_step_makes_no_requeue(told: str, bench: Bench) -> None:
    task = one_run("r", bench.folder / "r", 40, ("train", "x.yaml"))
    done = bench.bash(bench.write(task), behave=told, RUN=str(task.folder))
    assert (done.returncode, events(task)[-1], bench.requeued()) == (1, "failed", False)
    assert "names no step: not requeued" in done.stdout


def test_a_file_called_stop_ends_the_requeues(bench: Bench) -> None:
    task = one_run("r", bench.folder / "r", 40, ("train", "x.yaml"))
    script = bench.write(task)
    (task.folder / "logs" / "stop").touch()
    done = bench.bash(script, behave=marker(5), RUN=str(task.folder))
    assert (done.returncode, events(task)[-1], bench.requeued()) == (0, "stopped", False)


def test_where_slurm_lets_nobody_requeue_the_script_says_so(bench: Bench) -> None:
    task = one_run("r", bench.folder / "r", 40, ("train", "x.yaml"))
    bench.fake("scontrol", "exit 1")
    done = bench.bash(bench.write(task), behave=marker(5), RUN=str(task.folder))
    assert done.returncode == 1
    assert "not requeued by SLURM" in done.stdout
    assert events(task)[-1] == "stopped"


def test_a_notice_that_comes_before_torchrun_handles_it_kills_nothing(bench: Bench) -> None:
    task = one_run("r", bench.folder / "r", 40, ("train", "x.yaml"))
    bench.bash(bench.write(task), behave="kill -USR1 $$; " + marker(5), RUN=str(task.folder))
    assert events(task) == ["started", "requeued"]


def test_one_node_meets_nobody_and_several_meet_at_the_first(bench: Bench) -> None:
    task = one_run("r", bench.folder / "r", 40, ("train", "x.yaml"))
    bench.bash(bench.write(task, site=Cluster(time="60", gpus_per_node=8)))
    assert {"--standalone", "--nproc-per-node=8", "--nnodes=1"} <= set(bench.arguments())
    bench.bash(bench.write(task, site=Cluster(time="60", nodes=2, gpus_per_node=4)))
    arguments = set(bench.arguments())
    assert {"--rdzv-backend=c10d", "--rdzv-endpoint=node1:20007", "--rdzv-id=7-0"} <= arguments
    text = bench.write(task, site=Cluster(time="60", nodes=2, gpus_per_node=4)).read_text()
    assert "export OLMO_SHARED_FS=1" in text
    assert "srun --nodes=2 --ntasks=2 --ntasks-per-node=1" in text


def test_the_directives_are_those_of_the_profile(bench: Bench) -> None:
    site = Cluster(
        time="1-12", partition="gpu", account="a", qos="high", nodes=2, gpus_per_node=8,
        gpu_type="h100", gpu_option="gres", cpus_per_node=96, memory="0",
        directives=["--exclusive"], setup=["module load cuda"], activate="/v env/bin/activate",
        container=["apptainer", "exec", "/an image.sif"], environment={"A": "$B"},
    )  # fmt: skip
    text = bench.write(one_run("r", bench.folder / "r", 40, ("train",)), site=site).read_text()
    wanted = {
        *("--job-name=r", "--partition=gpu", "--account=a", "--qos=high", "--nodes=2"),
        *("--ntasks-per-node=1", "--cpus-per-task=96", "--mem=0", "--time=1-12"),
        *("--gres=gpu:h100:8", "--open-mode=append", "--requeue", "--signal=USR1@70"),
        "--exclusive",
    }
    directives = [line for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert {f"#SBATCH {option}" for option in wanted} <= set(directives)
    body = text.partition("\ncd -- ")[2]
    for line in ("module load cuda", "source '/v env/bin/activate'", "export A='$B'"):
        assert line in body
    assert "apptainer exec '/an image.sif' \\\n    torchrun" in body


def test_setup_may_read_variables_that_are_not_set(bench: Bench) -> None:
    """As `module load` and conda do."""
    task = one_run("r", bench.folder / "r", 40, ("train",))
    script = bench.write(
        task, site=Cluster(time="60", setup=["echo $NOT_SET", "export A=$NOT_SET"])
    )
    assert bench.bash(script).returncode == 0
    assert events(task) == ["started", "ended"]


def test_numbers_of_an_array_are_written_as_ranges() -> None:
    assert ranges([1, 2, 3, 7, 9, 10]) == "1-3,7,9-10"
    assert ranges([5]) == "5"


@pytest.mark.slow
def test_the_agents_of_several_nodes_meet_and_train_one_run(
    bench: Bench, write_experiment: Callable[..., Path]
) -> None:
    """No SLURM has several nodes here: srun's fake starts both agents on this machine."""
    (bench.folder / "bin" / "torchrun").unlink()
    (bench.folder / "bin" / "olmo-ext").unlink()
    bench.fake("scontrol", "echo localhost; echo other")
    command = """
        while [ "${1#--}" != "$1" ]; do shift; done
        "$@" & first=$!
        "$@" & wait $! && wait $first"""
    bench.fake("srun", command)
    source = write_experiment()
    run = source.parent / "run"
    task = one_run("tiny", run, 12, ("train", str(source), "--resume"))
    site = Cluster(time="60", nodes=2, ranks_per_node=1)
    script = bench.write(task, site=site)
    variables = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    real = f"{Path(sys.executable).parent}:{bench.folder / 'bin'}:{os.environ['PATH']}"
    done = bench.bash(script, PATH=real, **variables)
    assert done.returncode == 0, (run / "logs" / "train.log").read_text()[-3000:]
    assert events(task) == ["started", "finished"]
    told = json.loads((run / "run.json").read_text())
    assert [start["world_size"] for start in told["starts"]] == [2]
    assert audit_run(run, full=True).status == 0
