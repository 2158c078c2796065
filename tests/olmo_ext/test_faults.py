"""Runs that are killed again and again: nothing is lost, nothing is trained twice, nothing differs.

    make faults                                          # the figures of docs/reliability.md
    pytest tests/olmo_ext/test_faults.py                 # a handful, as in CI

FAULTS sets the number of faults a campaign injects, FAULTS_OUT a file for what happened.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import torch
import warm
import xxhash

from data_injection.ledger import ROW, position_from, read_segments
from data_injection.lineage import is_effective, lineage
from data_injection.order import RowOrder
from data_injection.plan import InjectionPlan
from eval.checkpoints.checkpoint import find_checkpoints, load_plan, verify_checkpoint
from eval.records import read_records
from launch.sweep.executor import fork_server

Write = Callable[..., Path]

FAULTS = int(os.environ.get("FAULTS", "0"))
"""0: the handful that CI runs."""

ROWS_A_STEP = 2.5

STEPS_A_FAULT = 12
"""The run is made so long that all faults find it still running."""

SIGNALS = ("SIGKILL", "SIGTERM", "SIGKILL", "SIGUSR1", "SIGKILL", "SIGTERM twice")


# -- what must hold after whatever happened -------------------------------------------------------


def expected_rows(plan: InjectionPlan, num_steps: int) -> list[tuple[int, int, int, int]]:
    """(step, slot, example, task) of every planned row, sorted."""
    rows = []
    for step in range(num_steps):
        at = plan.at(step)
        for slot, example, task in zip(at.slots, at.examples, at.tasks, strict=True):
            rows.append((step, int(slot), int(example), int(task)))
    return sorted(rows)


def expected_digest(folder: Path, plan: InjectionPlan, num_steps: int) -> str:
    """The stream digest from the corpus file, the engine's order and the plan alone."""
    identity = json.loads((folder / "plan.json").read_text())
    seq_len, batch = plan.geometry.seq_len, plan.geometry.batch_size
    tokens = np.fromfile(folder.parent / "tokens.npy", dtype=np.uint16).reshape(-1, seq_len)
    order = RowOrder(num_rows=len(tokens), batch_size=batch, seed=identity["data_seed"])
    total = 0
    for step in range(num_steps):
        rows = np.array([tokens[order.row(step * batch + slot)] for slot in range(batch)])
        rows = rows.astype("<i8")
        at = plan.at(step)
        for slot, example, task in zip(at.slots, at.examples, at.tasks, strict=True):
            spliced = [*plan.tasks[task].tokens[example], plan.eos_token_id]
            rows[slot, plan.offset : plan.offset + len(spliced)] = spliced
        for slot in range(batch):
            total += xxhash.xxh3_64_intdigest(rows[slot].tobytes(), seed=step * batch + slot)
    return f"{total % 2**64:016x}"


def assert_whole(folder: Path, num_steps: int) -> Counter[str]:
    """Everything that a run promises, whatever happened to it; what was abandoned comes back."""
    plan = load_plan(folder)
    checkpoints = find_checkpoints(folder)
    assert checkpoints[-1].step == num_steps
    for checkpoint in checkpoints:
        assert verify_checkpoint(checkpoint.path) == []
    assert not list(folder.glob("*-tmp"))
    assert not (folder / "requeue.marker").exists()
    assert (folder / "latest-unsharded").resolve() == checkpoints[-1].path.resolve()
    identity = json.loads((checkpoints[-1].path / "olmo_ext.json").read_text())
    segments = read_segments(folder / "ledger")
    path = lineage(segments, position_from(identity["ledger"], where="test"), step=num_steps)
    assert path.problems == ()
    taken = [(segments[one.segment], one) for one in path.stretches]
    rows = np.concatenate([part.rows[is_effective(part, (one,))] for part, one in taken])
    assert sorted(rows.tolist()) == expected_rows(plan, num_steps)
    assert identity["ledger"]["stream_digest"] == expected_digest(folder, plan, num_steps)
    assert sorted(losses(folder)) == sorted({*range(7, num_steps, 7), num_steps})
    all_rows = sum(len(segment.rows) for segment in segments.values())
    return Counter(starts=len(segments), abandoned=all_rows - len(rows), rows=len(rows))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    latest = find_checkpoints(folder)[-1].path
    found: dict[str, torch.Tensor] = dict(torch.load(latest / "model.pt", weights_only=True))
    optim = torch.load(latest / "optim.pt", weights_only=True)
    for key, state in optim["state"].items():
        found |= {f"optim.{key}.{name}": value for name, value in state.items()}
    return found


def assert_bit_equal(one: Path, two: Path) -> None:
    ours, theirs = weights(one), weights(two)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 20
    different = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    assert different == []


# -- one life of a run ----------------------------------------------------------------------------


@dataclass
class Life:
    """One start of the run and what ended it."""

    ranks: int
    workers: int
    fault: str
    """A signal, "SIGKILL of one rank", or "none"."""
    at_startup: bool = False
    steps: int = 0
    """Steps it was let take at least, if not at startup."""
    step: int | None = None
    """The latest checkpoint afterwards."""
    unfinished_save: bool = False
    """Whether the fault fell into the writing of a checkpoint."""
    finished_first: bool = False
    """Whether the run had ended before the fault came."""


@dataclass
class Run:
    """A run that can be started, hurt and started again."""

    experiment: Path
    folder: Path
    overrides: list[str] = field(default_factory=list)

    def arguments(self, *, workers: int = 0) -> list[str]:
        arguments = ["train", str(self.experiment), "--resume"]
        settings = [f"train.save_folder={self.folder}", f"train.data.num_workers={workers}"]
        for override in [*settings, *self.overrides]:
            arguments += ["-o", override]
        return arguments

    def start(self, *, ranks: int, workers: int) -> Process:
        arguments, log = self.arguments(workers=workers), self.folder.with_suffix(".log")
        return Torchrun(arguments, log, ranks) if ranks > 1 else Forked(arguments, log)

    def segments(self) -> int:
        return len(list((self.folder / "ledger").glob("segment-*.bin")))

    def rows(self) -> int:
        """Rows in the newest segment, roughly: its seals are counted too."""
        newest = max((self.folder / "ledger").glob("segment-*.bin"))
        return newest.stat().st_size // ROW.itemsize

    def finish(self, *, ranks: int) -> None:
        """A life without a fault: no agent is needed for its ranks to meet."""
        if ranks > 1:
            done = warm.run(*self.arguments(), ranks=ranks, timeout=600)
            assert done.returncode == 0, done.stdout + done.stderr
        else:
            process = self.start(ranks=1, workers=0)
            assert process.wait(600) == 0, self.folder.with_suffix(".log").read_text()[-3000:]

    def live(self, life: Life, rng: random.Random) -> None:
        """One start, ended by the life's fault."""
        before = self.segments()
        process = self.start(ranks=life.ranks, workers=life.workers)
        if life.at_startup:
            time.sleep(rng.uniform(0.0, 1.5))
        else:
            # So many steps of this life, told by the rows in its segment, and some time more.
            life.steps = rng.randrange(0, 3 * STEPS_A_FAULT // 2)
            deadline = time.monotonic() + 600
            while process.alive() and time.monotonic() < deadline:
                if self.segments() > before and self.rows() >= ROWS_A_STEP * life.steps:
                    break
                time.sleep(0.002)
            time.sleep(rng.uniform(0.0, 0.1))
        life.finished_first = not process.alive()
        process.hurt(life.fault)
        status = process.wait(300)
        gentle = life.fault.startswith(("SIGTERM", "SIGUSR1"))
        marker = self.folder / "requeue.marker"
        # At startup from the moment on at which the command line runs.
        if gentle and not life.finished_first and life.ranks == 1 and self.segments() > before:
            assert status == 0, self.folder.with_suffix(".log").read_text()[-3000:]
            done = find_checkpoints(self.folder)[-1].step
            assert marker.exists() or done == self.num_steps()
            if marker.exists():
                assert json.loads(marker.read_text())["step"] == done
        checkpoints = find_checkpoints(self.folder)
        life.step = checkpoints[-1].step if checkpoints else None
        life.unfinished_save = bool(list(self.folder.glob("*-tmp")))

    def num_steps(self) -> int:
        (found,) = (o for o in self.overrides if o.startswith("train.max_duration="))
        return int(found.split("=")[1])


class Process(Protocol):
    """A started run."""

    def alive(self) -> bool: ...

    def hurt(self, fault: str) -> None: ...

    def wait(self, seconds: float) -> int: ...


class Forked:
    """On one rank, forked from a process that has imported the engine."""

    def __init__(self, arguments: list[str], log: Path, die_at: int | None = None) -> None:
        import fault_worker  # type: ignore[import-not-found]

        folder = str(log.with_suffix(""))
        args = (arguments, log, folder, die_at)
        self.process = fork_server().Process(target=fault_worker.train, args=args)
        self.process.start()

    def alive(self) -> bool:
        return self.process.is_alive()

    def hurt(self, fault: str) -> None:
        for number in _numbers(fault):
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def wait(self, seconds: float) -> int:
        self.process.join(seconds)
        assert not self.process.is_alive(), "still running"
        return self.process.exitcode


class Torchrun:
    """On several ranks, as docs/reliability.md says to start them."""

    def __init__(self, arguments: list[str], log: Path, ranks: int) -> None:
        bin_folder = Path(sys.executable).parent
        command = [str(bin_folder / "torchrun"), "--standalone", f"--nproc-per-node={ranks}"]
        command += ["--signals-to-handle=SIGTERM,SIGINT,SIGUSR1", "--shutdown-timeout=60"]
        command += ["--no-python", str(bin_folder / "olmo-ext"), *arguments]
        with log.open("a") as file:
            self.process = subprocess.Popen(
                command,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def alive(self) -> bool:
        return self.process.poll() is None

    def hurt(self, fault: str) -> None:
        if fault == "SIGKILL":  # the node goes: agent, ranks and all
            self._kill([self.process.pid, *_descendants(self.process.pid)])
        elif fault == "SIGKILL of one rank":
            self._kill(_children(self.process.pid)[-1:])
        else:
            for number in _numbers(fault):
                self.process.send_signal(number)

    def _kill(self, pids: list[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait(self, seconds: float) -> int:
        return self.process.wait(seconds)


def _numbers(fault: str) -> Iterator[int]:
    name, *twice = fault.split()
    yield signal.Signals[name]
    if twice:
        time.sleep(0.01)
        yield signal.Signals[name]


def _children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return sorted(found)


def _descendants(pid: int) -> list[int]:
    """Processes below one, parents first."""
    below = _children(pid)
    return below + [process for child in below for process in _descendants(child)]


# -- campaigns ------------------------------------------------------------------------------------


@pytest.fixture
def make_run(
    write_experiment: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Run]:
    """make_run(name, num_steps): runs of one experiment; a checkpoint every third step."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def edit(config: dict) -> None:
        config["train"].update(save_interval_unsharded=3)
        config["train"]["model"]["residual_dropout"] = 0.1  # the random state must survive too
        config["callbacks"] = {"task_eval": {"every": 7}}

    experiment = write_experiment(edit)

    def make(name: str, num_steps: int) -> Run:
        return Run(experiment, tmp_path / name, [f"train.max_duration={num_steps}"])

    return make


def report(campaign: str, lives: list[Life], counts: Counter[str], seconds: float) -> None:
    """Append what happened to FAULTS_OUT, one line of JSON a campaign."""
    if not (path := os.environ.get("FAULTS_OUT")):
        return
    row = {
        "campaign": campaign,
        "faults": sum(not life.finished_first for life in lives),
        "by_kind": Counter(life.fault for life in lives if not life.finished_first),
        "at_startup": sum(life.at_startup for life in lives),
        "in_a_save": sum(life.unfinished_save for life in lives),
        "ranks": sorted({life.ranks for life in lives}),
        "workers": sorted({life.workers for life in lives}),
        **counts,
        "seconds": round(seconds),
        "lives": [dataclasses.asdict(life) for life in lives],
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("a") as file:
        file.write(json.dumps(row) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("campaign", "ranks", "faults", "num"),
    [
        ("one rank", (1,), SIGNALS, FAULTS or 5),
        ("two ranks", (2,), ("SIGKILL of one rank", *SIGNALS), FAULTS // 4 or 1),
        ("one and two ranks", (1, 2), ("SIGKILL of one rank", *SIGNALS), FAULTS // 4 or 2),
    ],
)
def test_a_run_killed_at_random_times_is_the_run_that_was_never_killed(
    campaign: str, ranks: tuple[int, ...], faults: tuple[str, ...], num: int, make_run: Callable
) -> None:
    rng = random.Random(f"{campaign} {os.environ.get('FAULTS_SEED', 0)}")
    num_steps = 6 + STEPS_A_FAULT * num
    run: Run = make_run("killed", num_steps)
    started = time.monotonic()
    lives = []
    for number in range(num):
        fault = faults[number % len(faults)]
        of = ranks[number % len(ranks)]
        if of == 1 and fault == "SIGKILL of one rank":
            fault = "SIGKILL"
        life = Life(ranks=of, workers=rng.choice([0, 0, 1, 2]), fault=fault)
        life.at_startup = number % 8 == 7
        run.live(life, rng)
        lives.append(life)
    run.finish(ranks=ranks[-1])
    counts = assert_whole(run.folder, num_steps)
    # Most must have hit a run that was still going, or this has shown nothing.
    assert sum(not life.finished_first for life in lives) > 0.5 * num
    if len(ranks) == 1:
        whole: Run = make_run("whole", num_steps)
        whole.finish(ranks=ranks[0])
        assert_whole(whole.folder, num_steps)
        assert_bit_equal(run.folder, whole.folder)
        assert losses(run.folder) == losses(whole.folder)
    report(campaign, lives, counts, time.monotonic() - started)


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["one rank", "every process"])
def test_a_signal_stops_all_ranks_at_one_step_whoever_gets_it(
    whom: str, make_run: Callable
) -> None:
    """`scancel` signals every process, the loader's workers too. A signal to the agent alone:
    tests/launch/slurm/test_agents.py, SIGUSR1 with two agents and SIGTERM with one."""
    run: Run = make_run("run", 10_000)
    process = run.start(ranks=2, workers=1)
    assert isinstance(process, Torchrun)
    deadline = time.monotonic() + 600
    while not find_checkpoints(run.folder)[2:] and time.monotonic() < deadline:
        time.sleep(0.05)
    below = _descendants(process.process.pid)
    assert len(below) >= 4  # two ranks, a worker each
    ranks = _children(process.process.pid)
    targets = {
        "one rank": ranks[-1:],
        "every process": [process.process.pid, *below],
    }[whom]
    for pid in targets:
        os.kill(pid, signal.SIGUSR1)
    status = process.wait(300)
    said = run.folder.with_suffix(".log").read_text()[-3000:]
    marker = json.loads((run.folder / "requeue.marker").read_text())
    assert marker["reason"] in ("SIGUSR1", "SIGTERM"), said
    assert marker["step"] == find_checkpoints(run.folder)[-1].step, said
    # The agent's own status says nothing when it was signalled: batch scripts ask the marker.
    assert whom != "one rank" or status == 0, said
    assert verify_checkpoint(find_checkpoints(run.folder)[-1].path) == []


def losses(folder: Path) -> dict[int, float]:
    rows = read_records(folder).query("metric == 'train_loss'")
    return dict(zip(rows.step, rows.value, strict=True))


@pytest.mark.slow
def test_a_run_killed_before_any_file_operation_goes_on_as_if_it_had_not(
    make_run: Callable, tmp_path: Path
) -> None:
    """Every place between two operations, where a random kill seldom falls; CI takes a few."""
    whole: Run = make_run("whole", 6)
    whole.finish(ranks=1)
    count = int((tmp_path / "whole.count").read_text())
    assert count > 60
    started = time.monotonic()
    places = range(count) if FAULTS else range(7, count, count // 6)
    killed, abandoned = [], 0
    for place in places:
        run: Run = make_run(f"at-{place}", 6)
        log = run.folder.with_suffix(".log")
        arguments = ["train", str(run.experiment), "--resume"]
        for override in [f"train.save_folder={run.folder}", *run.overrides]:
            arguments += ["-o", override]
        process = Forked(arguments, log, die_at=place)
        if process.wait(600) != -signal.SIGKILL:
            continue  # an operation the first run had and this one has not, such as a cache
        killed.append(place)
        run.finish(ranks=1)
        abandoned += assert_whole(run.folder, 6)["abandoned"]
        assert_bit_equal(run.folder, whole.folder)
    assert len(killed) >= 0.9 * len(places)
    lives = [Life(ranks=1, workers=0, fault="SIGKILL before a file operation") for _ in killed]
    counts = Counter(places=len(killed), operations=count, abandoned=abandoned)
    report("every file operation", lives, counts, time.monotonic() - started)
