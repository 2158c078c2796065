"""The `injection:` section of an experiment: which tasks, how often, where in a row.

    injection:
      seed: 0
      tasks:
        - {name: cmp_r8, family: comparison, schedule: {kind: even, rate: 8, unit: per_step}}

Plain dataclasses, so that OmegaConf checks keys and types; values are checked when the tasks and
the plan are built from them, before any work starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from data_injection.errors import ConfigError


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's: a plan is hashed as JSON and kept as YAML."""
    if isinstance(value, list | dict):
        parts = list(value.values()) if isinstance(value, dict) else value
        made = [_plain(one) for one in parts]
        if all(new is old for new, old in zip(made, parts, strict=True)):
            return value  # the caller's own, who may yet append to it
        return dict(zip(value, made, strict=True)) if isinstance(value, dict) else made
    return value.tolist() if hasattr(value, "tolist") else value


class Section:
    """A part of an experiment; its values are Python's own however it was built."""

    def __post_init__(self) -> None:
        vars(self).update(_plain(vars(self)))


@dataclass
class ScheduleConfig(Section):
    """How often a task's examples enter the stream."""

    kind: str = "even"
    """Key of `schedules.build.SCHEDULES`: even, random, bernoulli, burst, window, trace."""

    rate: Any = None
    """Mean frequency as a number, a decimal string or a fraction such as "1/10": taken exactly
    (0.1 means one tenth, not the nearest binary number)."""

    total: int | None = None
    """even, window, random: instances in all between start and stop (by default the whole
    training), in place of a rate. burst: instances after which there are no more."""

    per_batch: int | None = None
    """burst: instances of each burst, in place of a rate."""

    unit: str = "per_step"
    """Unit of `rate`: per_step (instances per optimizer step), per_sequence (per row) or per_token
    (instances per token of the stream; a three-token example plus EOS is four task tokens)."""

    every: int | None = None
    """burst: steps between the starts of two bursts; the burst holds rate x every instances."""

    phase: int = 0
    """burst: step (counted from 0) of the first burst, in [0, every)."""

    start: Any = 0
    """window, random, bernoulli: first step (counted from 0) with injections, or a share of the
    training such as "25%"."""

    stop: Any = None
    """window, random, bernoulli, burst: first step without injections again, or a share. Random at
    a rate needs it: its exact total is laid out over the whole span."""

    steps: list[int] | None = None
    """trace: the step of every instance, in ascending order, repeats allowed."""


@dataclass
class TaskConfig(Section):
    """One rare task: a family, its symbols, its split and its schedule."""

    name: str = "???"
    """Name of the task, unique in the run; it stands in every record."""

    family: str = "comparison"
    """Key of `data_injection.tasks.build.TASKS`, or a family of one's own: an import path
    "package.module:Class", or the name of an entry point of the group "olmo_ext.tasks"."""

    num_symbols: int = 100
    """Number of symbol tokens (the study: 100, drawn at random from the vocabulary)."""

    symbols: list[int] | None = None
    """Explicit symbol token ids instead of a random draw."""

    labels: list[int] | None = None
    """Explicit label token ids (families with labels of their own) instead of a random draw."""

    share_symbols_with: str | None = None
    """Name of an earlier task whose symbols, and labels if there are as many, this task uses too.
    Without it two tasks may not share a token."""

    share_labels_with: str | None = None
    """Name of an earlier task whose label tokens this task uses too, with symbols of its own."""

    train_fraction: float = 0.5
    """Share of the instances that may be injected; the rest is the test split."""

    params: dict[str, Any] = field(default_factory=dict)
    """Parameters of the family (see its class); every family with labels has `shuffle_labels`."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How often, and when."""


@dataclass
class InjectionConfig(Section):
    """All rare tasks of a run and the place they take in a row."""

    seed: int = 0
    """Seed of symbols, splits, schedules, slots and example order; apart from the model's seed."""

    offset: int = 0
    """Token offset in the row at which an example starts (the study: 0, the first four tokens)."""

    sequences_at: str = "anywhere"
    """anywhere: sequences stand at a drawn place of their row; documents: from the beginning of a
    document of it, and within that one where it is long enough (`rows.document_start`)."""

    sequences_per_row: int = 1
    """Sequences of a step that stand one after the other in a row, an EOS between, if they fit."""

    exclude_tokens: list[int] = field(default_factory=list)
    """Token ids never drawn as symbols, besides EOS, padding, special and byte tokens."""

    tasks: list[TaskConfig] = field(default_factory=list)
    """The tasks; with none the batches are byte for byte the engine's."""


def injection_config(values: dict[str, Any]) -> InjectionConfig:
    """The section from plain YAML or JSON, without OmegaConf; ConfigError for an unknown key."""
    try:
        tasks = [
            TaskConfig(**task | {"schedule": ScheduleConfig(**task.get("schedule", {}))})
            for task in values.get("tasks", [])
        ]
        return InjectionConfig(**values | {"tasks": tasks})
    except TypeError as error:  # names the key that the section has not
        raise ConfigError(key="injection", rule=f"must have known keys: {error}") from None
