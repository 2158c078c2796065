"""A real SLURM on this machine beside whatever is set up, gone afterwards: one node of two CPUs, or
several, each in a network namespace with an address and a host name of its own.

    python tests/launch/slurm/real_slurm.py bash  # a shell where sbatch, squeue, scancel work

Debian's `slurm-wlm` and `munge` are needed, for several nodes `iproute2` as well. Everything (key,
sockets, state, spool, logs) is in one temporary folder, the ports are free ones, and no process
outlives the `with`.
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shlex
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
SlurmctldHost={host}({address})
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its old credentials are no longer valid: by default 120 seconds.
AuthInfo=socket={folder}/munge.socket,cred_expire=6
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
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
{nodes}
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
"""

NODE = "NodeName={name} NodeHostname={name} NodeAddr={address} CPUs={cpus} RealMemory=1000"
SUBNET = "10.77.{part}."
"""Of the nodes' bridge, the controller at 254; `part` keeps two of them apart."""


@dataclass(frozen=True)
class Node:
    """Where a slurmd runs."""

    name: str
    address: str = "127.0.0.1"
    inside: tuple[str, ...] = ()
    """A command's prefix that puts it there."""


def missing() -> list[str]:
    """What stands in the way of a SLURM here, in words; empty if nothing."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=path) is None]
    if absent:
        return [f"{', '.join(absent)} not installed (apt-get install slurm-wlm munge)"]
    return [] if os.geteuid() == 0 else ["the daemons are started as root only"]


def no_network() -> list[str]:
    """What stands in the way of several nodes here, in words; empty if nothing."""
    if shutil.which("ip") is None:
        return ["no several nodes: iproute2 is not installed"]
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        try:
            _network(stack, Path(folder), 1)
        except subprocess.CalledProcessError as error:
            return [f"no several nodes: {shlex.join(error.cmd)} says {error.stderr.strip()}"]
    return []


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
def real_slurm(*, cpus: int = 2, num_nodes: int = 1) -> Iterator[Slurm]:
    """Start munged, slurmctld and the slurmds; on leaving, end all jobs and all of them."""
    with ExitStack() as stack:
        # Not pytest's tmp_path: a socket's path has at most 108 characters, and munge wants every
        # folder above it to belong to root and to be writable by nobody else (or sticky, as /tmp).
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp")))
        folder.chmod(0o711)
        (folder / "state").mkdir()
        (folder / "plugstack.conf").touch()
        (folder / "munge.key").touch(mode=0o600)
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        controller_port, node_port = _free_ports(2)
        host = socket.gethostname().split(".")[0]
        nodes, address = [Node(host)], "127.0.0.1"
        if num_nodes > 1:
            nodes, address = _network(stack, folder, num_nodes)
        for node in nodes:
            (folder / f"spool-{node.name}").mkdir()
        lines = [NODE.format(name=node.name, address=node.address, cpus=cpus) for node in nodes]
        settings = {"controller_port": controller_port, "node_port": node_port, "address": address}
        conf_text = CONF.format(host=host, folder=folder, nodes="\n".join(lines), **settings)
        (folder / "slurm.conf").write_text(conf_text)
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
        for node in nodes:
            arguments = ("-D", "-f", conf, "-N", node.name)
            _daemon(stack, folder, "slurmd", *arguments, inside=node.inside)
        stack.callback(_cancel_jobs, slurm)

        def all_idle() -> bool:
            states = slurm.run("sinfo", "-h", "-N", "-p", "cpu", "-o", "%T", check=False).split()
            return states == ["idle"] * num_nodes

        _wait(all_idle, folder, "slurmd")
        yield slurm


def _network(stack: ExitStack, folder: Path, num: int) -> tuple[list[Node], str]:
    """A bridge and `num` namespaces on it, which find one another by name; the bridge's address."""
    part = os.getpid() % 250
    subnet, bridge = SUBNET.format(part=part), f"olx{part}"
    nodes = [f"olx{part}-node{number}" for number in range(1, num + 1)]
    lines = [f"{subnet}{number} {name}\n" for number, name in enumerate(nodes, start=1)]
    hosts = folder / "hosts"
    hosts.write_text("".join(["127.0.0.1 localhost\n", *lines]))

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    ip("link", "add", bridge, "type", "bridge")
    stack.callback(ip, "link", "del", bridge)
    ip("addr", "add", f"{subnet}254/24", "dev", bridge)
    ip("link", "set", bridge, "up")
    made = []
    for number, name in enumerate(nodes, start=1):
        ip("netns", "add", name)
        stack.callback(ip, "netns", "del", name)
        ends = f"v{part}-{number}", f"w{part}-{number}"
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1], "netns", name)
        ip("link", "set", ends[0], "master", bridge, "up")
        ip("-n", name, "addr", "add", f"{subnet}{number}/24", "dev", ends[1])
        ip("-n", name, "link", "set", ends[1], "up")
        ip("-n", name, "link", "set", "lo", "up")
        # Not `ip netns exec`, which mounts another /sys, without the cgroups that slurmd wants.
        told = f'mount --bind {hosts} /etc/hosts && hostname {name} && exec "$@"'
        inside = ("nsenter", f"--net=/run/netns/{name}", "unshare", "--mount", "--uts")
        made.append(Node(name, f"{subnet}{number}", (*inside, "sh", "-c", told, "sh")))
    return made, f"{subnet}254"


def _free_ports(num: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _daemon(
    stack: ExitStack, folder: Path, name: str, *arguments: str, inside: tuple[str, ...] = ()
) -> None:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    assert path is not None
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: whoever kills the tests kills it too

    with (folder / f"{name}.out").open("a") as out:
        # A job inherits slurmd's environment in part: nothing of ours must get in that way.
        clean = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "HOME": "/root"}
        process = subprocess.Popen(
            [*inside, path, *arguments], env=clean, preexec_fn=die_with_parent,
            stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with real_slurm(num_nodes=int(os.environ.get("NODES", "1"))) as running:
        sys.exit(subprocess.call(sys.argv[1:] or ["bash"], env=os.environ | running.environment))
