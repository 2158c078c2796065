"""Command lines in processes forked from one that has imported the engine: a tenth of their cost.

    done = warm.run("train", "a.yaml", cwd=folder)     # `olmo-ext train a.yaml`, as subprocess.run
    done = warm.run("train", "a.yaml", ranks=2)        # as torchrun starts its ranks

A process of its own, as a shell would start it: working folder, environment, arguments, output and
status are its own. What happens before main() is not held here: the programs `olmo-ext` and
torchrun, the interpreter's start and the imports are tests/launch/test_cli.py's,
test_light_verbs.py's and slurm/test_torchrun.py's; real ranks under a real agent test_agents.py's.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import connection, set_start_method
from pathlib import Path

from launch.cli import main
from launch.sweep.executor import fork_server


def run(
    *words: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    ranks: int = 0,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """`olmo-ext WORDS`, or a script if the first one is a .py file.

    env: variables beside this process'. ranks: so many processes that find one another, as under
    torchrun; output is of all, the status is the first that is not 0. timeout: seconds in which
    one of them must end, or all are killed.
    """
    arguments = [str(word) for word in words]
    with tempfile.TemporaryDirectory() as folder, _meeting(ranks) as meeting:
        files = [Path(folder) / name for name in ("out", "err")]
        processes = []
        for rank in range(max(ranks, 1)):
            own = dict(os.environ) | dict(env or {})
            if ranks:
                own |= meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            place = (arguments, str(cwd or Path.cwd()), own, [str(file) for file in files])
            processes.append(fork_server().Process(target=_become, args=place))
            processes[-1].start()
        status = _await(processes, timeout)
        out, err = (file.read_text() if file.exists() else "" for file in files)
    return subprocess.CompletedProcess(arguments, status, out, err)


def _await(processes: list, timeout: float) -> int:
    """The first status that is not 0: then, as under torchrun, the other ranks are ended."""
    left, status = list(processes), 0
    try:
        while left and status == 0:
            ready = connection.wait([process.sentinel for process in left], timeout)
            assert ready, f"none ended in {timeout} seconds"
            for process in [one for one in left if one.sentinel in ready]:
                process.join()
                left.remove(process)
                status = status or process.exitcode
    finally:
        for process in left:
            process.kill()
            process.join()
    return status


@contextmanager
def _meeting(ranks: int) -> Iterator[dict[str, str]]:
    """Where ranks find one another: a store of this process, whose port nobody else can take."""
    if not ranks:
        yield {}
        return
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    del store


def _become(words: list[str], cwd: str, environment: dict[str, str], files: list[str]) -> None:
    """What the forked process does: set itself up as a shell's child, then the program."""
    for stream, file in enumerate(files, start=1):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    set_start_method(None, force=True)  # a loader's workers are forked, as a typed command's
    if words[0].endswith(".py"):
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
    else:
        sys.argv = ["olmo-ext", *words]
        main()
