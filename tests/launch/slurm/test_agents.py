"""torchrun's agents: they meet, restart and are killed; the run is exact and nobody is left behind.

pytest tests/launch/slurm/test_agents.py      # about two minutes on two cores
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from refusals import refuses
from waiting import free_port, wait_until

from data_injection.ledger import read_segments
from eval.checkpoints.checkpoint import find_checkpoints
from launch.slurm.torchrun import environment_of, torchrun_command, train_arguments
from olmo_ext.build import init_process_group

pytestmark = pytest.mark.slow

Write = Callable[..., Path]

NUM_STEPS = 90


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The fault tests' checks of a run's promises."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent.parent / "olmo_ext"))
    return importlib.import_module("test_faults")


@dataclass
class Job:
    """A run as torchrun's agents train it; every process it ever had is remembered."""

    experiment: Path
    folder: Path
    agents: list[subprocess.Popen[bytes]] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def start(
        self, *overrides: str, nproc: int, nnodes: int = 1, workers: int = 0, **options: Any
    ) -> None:
        workers_set = f"train.data.num_workers={workers}"
        arguments = train_arguments(self.experiment, [workers_set, *overrides])
        if nnodes > 1:
            options["rdzv_endpoint"] = f"localhost:{free_port()}"
        command = torchrun_command(
            arguments, nproc=nproc, nnodes=nnodes, shutdown_timeout=60, **options
        )
        self.agents = []
        for node in range(nnodes):
            with self.log(node).open("a") as file:
                agent = subprocess.Popen(
                    command,
                    env=os.environ | environment_of(nnodes),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            self.agents.append(agent)

    def log(self, node: int) -> Path:
        return self.folder.with_name(f"{self.folder.name}-{node}.log")

    def said(self) -> str:
        return "\n".join(self.log(n).read_text()[-3000:] for n in range(len(self.agents)))

    def ranks(self, node: int = 0) -> list[int]:
        return children(self.agents[node].pid)

    def wait_for_steps(self, more: int) -> None:
        """Until a start has saved and taken `more` steps past its first checkpoint."""
        at = latest(self.folder)
        wait_until(lambda: latest(self.folder) >= at + more, told=self.said)
        for agent in self.agents:
            self.seen |= set(below(agent.pid))

    def wait(self) -> list[int]:
        for agent in self.agents:
            self.seen |= set(below(agent.pid))
        return [agent.wait(600) for agent in self.agents]


def latest(folder: Path) -> int:
    found = find_checkpoints(folder)
    return found[-1].step if found else 0


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return sorted(found)


def below(pid: int) -> Iterator[int]:
    for child in children(pid):
        yield child
        yield from below(child)


def alive(pids: Iterable[int]) -> list[int]:
    """Those that run: a zombie does not."""
    running = []
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                running.append(pid)
    return running


@pytest.fixture
def job(write_experiment: Write, tmp_path: Path) -> Iterator[Job]:
    def edit(config: dict) -> None:
        config["train"].update(save_interval_unsharded=5, max_duration=NUM_STEPS)
        config["callbacks"] = {"task_eval": {"every": 7}}

    made = Job(write_experiment(edit), tmp_path / "run")
    yield made
    for pid in [*(agent.pid for agent in made.agents), *made.seen]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for agent in made.agents:
        agent.wait()


def test_two_agents_train_stop_and_resume_and_the_run_is_the_run_of_one_agent(
    job: Job, faults: Any, tmp_path: Path
) -> None:
    """One rank each, met over c10d on this machine. USR1 reaches one agent: both nodes save."""
    job.start(nproc=1, nnodes=2)
    job.wait_for_steps(15)
    job.agents[1].send_signal(signal.SIGUSR1)
    wait_until(lambda: not alive(job.ranks(0)), told=job.said)
    # Its ranks have saved and ended; it would wait 5 minutes for the other agent to say so too.
    job.agents[0].terminate()
    job.wait()
    marker = json.loads((job.folder / "requeue.marker").read_text())
    assert marker["step"] == latest(job.folder) < NUM_STEPS, job.said()
    assert alive(job.seen) == []
    job.start(nproc=1, nnodes=2)
    assert job.wait() == [0, 0], job.said()
    assert faults.assert_whole(job.folder, NUM_STEPS)["starts"] == 2
    # One agent's ranks, without the agent: that they train under one is the next test's.
    whole = tmp_path / "whole"
    done = warm.run("train", job.experiment, "-o", f"train.save_folder={whole}", ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    faults.assert_bit_equal(job.folder, whole)


def test_a_killed_rank_restarts_the_job_from_its_last_checkpoint(job: Job, faults: Any) -> None:
    job.start(nproc=2, workers=1, max_restarts=1)
    job.wait_for_steps(20)
    os.kill(job.ranks()[-1], signal.SIGKILL)
    assert job.wait() == [0], job.said()
    counts = faults.assert_whole(job.folder, NUM_STEPS)
    assert counts["starts"] == 2
    second = sorted(read_segments(job.folder / "ledger").items())[-1][1]
    assert second.start_step >= 20  # not from the beginning
    assert alive(job.seen) == []


@pytest.mark.parametrize("fault", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_whatever_ends_the_agent_ends_its_ranks_and_their_workers(fault: str, job: Job) -> None:
    # More steps than it can take before it is stopped: a finished run leaves no marker.
    job.start("train.max_duration=10000", nproc=2, workers=1)
    job.wait_for_steps(10)
    assert len(job.seen) >= 4  # two ranks, a worker each
    before = latest(job.folder)
    job.agents[0].send_signal(signal.Signals[fault])
    assert job.wait() != [0]
    wait_until(lambda: not alive(job.seen), told=lambda: (alive(job.seen), job.said()))
    if fault == "SIGINT":
        return
    # A killed agent costs nothing either: the ranks see that it is gone, save, and ask for more.
    assert (job.folder / "requeue.marker").exists(), job.said()
    marker = json.loads((job.folder / "requeue.marker").read_text())
    assert marker["reason"] == "SIGTERM"
    assert before <= marker["step"] == latest(job.folder)


def test_a_rank_whose_agent_is_killed_while_it_starts_ends_too(job: Job) -> None:
    job.start(nproc=1)
    wait_until(lambda: job.ranks(), told=job.said)
    job.seen |= set(job.ranks())
    job.agents[0].kill()
    wait_until(lambda: not alive(job.seen), told=job.said)


def test_a_restart_on_the_store_of_the_dead_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "TORCHELASTIC_RESTART_COUNT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    with refuses(key="torchrun --max-restarts", remedy="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        init_process_group()


def test_an_orphan_that_cannot_save_is_ended() -> None:
    """It waits for a peer that is dead too, say; Python's handler never gets its turn."""
    program = (
        "import signal, threading, time\n"
        "import olmo_ext.signals as signals\n"
        "from olmo_ext.signals import StopSignals, end_after\n"
        "signals._in_process_group = lambda: True\n"
        "with StopSignals():\n"
        "    end_after(lambda: time.sleep(0.1), grace=0.3)\n"
        "    threading.Event().wait()\n"
    )
    # Left to itself it would wait for ever.
    done = subprocess.run([sys.executable, "-c", program], timeout=600)
    assert done.returncode == 128 + signal.SIGTERM
