"""Batch files for SLURM: a template, a site profile and the runs become text; nothing is submitted.

    text = render_train(site, runs, lead=lead, where=where)     # a sweep: one array
    text = render_prepare(site, sources, corpus, where=where)

Whatever comes from outside (names, paths, overrides) is quoted where a shell reads it, and refused
where quoting cannot help: control characters everywhere, quotes and backslashes in SBATCH lines.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_injection.errors import ConfigError
from eval.text import template
from launch.runs import Run
from launch.slurm.lead import Lead
from launch.slurm.site import Cluster
from launch.slurm.torchrun import environment_of, torchrun_command

_PLAIN = re.compile(r"[A-Za-z0-9_.,:@%+/=-]+")
_MEETING = "HEAD-NODE:29400"


@dataclass(frozen=True)
class Where:
    """What the files say of their own making."""

    script: Path
    """The batch file itself; its output goes beside it."""
    command: str
    cwd: Path
    bin_folder: Path
    """Of torchrun and olmo-ext, where the site names no environment of its own."""


def check_line(text: str, *, what: str) -> str:
    """The text, unless it has control characters: no quoting keeps a line with them one line."""
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        rule = "has a line break or another control character, which no batch file can hold"
        raise ConfigError(key=what, value=text, rule=rule, remedy="rename it")
    return text


def directive(option: str, value: object = None) -> str:
    """One SBATCH line. Raises ConfigError for a value that SLURM's own quoting cannot hold."""
    if value is None:
        return f"#SBATCH --{option}"
    text = check_line(str(value), what=f"--{option}")
    if _PLAIN.fullmatch(text):
        return f"#SBATCH --{option}={text}"
    if '"' in text or "\\" in text:
        rule = "has a double quote or a backslash, which an SBATCH line cannot hold"
        raise ConfigError(key=f"--{option}", value=text, rule=rule, remedy="rename the folder")
    return f'#SBATCH --{option}="{text}"'


def job_name(name: str) -> str:
    """A label for squeue: letters, digits and _.=+- are kept."""
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "_", name)


def run_line(run: Run) -> str:
    """NAME FOLDER STEPS ARGUMENTS, quoted for a shell."""
    return shlex.join(_words(run))


def run_lines(run: Run) -> str:
    """The same, one override a line."""
    words = _words(run)
    text = shlex.quote(words[0])
    for before, word in itertools.pairwise(words):
        option = word in ("--override", "-o") and before not in ("--override", "-o")
        text += (" \\\n    " if option else " ") + shlex.quote(word)
    return text


def _words(run: Run) -> list[str]:
    words = [run.name, str(run.folder), str(run.num_steps), *run.arguments]
    return [check_line(word, what=f"run {run.name!r}") for word in words]


def render_train(
    site: Cluster,
    runs: Mapping[int, Run],
    *,
    name: str,
    lead: Lead,
    where: Where,
    runs_file: Path | None = None,
) -> str:
    """The batch file of one run, or of a sweep's as an array.

    Args:
        runs: line number in runs_file -> run, those to be trained; one run without runs_file.
        name: of the job.
        runs_file: where `runs_text` is or will be; None for one run alone.
    """
    several = runs_file is not None
    select = (
        f'eval "set -- $(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {shlex.quote(str(runs_file))})"'
        if several
        else f"set -- {run_lines(next(iter(runs.values())))}"
    )
    lines = [directive("job-name", job_name(name)), *_resources(site)]
    out = str(where.script.parent).replace("%", "%%")
    if several:
        limit = f"%{site.array_limit}" if site.array_limit else ""
        lines.append(directive("array", f"{ranges(list(runs))}{limit}"))
    lines.append(directive("output", f"{out}/{'%A_%a' if several else '%j'}.out"))
    lines += [
        directive("open-mode", "append"),
        directive("requeue"),
        directive("signal", f"USR1@{lead.seconds}"),
        *(f"#SBATCH {line}" for line in site.directives),
    ]
    title = f"{len(runs)} runs of the sweep {name}, an array" if several else f"The run {name}"
    return _fill(
        "train.sbatch",
        where,
        title=check_line(title, what="name"),
        reckoning=f"# SIGUSR1 comes {lead.seconds} s before the end: {lead.why}.",
        directives="\n".join(lines),
        environment=_environment(site, where),
        select=select,
        site=site,
        srun=_srun(site, shutdown_timeout=lead.seconds),
    )


def runs_text(runs: Mapping[int, Run]) -> str:
    """The file of commands: line n is the array's task n."""
    assert list(runs) == list(range(1, len(runs) + 1))
    return "".join(f"{run_line(run)}\n" for run in runs.values())


def render_prepare(
    site: Cluster, sources: Sequence[str], corpus: Path, *, name: str, where: Where
) -> str:
    """The batch file that makes the corpus; `sources` are the words of `olmo-ext prepare`."""
    words = ["prepare", *sources, "--out", str(corpus)]
    for word in words:
        check_line(word, what="--prepare")
    partition = site.prepare_partition or site.partition
    lines = [directive("job-name", job_name(f"{name}-corpus"))]
    given = {"partition": partition, "account": site.account, "qos": site.qos}
    given["mem"] = site.prepare_memory
    lines += [directive(option, value) for option, value in given.items() if value is not None]
    lines += [directive("nodes", 1), directive("ntasks", 1)]
    lines.append(directive("cpus-per-task", site.prepare_cpus))
    lines.append(directive("time", site.prepare_time))
    out = str(where.script.parent).replace("%", "%%")
    lines.append(directive("output", f"{out}/prepare-%j.out"))
    return _fill(
        "prepare.sbatch",
        where,
        directives="\n".join(lines),
        environment=_environment(site, where),
        prepare=shlex.join(["srun", *site.srun_options, *site.container, "olmo-ext", *words]),
    )


def ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 as SLURM writes them: 1-3,7."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def _fill(name: str, where: Where, **values: Any) -> str:
    return template("launch.slurm", name, escape=False).render(
        command=check_line(where.command, what="command"),
        cwd=shlex.quote(check_line(str(where.cwd), what="working directory")),
        cwd_comment=str(where.cwd),
        version=version("olmo-ext"),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **values,
    )


def _resources(site: Cluster) -> list[str]:
    gpus = ":".join(filter(None, (site.gpu_type, str(site.gpus_per_node))))
    asked: list[tuple[str, object]] = [
        ("partition", site.partition),
        ("account", site.account),
        ("qos", site.qos),
        ("nodes", site.nodes),
        ("ntasks-per-node", 1),
        ("cpus-per-task", site.cpus_per_node),
        ("mem", site.memory),
        ("time", site.time),
    ]
    if site.gpus_per_node:
        gres = site.gpu_option == "gres"
        asked.append(("gres", f"gpu:{gpus}") if gres else ("gpus-per-node", gpus))
    return [directive(option, value) for option, value in asked if value is not None]


def _environment(site: Cluster, where: Where) -> str:
    """setup, the environment's activation, variables."""
    lines = list(site.setup)
    if site.activate:
        lines.append(f"source {shlex.quote(site.activate)} || exit 1")
    elif not (site.container or any("container" in option for option in site.srun_options)):
        folder = check_line(str(where.bin_folder), what="environment")
        lines.append(f"export PATH={shlex.quote(folder)}:$PATH")
    variables = environment_of(site.nodes) | site.environment
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join(lines)


def _srun(site: Cluster, *, shutdown_timeout: int) -> str:
    """One torchrun a node; a line an option."""
    meeting: dict[str, Any] = {"rdzv_endpoint": _MEETING, "rdzv_id": "ID"} if site.nodes > 1 else {}
    command = torchrun_command(
        (), nproc=site.ranks, nnodes=site.nodes, **meeting, bin_folder=Path(), driver=site.driver,
        shutdown_timeout=max(shutdown_timeout, 60),
    )  # fmt: skip
    words = [
        f"srun --nodes={site.nodes} --ntasks={site.nodes} --ntasks-per-node=1",
        f"--kill-on-bad-exit=0 --wait={max(shutdown_timeout, 600)}",
        # srun has not taken it over from sbatch since 22.05.
        f"--cpus-per-task={site.cpus_per_node}" if site.cpus_per_node else "",
        *map(shlex.quote, site.srun_options),
        """bash -c 'trap "" USR1; exec "$@"' bash""",
        shlex.join(site.container),
    ]
    torchrun = [shlex.quote(word) for word in command]
    joined = " ".join([*torchrun, '"$@"'])
    joined = joined.replace(f"--rdzv-endpoint={_MEETING}", '--rdzv-endpoint="$head:$port"')
    joined = joined.replace("--rdzv-id=ID", '--rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"')
    split = joined.replace(" --max-restarts", " \\\n    --max-restarts")
    split = split.replace(" -m ", " \\\n    -m ")
    return " \\\n    ".join([*filter(None, words), split])
