"""A site profile: what a cluster wants to be told, in one YAML.

    site = load_site("configs/sites/slurm-gpu.yaml")
    site.seconds            # of its time limit

Every value is read as text and then as what its key says: YAML would take `24:00:00` for 86,400.
Lines of `setup` are shell and run as they stand; all else is quoted wherever a shell sees it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path

from data_injection.errors import ConfigError
from launch.yaml_file import read_settings
from olmo_ext.shipped import locate, shipped

TIME_FORMS = "minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS"

_TIMES = (
    re.compile(r"(?P<m>\d+)(?::(?P<s>[0-5]?\d))?", re.ASCII),
    re.compile(r"(?P<h>\d+):(?P<m>[0-5]?\d):(?P<s>[0-5]?\d)", re.ASCII),
    re.compile(r"(?P<d>\d+)-(?P<h>\d+)(?::(?P<m>[0-5]?\d)(?::(?P<s>[0-5]?\d))?)?", re.ASCII),
)
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_FORMS = (
    (("partition", "account", "qos", "gpu_type", "prepare_partition"), r"[A-Za-z0-9_.,:@+/=-]+",
     "must be letters, digits and _.,:@+/=-, as the cluster names it"),
    (("memory", "prepare_memory"), r"\d+[KMGT]?", "must be like 900G, or 0 for all of a node"),
    (("gpu_option",), "gpus-per-node|gres", "must be gpus-per-node or gres"),
)  # fmt: skip
_ONE_LINE = "must have no control characters"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

OURS = {
    *("job-name", "output", "error", "open-mode", "requeue", "no-requeue", "signal", "array"),
    *("dependency", "nodes", "ntasks", "ntasks-per-node", "time", "kill-on-invalid-dep", "wrap"),
    *("partition", "account", "qos", "cpus-per-task", "mem", "gres", "gpus-per-node", "chdir"),
}
"""sbatch options that olmo-ext writes itself; `directives` may not name them."""

OURS_OF_SRUN = {
    *("nodes", "ntasks", "ntasks-per-node", "kill-on-bad-exit", "wait", "cpus-per-task")
}
"""As OURS, for `srun_options`."""


@dataclass(frozen=True)
class Cluster:
    """One cluster, or one way to use it. A key of the YAML is a field here."""

    time: str
    """Time limit of a job, SLURM's forms. A run that needs longer is requeued."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: int = 1
    """Of one run."""
    gpus_per_node: int = 0
    gpu_type: str | None = None
    """As the cluster names it, e.g. h100."""
    gpu_option: str = "gpus-per-node"
    """How GPUs are asked for: gpus-per-node, or gres on older clusters."""
    ranks_per_node: int | None = None
    """Training processes on a node; default: one a GPU, or one."""
    cpus_per_node: int | None = None
    memory: str | None = None
    """Of a node: a number and K, M, G or T; 0 is all of it."""
    directives: list[str] = field(default_factory=list)
    """Further sbatch options, e.g. --exclusive."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the run (module load ...). They run as they stand."""
    activate: str | None = None
    """Path of a virtual environment's bin/activate. Default: the environment of `submit`."""
    srun_options: list[str] = field(default_factory=list)
    """Further options of srun, e.g. --container-image=... where pyxis is installed."""
    container: list[str] = field(default_factory=list)
    """Words before torchrun, e.g. [apptainer, exec, --nv, /images/olmo.sif]."""
    driver: str = "launch"
    """Module that each rank runs, as `olmo-ext launch torchrun --driver`; ours by default."""
    environment: dict[str, str] = field(default_factory=dict)
    """Exported before the run. No shell expands the values."""
    array_limit: int | None = None
    """Runs of a sweep at once; default: as many as the cluster lets."""
    rdzv_port: int | None = None
    """Where the agents of several nodes meet; default: made from the job's number."""
    lead_seconds: int | None = None
    """How long before its end a job is told to save; default: reckoned (launch/slurm/lead.py)."""
    step_seconds: float | None = None
    save_seconds: float | None = None
    """Of a step and a save, where you know better than the reckoning."""
    margin_seconds: float = 60.0
    write_gb_per_second: float = 0.5
    """To the file system of the runs, from one process."""
    mfu: float = 0.4
    peak_tflops: float = 989.0
    """Of one GPU; both for the reckoning of a step."""
    max_stalled_requeues: int = 3
    """So many requeues of a job without a step forward, and it is not requeued again."""
    prepare_partition: str | None = None
    prepare_cpus: int = 4
    prepare_memory: str | None = None
    prepare_time: str = "24:00:00"

    def __post_init__(self) -> None:
        for key in ("time", "prepare_time"):
            parse_time(getattr(self, key), key=key)
        for keys, form, rule in _FORMS:
            for key in keys:
                value = getattr(self, key)
                if value is not None and not re.fullmatch(form, value):
                    raise ConfigError(key=key, value=value, rule=rule)
        self._check_numbers()
        self._check_lists()

    def _check_numbers(self) -> None:
        least = {"gpus_per_node": 0, "margin_seconds": 0}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, int | float) and not least.get(one.name, 1e-9) <= value < 1e9:
                limit = "at least 0" if one.name in least else "larger than 0"
                rule, remedy = f"must be {limit}", "leave it out"
                raise ConfigError(key=one.name, value=value, rule=rule, remedy=remedy)
        for key, low, high in (
            ("mfu", 0, 1),
            ("lead_seconds", 1, 65535),  # of sbatch --signal
            ("rdzv_port", 1024, 65535),
        ):
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                raise ConfigError(key=key, value=value, rule=f"must be in {low}..{high}")

    def _check_lists(self) -> None:
        for key in ("directives", "setup", "srun_options", "container"):
            for line in getattr(self, key):
                if _has_control(line):
                    remedy = "one line an entry"
                    raise ConfigError(key=key, value=line, rule=_ONE_LINE, remedy=remedy)
        for key, ours in (("directives", OURS), ("srun_options", OURS_OF_SRUN)):
            for option in getattr(self, key):
                name = option.removeprefix("--").split("=")[0].split()[0:1]
                if not option.startswith("--") or not name:
                    rule = "must hold options in their long form, like --exclusive"
                    raise ConfigError(key=key, value=option, rule=rule)
                if meant := _meant(name[0], ours):
                    rule = f"must not hold {meant}, which is written by olmo-ext"
                    remedy = "use the key of the site profile for it, if there is one"
                    raise ConfigError(key=key, value=option, rule=rule, remedy=remedy)
        for name, value in self.environment.items():
            if not _NAME.fullmatch(name) or _has_control(value):
                rule = "must map names of letters, digits and _ to values of one line"
                raise ConfigError(key="environment", value={name: value}, rule=rule)
        if self.activate is not None and _has_control(self.activate):
            raise ConfigError(key="activate", value=self.activate, rule=_ONE_LINE)

    @property
    def seconds(self) -> int:
        """Of the time limit."""
        return parse_time(self.time, key="time")

    @property
    def ranks(self) -> int:
        """On each node."""
        return self.ranks_per_node or self.gpus_per_node or 1


def parse_time(text: str, *, key: str) -> int:
    """Seconds of a time limit in one of SLURM's forms. Raises ConfigError for any other."""
    for form in _TIMES:
        if found := form.fullmatch(text):
            parts = found.groupdict()
            total = sum(int(parts.get(unit) or 0) * value for unit, value in _UNITS.items())
            if total > 0:
                return total
    rule = f"must be a time limit as SLURM writes it ({TIME_FORMS}), and not 0"
    raise ConfigError(key=key, value=text, rule=rule)


def load_site(path: str | Path) -> Cluster:
    """Read a site profile. Raises FileNotFoundError, or ConfigError naming file, key and remedy."""
    path = locate(path)
    if not path.is_file():
        some = shipped("configs/sites")
        raise FileNotFoundError(f"no site profile {path}; {some} has some to begin with")
    return read_settings(Cluster, path, as_text=True)


def _meant(name: str, ours: set[str]) -> str:
    """Our own option that SLURM may take an option for, or "": it reads --sig as --signal."""
    if name == "gpus":  # an option of its own beside --gpus-per-node
        return ""
    return next((f"--{one}" for one in sorted(ours) if one.startswith(name)), "")


def _has_control(text: str) -> bool:
    return any(ord(letter) < 32 or ord(letter) == 127 for letter in text)
