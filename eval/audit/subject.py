"""What an audit looks at, and what it says: one verdict for each check.

    subject = open_run(Path("runs/w32"))
    Verdict("plan", OK, "all agree")

Everything that may change while a run trains is read once, checkpoints before the ledger: a place
in the ledger that a checkpoint names is then on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data_injection.errors import ConfigError
from data_injection.ledger import LEDGER_FOLDER, Segment, read_segments
from data_injection.plan import InjectionPlan
from eval.audit.ledger import SavedCheckpoint, choose_checkpoint, read_checkpoints
from eval.checkpoints.checkpoint import compile_saved_plan
from eval.run import EXPERIMENT, extensions_of, load_config, load_identity

OK, DIFFERS, NOT_CHECKED = "ok", "differs", "not checked"

IDENTITY_KEYS = ("plan_hash", "plan", "corpus_hash", "data_seed", "memmap_dtype", "vocab_size")

Progress = Callable[[str, int, int], None]
"""progress(what, done, total) is called now and then in what may take long."""


def no_progress(what: str, done: int, total: int) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Verdict:
    """What one check found."""

    check: str
    status: str
    """OK, DIFFERS or NOT_CHECKED."""

    said: str
    """In one sentence: what agrees, the first difference with both sides, or why not checked."""

    details: tuple[str, ...] = ()
    """Further differences."""

    notes: tuple[str, ...] = ()
    """What is no error: abandoned rows, a checkpoint set aside, what a sample cannot find."""

    numbers: dict[str, Any] = field(default_factory=dict)
    """What was counted, as JSON values."""


def judge(
    check: str,
    problems: Sequence[str],
    agreed: str,
    *,
    notes: Sequence[str] = (),
    numbers: dict[str, Any] | None = None,
) -> Verdict:
    """DIFFERS with the first problem, or OK where there is none."""
    status, said = (DIFFERS, problems[0]) if problems else (OK, agreed)
    return Verdict(check, status, said, tuple(problems[1:]), tuple(notes), numbers or {})


@dataclass(frozen=True)
class Audit:
    """All verdicts on a run."""

    run: str
    step: int | None
    """Of the checkpoint whose weights were audited; None if the run has none yet."""

    plan_hash: str
    verdicts: tuple[Verdict, ...]

    @property
    def status(self) -> int:
        """0 if nothing that was checked differs, else 1."""
        return int(any(verdict.status == DIFFERS for verdict in self.verdicts))

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self) | {"status": self.status}


@dataclass(frozen=True)
class Subject:
    """A run as it was found."""

    folder: Path
    identity: dict[str, Any]
    """plan.json; if that cannot be read, the audited checkpoint's."""

    identity_problem: str | None
    experiment: dict[str, Any]
    """experiment.yaml as plain values; empty if it cannot be read."""

    checkpoints: tuple[SavedCheckpoint, ...]
    audited: SavedCheckpoint | None
    segments: dict[int, Segment]
    """Of the ledger; empty if there is none."""

    plan: InjectionPlan | None
    """Recompiled from experiment.yaml."""

    plan_problem: str | None
    unknown_family: str | None = None
    """Somebody's own family which is not installed here, with its package where run.json says it:
    then the plan cannot be compiled, and that is no fault of the run."""

    @property
    def step(self) -> int:
        """Steps that made the audited weights."""
        return self.audited.step if self.audited is not None else 0

    @property
    def origin(self) -> int | None:
        """The step of another's checkpoint that the run began with; None if with none."""
        first = self.segments[min(self.segments)] if self.segments else None
        if first is None or not first.header or first.header.get("lost"):
            return None
        begun = first.parent is None and self.setting("train.load_path")
        return (first.start_step or None) if begun else None

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks by their number in the plan."""
        tasks = self.identity["plan"]["tasks"]
        return sorted(tasks, key=lambda name: tasks[name]["index"])

    def setting(self, key: str) -> Any:
        """A dotted setting of experiment.yaml, None if it is not there."""
        return value_at(self.experiment, key)

    def trained_plan(self) -> InjectionPlan | None:
        """The plan to compare with: recompiled, and vouched for by plan.json or the checkpoint."""
        vouched = {self.identity["plan_hash"]}
        if self.audited is not None and self.audited.identity is not None:
            vouched.add(self.audited.identity.get("plan_hash"))
        return self.plan if self.plan is not None and self.plan.hash in vouched else None


def value_at(mapping: Any, dotted: str) -> Any:
    """What stands under a dotted key of nested mappings, None if nothing does."""
    for part in dotted.split("."):
        mapping = mapping.get(part) if isinstance(mapping, dict) else None
    return mapping


def open_run(folder: Path, *, step: int | None = None) -> Subject:
    """Read a run once.

    Raises FileNotFoundError if the folder is no run, ConfigError for a step without a checkpoint.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give the folder of a run")
    checkpoints = read_checkpoints(folder)
    audited = choose_checkpoint(checkpoints, run=folder, step=step)
    identity, problem = _read_identity(folder, audited)
    try:
        segments = read_segments(folder / LEDGER_FOLDER)
    except FileNotFoundError:
        segments = {}
    experiment, plan, plan_problem, unknown = _compile(folder, identity)
    return Subject(
        folder=folder, identity=identity, identity_problem=problem, experiment=experiment,
        checkpoints=tuple(checkpoints), audited=audited, segments=segments, plan=plan,
        plan_problem=plan_problem, unknown_family=unknown,
    )  # fmt: skip


def _read_identity(
    folder: Path, audited: SavedCheckpoint | None
) -> tuple[dict[str, Any], str | None]:
    try:
        identity = load_identity(folder)
    except ConfigError as error:
        problem = str(error)
    else:
        if not (missing := [key for key in IDENTITY_KEYS if key not in identity]):
            return identity, None
        if identity.get("engine") == "olmo_core":
            rule = "is a run of OLMo-core, whose batches are checked as they are trained on and "
            rule += "not audited later (docs/olmo_core.md)"
            raise ConfigError(key=folder, rule=rule, remedy="give a run of ai2-olmo")
        problem = f"plan.json cannot be read (it lacks {', '.join(missing)})"
    if audited is None or audited.identity is None:
        rule = f"cannot be audited: {problem}, and no checkpoint says what it held"
        raise ConfigError(key=folder, rule=rule, remedy="restore it")
    return audited.identity, problem


def _compile(
    folder: Path, identity: dict[str, Any]
) -> tuple[dict[str, Any], InjectionPlan | None, str | None, str | None]:
    """experiment.yaml and the plan it compiles to; if none, what is wrong or what family lacks."""
    experiment: Any = {}
    try:
        experiment = OmegaConf.to_container(load_config(folder / EXPERIMENT))
        plan = compile_saved_plan(folder, identity)
    except FileNotFoundError:
        return {}, None, "experiment.yaml is missing", None
    except (OmegaConfBaseException, YAMLError, OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        found = experiment if isinstance(experiment, dict) else {}
        if (unknown := _unknown_family(folder, identity, error)) is not None:
            return found, None, None, unknown
        return found, None, f"experiment.yaml compiles to no plan ({reason})", None
    return experiment, plan, None, None


def _unknown_family(folder: Path, identity: dict[str, Any], error: Exception) -> str | None:
    """The family of the run that cannot be found here; None if something else is wrong."""
    if not isinstance(error, ConfigError) or not error.key.endswith(".family"):
        return None
    # One that plan.json does not have was written into experiment.yaml since.
    if error.value not in [task["family"] for task in identity["plan"]["tasks"].values()]:
        return None
    for one in extensions_of(folder):
        if error.value in (one["name"], one["path"]):
            known = ", ".join(part for part in (one["package"], one["version"]) if part)
            return f"{error.value} ({known})"
    return str(error.value)


def listing(names: Sequence[str], *, most: int = 4) -> str:
    """ "a, b, c", or the first few and how many more."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
