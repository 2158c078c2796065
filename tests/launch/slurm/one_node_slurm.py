"""A real SLURM on this machine beside whatever is set up: one node, two CPUs, gone afterwards.

    python tests/launch/slurm/one_node_slurm.py bash  # a shell where sbatch, squeue, scancel work

Debian's `slurm-wlm` and `munge` are needed. Everything (key, sockets, state, spool, logs) is in one
temporary folder, the ports are free ones, and no process outlives the `with`.
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")

CONF = """\
ClusterName=one-node
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its old credentials are no longer valid: by default 120 seconds.
AuthInfo=socket={folder}/munge.socket,cred_expire=6
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
PlugStackConfig={folder}/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0,bf_interval=2
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=40
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 Port={node_port} CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
"""


def missing() -> list[str]:
    """What stands in the way of a SLURM here, in words; empty if nothing."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=path) is None]
    if absent:
        return [f"{', '.join(absent)} not installed (apt-get install slurm-wlm munge)"]
    return [] if os.geteuid() == 0 else ["the daemons are started as root only"]


@dataclass
class Slurm:
    """A running one."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to talk to it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *command: str, check: bool = True) -> str:
        """A SLURM command's output."""
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, timeout=60
        )
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def job(self, number: int | str) -> dict[str, str]:
        """What the controller knows of a job, by its own names (JobState, Reason, Restarts ...)."""
        text = self.run("scontrol", "show", "job", "-o", str(number), check=False)
        return dict(re.findall(r"(\w+)=(\S*)", text.splitlines()[0] if text else ""))

    def processes(self) -> list[int]:
        """Of jobs: every process with this SLURM and a job's number in its environment."""
        found = []
        mark = f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                values = environ.read_bytes().split(b"\0")
                if mark in values and any(v.startswith(b"SLURM_JOB_ID=") for v in values):
                    found.append(int(environ.parent.name))
        return sorted(found)


@contextmanager
def one_node_slurm(*, cpus: int = 2) -> Iterator[Slurm]:
    """Start munged, slurmctld and slurmd; on leaving, end all jobs and the three."""
    with ExitStack() as stack:
        # Not pytest's tmp_path: a socket's path has at most 108 characters, and munge wants every
        # folder above it to belong to root and to be writable by nobody else (or sticky, as /tmp).
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp")))
        folder.chmod(0o711)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "plugstack.conf").touch()
        (folder / "munge.key").touch(mode=0o600)
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        controller_port, node_port = _free_ports(2)
        host = socket.gethostname().split(".")[0]
        settings = {"controller_port": controller_port, "node_port": node_port, "cpus": cpus}
        (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder, **settings))
        slurm = Slurm(folder)
        conf = str(folder / "slurm.conf")
        stack.callback(_kill_left, slurm)
        munge = {name: f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "seed")}
        _daemon(
            stack, folder, "munged", "--foreground", f"--socket={folder}/munge.socket",
            *munge.values(), f"--log-file={folder}/munge.log",
        )  # fmt: skip
        _wait(lambda: (folder / "munge.socket").exists(), folder, "munged")
        _daemon(stack, folder, "slurmctld", "-D", "-f", conf)
        _daemon(stack, folder, "slurmd", "-D", "-f", conf, "-N", host)
        stack.callback(_cancel_jobs, slurm)
        _wait(lambda: "idle" in slurm.run("sinfo", "-h", check=False), folder, "slurmd")
        yield slurm


def _free_ports(num: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _daemon(stack: ExitStack, folder: Path, name: str, *arguments: str) -> None:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    assert path is not None
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: whoever kills the tests kills it too

    with (folder / f"{name}.out").open("w") as out:
        # A job inherits slurmd's environment in part: nothing of ours must get in that way.
        clean = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "HOME": "/root"}
        process = subprocess.Popen(
            [path, *arguments], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=clean, preexec_fn=die_with_parent,
        )  # fmt: skip
    stack.callback(_end, process)


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _cancel_jobs(slurm: Slurm) -> None:
    """While the daemons are still there to answer."""
    with suppress(AssertionError, subprocess.TimeoutExpired):
        if slurm.run("squeue", "-h", "-o", "%i", check=False).split():
            slurm.run("scancel", "--signal=KILL", "--full", "--user=root", check=False)
            slurm.run("scancel", "--user=root", check=False)
            end = time.monotonic() + 10
            while slurm.run("squeue", "-h", check=False) and time.monotonic() < end:
                time.sleep(0.2)


def _kill_left(slurm: Slurm) -> None:
    for pid in slurm.processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _wait(happens: object, folder: Path, name: str, seconds: float = 600) -> None:
    assert callable(happens)
    end = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > end:
            said = "\n".join(
                f"{path.name}:\n{path.read_text(errors='replace')[-1500:]}"
                for path in (*folder.glob("*.log"), *folder.glob("*.out"))
            )
            raise RuntimeError(f"{name} does not answer after {seconds:.0f} s\n{said}")
        time.sleep(0.1)


if __name__ == "__main__":
    if why := missing():
        sys.exit("; ".join(why))
    with one_node_slurm() as running:
        sys.exit(subprocess.call(sys.argv[1:] or ["bash"], env=os.environ | running.environment))
