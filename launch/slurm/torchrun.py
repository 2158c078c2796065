"""The exact torchrun line of a run, and running it.

    olmo-ext launch torchrun experiment.yaml --nproc 8
    torchrun_command(["train", "experiment.yaml", "--resume"], nproc=8)   # the same, as a list

torchrun's own defaults do harm here: it knows no SIGUSR1 (which then kills the agent and orphans
the ranks) and gives a save 30 seconds. The line passes signals on, waits for a save, and resumes,
so that the same line started again, by hand, by --max-restarts or by SLURM, goes on from the last
checkpoint.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from data_injection.errors import ConfigError

SIGNALS = "SIGTERM,SIGINT,SIGUSR1"
"""What the agent passes on to the ranks. SIGHUP need not be: it ends the
agent, and ranks whose agent is gone save and end (olmo_ext/signals.py)."""

DRIVER = "launch"
"""The module that each rank runs: `python -m launch` is the command line."""

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_ENDPOINT = re.compile(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9_.-]+):(\d+)")


def torchrun_command(
    arguments: Sequence[str],
    *,
    nproc: int,
    nnodes: int = 1,
    rdzv_endpoint: str | None = None,
    rdzv_id: str | None = None,
    max_restarts: int = 0,
    shutdown_timeout: int = 600,
    bin_folder: Path | None = None,
    driver: str = DRIVER,
) -> list[str]:
    """The command of one node's agent; on several nodes the same on each.

    Args:
        arguments: of olmo-ext, as one would type them; `train ... --resume`.
        nproc: ranks on a node.
        rdzv_endpoint: HOST:PORT where the agents meet, the host one of the nodes.
        rdzv_id: name of the meeting; another job's must differ. Default: olmo-ext.
        max_restarts: how often the ranks are started again after one of them failed.
        shutdown_timeout: seconds from a signal to SIGKILL; more than a step and a save take.
        bin_folder: where torchrun is; default: beside this interpreter.
        driver: module that takes the arguments instead of olmo-ext; it ends in `launch.cli.main()`.

    Raises:
        ConfigError: a number out of its range, several nodes without an endpoint.
    """
    for option, value, least in (
        ("--nproc", nproc, 1),
        ("--nnodes", nnodes, 1),
        ("--max-restarts", max_restarts, 0),
        ("--shutdown-timeout", shutdown_timeout, 1),
    ):
        if value < least:
            raise ConfigError(key=option, value=value, rule=f"must be at least {least}")
    if nnodes > 1 and rdzv_endpoint is None:
        rule = "needs --rdzv-endpoint HOST:PORT, where the agents meet"
        remedy = "give one of the nodes and a free port, for example node01:29400"
        raise ConfigError(key="--nnodes", value=nnodes, rule=rule, remedy=remedy)
    if nnodes == 1 and (rdzv_endpoint is not None or rdzv_id is not None):
        rule = "are for several nodes"
        remedy = "leave them out or set --nnodes"
        raise ConfigError(key="--rdzv-endpoint and --rdzv-id", rule=rule, remedy=remedy)
    if not _MODULE.fullmatch(driver):
        rule = "must be a module that Python can run with -m"
        remedy = "for example mypkg.driver, with its folder on PYTHONPATH"
        raise ConfigError(key="--driver", value=driver, rule=rule, remedy=remedy)
    bin_folder = bin_folder or Path(sys.executable).parent
    command = [str(bin_folder / "torchrun"), f"--nnodes={nnodes}", f"--nproc-per-node={nproc}"]
    if rdzv_endpoint is None:
        command.append("--standalone")
    else:
        if not (found := _ENDPOINT.fullmatch(rdzv_endpoint)) or not 0 < int(found[2]) < 2**16:
            rule = "must be HOST:PORT, for example node01:29400"
            raise ConfigError(key="--rdzv-endpoint", value=rdzv_endpoint, rule=rule)
        command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={rdzv_endpoint}"]
        command.append(f"--rdzv-id={rdzv_id or 'olmo-ext'}")
    command += [
        f"--max-restarts={max_restarts}",
        f"--signals-to-handle={SIGNALS}",
        f"--shutdown-timeout={shutdown_timeout}",
        # A module under torchrun's own interpreter, not a program: PYTHONPATH, a driver of one's
        # own and a checkout work alike.
        "-m",
        driver,
    ]
    return [*command, *arguments]


def train_arguments(config: Path, overrides: Sequence[str]) -> list[str]:
    """Of olmo-ext, for a start that may be the first or any later one of the run."""
    arguments = ["train", str(config.resolve()), "--resume"]
    return arguments + [part for override in overrides for part in ("-o", override)]


def check_world(config: Path, overrides: Sequence[str], *, world_size: int) -> None:
    """Raise ConfigError for an experiment that so many ranks cannot train."""
    from olmo_ext.config import load_experiment

    batch = load_experiment(config, list(overrides)).train.global_train_batch_size
    if world_size > 0 and batch % world_size:
        fitting = max(n for n in range(1, min(world_size, batch) + 1) if batch % n == 0)
        rule = f"must divide train.global_train_batch_size {batch}"
        remedy = f"the next smaller number that does is {fitting}"
        raise ConfigError(key="--nproc x --nnodes", value=world_size, rule=rule, remedy=remedy)


def launch_torchrun(
    config: Path,
    *,
    nproc: int,
    nnodes: int = 1,
    overrides: Sequence[str] = (),
    dry_run: bool = False,
    console: Console,
    **agent: Any,
) -> None:
    """Print a run's command as a shell takes it, and become it unless `dry_run`.

    agent: as for `torchrun_command`. Raises ConfigError before anything is printed.
    """
    arguments = train_arguments(config, overrides)
    command = torchrun_command(arguments, nproc=nproc, nnodes=nnodes, **agent)
    check_world(config, overrides, world_size=nproc * nnodes)
    environment = environment_of(nnodes)
    shown = [*(f"{name}={value}" for name, value in environment.items()), *command]
    # Not through rich's wrapping and markup: what is printed is pasted into a shell.
    console.file.write(shlex.join(shown) + "\n")
    console.file.flush()
    if not dry_run:
        os.execve(command[0], command, os.environ | environment)


def environment_of(nnodes: int) -> dict[str, str]:
    """What the command needs in its environment; a batch script exports it.

    A store of its own for each start of the ranks: torch 2.13's agent hands the same one to all,
    and restarted ranks then look for each other at the addresses of the dead (gloo: "Connection
    refused"; `next_rendezvous` in torch/distributed/elastic/rendezvous/dynamic_rendezvous.py).
    OLMO_SHARED_FS on several nodes, whose run folder is one and the same: without it each node's
    first rank would take itself for the folder's owner. One thread a rank unless told otherwise, as
    torchrun would choose with a warning.
    """
    environment = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONSAFEPATH": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    return environment | ({"OLMO_SHARED_FS": "1"} if nnodes > 1 else {})
