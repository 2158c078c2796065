"""Evaluate checkpoints: every task and split, in and out of runs, several side by side.

    for done in evaluate(["runs/quickstart"]):       # appends to each run's records.jsonl
        print(done.source.path, len(done.rows))

Idempotent: what already stands in a run's records is not measured again. One process writes, and
writes a checkpoint's rows as soon as it is done, so that a kill loses those in work alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from data_injection.errors import ConfigError
from data_injection.files import check_writable
from data_injection.lock import lock_folder
from data_injection.plan import InjectionPlan
from data_injection.tasks.base import Task
from eval.checkpoints.checkpoint import load_model, load_model_config, load_plan
from eval.checkpoints.core import core_logits
from eval.checkpoints.sharded import first_line
from eval.checkpoints.sources import Source, check_belongs, check_vocabulary, find_sources
from eval.processes import in_processes
from eval.records import FILE_NAME, RecordWriter, records_of, task_fields
from eval.run import EXPERIMENT, load_config, load_identity, read_run
from eval.scores.accuracy import answer, score_answers
from eval.scores.breakdown import SPLITS, breakdown
from eval.scores.fast_answers import cut, fast_answer
from eval.scores.memorization import METRICS as MEMORIZATION
from eval.scores.memorization import memorization_rows

METRICS = (
    *("accuracy", "label_accuracy", "score", "label_entropy"),
    *("label_loss", "choice_loss", "format_loss"),
    *("mirror_consistency", "memorised_gap", "mirror_gap"),
    *MEMORIZATION,
)


PREFIX = 8
"""Tokens that an extraction starts from, as `callbacks.task_eval.prefix` has by default."""


def prefix_of(run: Path) -> int:
    """The tokens that extractions of a run start from."""
    key = "callbacks.task_eval.prefix"
    return int(OmegaConf.select(load_config(run / EXPERIMENT), key, default=PREFIX))


@dataclass(frozen=True)
class TaskSet:
    """The tasks to ask of a checkpoint outside of any run, and the vocabulary they are of."""

    tasks: tuple[Task, ...]
    vocab_size: int


def tasks_of_run(folder: str | Path) -> TaskSet:
    """The tasks of a run's plan, recompiled from its folder."""
    plan = load_plan(folder)
    return TaskSet(tuple(plan.tasks), int(load_identity(folder)["train"]["model"]["vocab_size"]))


@dataclass(frozen=True)
class Choice:
    """What to measure: None takes all."""

    tasks: Sequence[str] | None = None
    splits: Sequence[str] = SPLITS
    steps: Sequence[int] | None = None

    def check(self) -> None:
        """Raise ConfigError for splits that there are not."""
        for split in self.splits:
            if split not in SPLITS:
                raise ConfigError(key="--split", value=split, rule="must be train or test")

    def of_tasks(self, tasks: Sequence[Task], *, where: str) -> list[Task]:
        """The chosen ones of these; ConfigError names those that there are not."""
        names = [task.name for task in tasks]
        if missing := sorted(set(self.tasks or ()) - set(names)):
            rule = f"must be in the plan of {where}, which has {', '.join(names) or 'no tasks'}"
            raise ConfigError(key="--task", value=missing[0], rule=rule)
        return [task for task in tasks if self.tasks is None or task.name in self.tasks]


EVERYTHING = Choice()


@dataclass(frozen=True)
class Done:
    """One checkpoint's outcome."""

    source: Source
    rows: list[dict[str, Any]] = field(default_factory=list)
    """What was measured and, in a run, written; empty if all was there."""
    problem: str = ""
    """Why it could not be measured."""


def evaluate(
    paths: str | Path | Sequence[str | Path],
    *,
    choice: Choice = EVERYTHING,
    asked: TaskSet | None = None,
    device: str = "cpu",
    jobs: int = 1,
) -> Iterator[Done]:
    """Score every checkpoint of the given runs, folders and checkpoints; yields one by one.

    Args:
        asked: the tasks for checkpoints outside of any run; their rows are only yielded. Sequences
            are left out of Hugging Face's and OLMo-core's, which do not say what ends a text.
        jobs: checkpoints side by side, each in a process of its own; 1 stays in this one.

    Raises:
        FileNotFoundError: no checkpoint there.
        ConfigError: a choice, plan, vocabulary or identity that does not fit, before any work; or
            a checkpoint that could not be read, after all others are done.
    """
    choice.check()
    sources = chosen_sources(paths, choice)
    outside = [source for source in sources if source.run is None]
    if outside and asked is None:
        rule = "is not in a run's folder, so that no plan says what to ask it"
        remedy = "name a run's folder or an experiment.yaml with --plan"
        raise ConfigError(key=outside[0].path, rule=rule, remedy=remedy)
    runs = {run: _Run.load(run, choice) for run in sorted({s.run for s in sources if s.run})}
    for source in sources:
        if source.run is not None:
            check_belongs(source)
        elif asked is not None:
            check_vocabulary(source, vocab_size=asked.vocab_size)
    here = choice.of_tasks(asked.tasks, where="--plan") if asked is not None else []
    work: list[tuple[Source, list[Task]]] = []
    for source in sources:
        tasks = runs[source.run].missing(source, choice) if source.run is not None else here
        if not reads_sequences(source):
            tasks = [task for task in tasks if task.has_label]
        if tasks:
            work.append((source, tasks))
        else:
            yield Done(source)
    problems = []
    with ExitStack() as stack:
        for run in sorted({source.run for source, _ in work if source.run}):
            check_writable(run / FILE_NAME, "the run's records")
            stack.enter_context(lock_folder(run))
            runs[run].there = _there(run)  # another evaluation may have just ended
        preload = ("eval.scores.evaluate", "olmo.model")
        measuring = in_processes(partial(_outcome, device=device), work, jobs=jobs, preload=preload)
        for (source, _), (rows, problem) in stack.enter_context(measuring):
            rows = [row for row in rows if row["split"] in (*choice.splits, "")]
            if set(choice.splits) != set(SPLITS):  # a gap is between the two
                rows = [row for row in rows if row["split"]]
            if problem:
                problems.append(problem)
            elif source.run is not None:
                rows = runs[source.run].write(source, rows)
            else:
                told = {"checkpoint": str(source.path), "step": source.step}
                rows = [told | row for row in rows]
            yield Done(source, rows, problem)
    if problems:
        rule = f"{len(problems)} of {len(sources)} checkpoints could not be scored:\n"
        text = (rule if len(sources) > 1 else "") + "\n".join(problems)
        raise ConfigError(text, key="CHECKPOINT", value=problems, rule=rule)


def reads_sequences(source: Source) -> bool:
    """Whether a checkpoint is asked tasks without a label."""
    return source.kind != "hf" and (source.kind != "core" or source.run is not None)


def chosen_sources(paths: str | Path | Sequence[str | Path], choice: Choice) -> list[Source]:
    """The checkpoints at or below paths, each once, of the chosen steps."""
    several = [paths] if isinstance(paths, str | Path) else paths
    sources = list(dict.fromkeys(source for path in several for source in find_sources(path)))
    if choice.steps is None:
        return sources
    kept = [source for source in sources if source.step in choice.steps]
    if not kept:
        there = sorted({source.step for source in sources if source.step is not None})
        remedy = f"there are {', '.join(map(str, there)) or 'none with a step in their name'}"
        rule = "must be a checkpoint's step"
        raise ConfigError(key="--step", value=[*choice.steps], rule=rule, remedy=remedy)
    return kept


@dataclass
class _Run:
    """What the records of one run need and hold."""

    folder: Path
    plan: InjectionPlan
    tasks: list[Task]
    fields: dict[str, Any]
    there: set[tuple[int, str, str, str, str]]
    """(step, task, split, subset, metric) of the records."""

    @classmethod
    def load(cls, folder: Path, choice: Choice) -> _Run:
        plan = load_plan(folder)
        fields = read_run(folder)["record_fields"]
        tasks = choice.of_tasks(plan.tasks, where=str(folder))
        return cls(folder, plan, tasks, fields, _there(folder))

    def missing(self, source: Source, choice: Choice) -> list[Task]:
        """Tasks of which something is not in the records yet: the scores, or the breakdown."""
        scored = {key[:3] for key in self.there if key[4] == "score"}
        both = scored & {key[:3] for key in self.there if key[3].startswith("label=")}
        read = {key[:3] for key in self.there if key[4] == "sequence_loss"}
        step = source.step
        return [
            task
            for task in self.tasks
            for done in [both if task.has_label else read]
            if any(
                (step, task.name, split) not in done
                for split in choice.splits
                if task.has_label or len(task.split(split))
            )
        ]

    def write(self, source: Source, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Append what is not there; returns it as records."""
        step, geometry = source.step, self.plan.geometry
        assert step is not None
        common = self.fields | {
            "step": step,
            "tokens": step * geometry.batch_size * geometry.seq_len,
        }
        records = [
            common | task_fields(self.plan, row["task"], step=step) | row
            for row in rows
            if (step, *(row[key] for key in _KEY)) not in self.there
        ]
        with RecordWriter(self.folder / FILE_NAME) as writer:
            writer.write(records)
        return records


_KEY = ("task", "split", "subset", "metric")


def _there(folder: Path) -> set[tuple[int, str, str, str, str]]:
    rows = records_of(folder, "subset").query("task != ''").fillna({"subset": "all"})
    return set(rows[["step", *_KEY]].itertuples(index=False, name=None))


# -- measuring -----------------------------------------------------------------------------------


def measure(
    source: Source, tasks: Sequence[Task], *, device: str = "cpu", prefix: int = PREFIX
) -> list[dict[str, Any]]:
    """All rows of one checkpoint: scores of both splits and their breakdown, by task; of sequences
    what was learned by heart, by number of copies."""
    rows: list[dict[str, Any]] = []
    logits: Any
    if source.kind == "hf":
        ask = partial(answer, _load_hf(source.path, device))
    elif source.kind == "core":
        logits = core_logits(source.path, device=device)
        ask = partial(answer, lambda ids: logits(ids, keep=1)[:, -1])
    else:
        model = load_model(source.path, device=device)
        logits = lambda ids: model(ids.to(device)).logits  # noqa: E731
        ask = partial(fast_answer, cut(model))
    for task in tasks:
        if not task.has_label:
            of_plan = load_identity(source.run)["plan"] if source.run is not None else None
            eos = (of_plan or load_model_config(source.path))["eos_token_id"]
            read = memorization_rows(logits, task, prefix=prefix, eos=eos)
            rows += [{"task": task.name, "family": task.family} | row for row in read]
            continue
        answers = ask(task, np.arange(len(task.tokens)))
        scores = [
            {"split": split, **row}
            for split in SPLITS
            for row in score_answers(answers[task.split(split)], task, task.split(split))
        ]
        name = {"task": task.name, "family": task.family}
        rows += [name | row for row in (*scores, *breakdown(answers, task))]
    return rows


def _load_hf(path: Path, device: str) -> Any:
    from eval.export.huggingface import load_hf

    try:
        return load_hf(path, device=device)
    except Exception as error:  # transformers' own, of many kinds
        rule = "cannot be read by transformers as tensors alone (cut off, of another architecture, "
        rule += f"or it holds code, which is not run): {first_line(error)}"
        remedy = "restore it or save it again as safetensors"
        raise ConfigError(key=path, rule=rule, remedy=remedy) from error


def _outcome(one: tuple[Source, list[Task]], *, device: str) -> tuple[list[dict[str, Any]], str]:
    """Rows, or in words why there are none: one bad checkpoint must not cost the others."""
    try:
        prefix = PREFIX if one[0].run is None else prefix_of(one[0].run)
        return measure(*one, device=device, prefix=prefix), ""
    except (ConfigError, FileNotFoundError) as error:
        return [], str(error)


# -- the table -----------------------------------------------------------------------------------


def results(sources: Sequence[Source], done: Sequence[Done], choice: Choice) -> pd.DataFrame:
    """All rows of these checkpoints, those that the records had before too.

    Columns: `checkpoint`, then those of the records.
    """
    parts = [pd.DataFrame(d.rows) for d in done if d.source.run is None and d.rows]
    for run in sorted({source.run for source in sources if source.run}):
        rows = records_of(run, "subset")
        paths = {s.step: str(s.path) for s in sources if s.run == run}
        keep = rows.step.isin(list(paths)) & rows.metric.isin(METRICS) & (rows.task != "")
        keep &= rows.split.isin([*choice.splits, ""])
        if choice.tasks is not None:
            keep &= rows.task.isin(list(choice.tasks))
        rows = rows[keep].sort_values(["step", "task"], kind="stable")
        parts.append(rows.assign(checkpoint=rows.step.map(paths)))
    if not parts:
        return pd.DataFrame(columns=["checkpoint", "step", "task", "split", "metric", "value"])
    table = pd.concat(parts, ignore_index=True)
    table["subset"] = table.subset.fillna("all")
    table["step"] = table.step.astype("Int64")
    rest = [name for name in table if name != "checkpoint"]
    return table[["checkpoint", *rest]]
