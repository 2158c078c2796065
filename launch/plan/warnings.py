"""What a plan is warned of before a run is paid for: each with key, value and remedy.

    for advice in advise(experiment, stream, scan=scan, cost=cost, manifest=manifest):
        print(advice)

A warning is no error: a control may want what a finding must not have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from olmo.config import SchedulerUnits

from data_injection.config import TaskConfig
from data_injection.corpus.manifest import Manifest
from data_injection.corpus.scan import CorpusScan
from data_injection.tasks.sequences import Sequences
from eval.scores.memorization import references_of
from eval.text import number
from olmo_ext.build import Stream
from olmo_ext.callbacks.task_eval import TaskEval
from olmo_ext.config import ExperimentConfig
from olmo_ext.cost import Cost, too_large

LEAST_EXPOSURES = 1.0
"""Exposures an example below which part of the train split was never seen: the run then measures
starvation, not competition (docs/measurement.md, "rare must not mean unseen")."""

MOST_NATURAL = 0.01
"""Natural occurrences, as a share of the injected ones, up to which the frequency is the plan's: 1%
is far below the factor of 2 or more between two frequencies of any grid of ours."""

MOST_ROWS = 0.5
"""Share of the rows with an instance: the study's most frequent task has 1,024 of 2,048. Beyond it
the task is no guest in the host text any more."""

MOST_EPOCHS = 1.0
"""Epochs over the corpus: repeated host text is memorised too and takes capacity of its own."""

UNSEEN = 3
"""Occurrences that a sample without one still allows, at 95% (the rule of three)."""

GPU_BYTES = 80e9
"""Memory of an A100 or H100, the largest that the ladder's files assume."""


@dataclass(frozen=True)
class Advice:
    """One warning."""

    key: str
    """The setting that it is about, as `--override` takes it."""

    value: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.key} is {self.value}: {self.reason}; {self.remedy}"


def advise(
    experiment: ExperimentConfig, stream: Stream, *, scan: CorpusScan | None, cost: Cost,
    manifest: Manifest | None,
) -> list[Advice]:  # fmt: skip
    """All warnings, those of the tasks first."""
    found: list[Advice] = []
    for index in range(len(stream.plan.tasks)):
        found += [*_of_rates(experiment, stream, index), *_of_sequences(experiment, stream, index)]
        if scan is not None and scan.num_scanned:
            found += _of_scan(stream, scan, index)
    return [*found, *_of_stream(experiment, stream, manifest), *_of_cost(experiment, cost)]


def natural_in_run(stream: Stream, scan: CorpusScan, index: int) -> float:
    """Natural occurrences of a task's examples in the tokens that the run reads, as the scan's
    density says."""
    occurrences = int(scan.tasks[index].occurrences.sum())
    tokens = stream.num_positions * stream.plan.geometry.seq_len
    return occurrences / max(scan.num_scanned, 1) * tokens


def _of_rates(experiment: ExperimentConfig, stream: Stream, index: int) -> Iterator[Advice]:
    """Too few instances to see every example, or none."""
    plan, steps = stream.plan, stream.num_steps
    schedule, config = plan.schedules[index], experiment.injection.tasks[index]
    instances, exposures = plan.instances(index, steps), plan.exposures_per_example(index, steps)
    key, name = f"injection.tasks.{index}.schedule", plan.tasks[index].name
    stop = config.schedule.stop
    if schedule.kind == "random" and isinstance(stop, int) and stop > steps:
        yield Advice(
            f"{key}.stop",
            str(stop),
            f"the run ends at step {steps:,}, with {instances:,} of {name}'s instances, so that "
            "their total is no longer exact",
            f"set it to {steps} or train longer",
        )
    if schedule.rate == 0 or not plan.tasks[index].has_label:
        return  # as asked: rate 0 is how a control leaves its task out
    if instances == 0:
        yield Advice(
            f"{key}.rate",
            str(config.schedule.rate),
            f"{name} has no instance in {steps:,} steps, one comes every "
            f"{float(1 / schedule.rate):,.4g}",
            "raise it, train longer, or start the schedule inside the run",
        )
    elif exposures < LEAST_EXPOSURES:
        field, value = "rate", f"{config.schedule.rate} {config.schedule.unit}"
        if schedule.kind == "trace":
            field, value = "steps", f"{len(config.schedule.steps or [])} instances"
        elif config.schedule.total is not None:
            field, value = "total", f"{config.schedule.total} instances"
        yield Advice(
            f"{key}.{field}",
            value,
            f"each train example of {name} is seen {exposures:.2g} times on average, so that part "
            "of them is never seen",
            _more_exposures(config, stream, index),
        )


def _of_sequences(experiment: ExperimentConfig, stream: Stream, index: int) -> Iterator[Advice]:
    """Sequences that a measure leaves out: without a twin in their group, or no longer than the
    prefix that an extraction starts from."""
    task = stream.plan.tasks[index]
    if not isinstance(task, Sequences):
        return
    prefix = (experiment.callbacks.get("task_eval") or {}).get("prefix", TaskEval.prefix)
    sides = zip(task.table.groups, task.table.twins, strict=True)
    references, num = references_of(task), len(task.table.tokens)
    alone = sum(not twin and group not in references for group, twin in sides)
    short = sum(len(tokens) <= prefix for tokens in task.table.tokens)
    if alone:
        yield Advice(
            f"injection.tasks.{index}.params.file",
            f"{task.name}, {alone:,} of whose {num:,} sequences have no twin in their group",
            "exposure and membership AUC compare within a group and leave them out",
            "give each group twins, or twins the group of what they are compared with",
        )
    if short:
        yield Advice(
            "callbacks.task_eval.prefix",
            str(prefix),
            f"{short:,} of the {num:,} sequences of {task.name} have no token after it, so that "
            "extraction leaves them out",
            "lower it, or give longer sequences",
        )


def _more_exposures(config: TaskConfig, stream: Stream, index: int) -> str:
    """What reaches one exposure an example: rate, steps or symbols."""
    plan, steps = stream.plan, stream.num_steps
    task, schedule = plan.tasks[index], plan.schedules[index]
    short = LEAST_EXPOSURES / plan.exposures_per_example(index, steps)
    ways = []
    if config.schedule.total is not None:
        ways.append(f"a total of {len(task.train):,}")
    elif schedule.kind != "trace":
        ways.append(f"a rate of {round_up(plan.rates(index)[config.schedule.unit] * short):g}")
        if config.schedule.stop is None:
            ways.append(f"{round_up(steps * short):,.0f} steps")
    else:
        ways.append(f"{len(task.train):,} steps in the list")
    # The examples of every family are all tuples of symbols, with the label that follows.
    fraction = len(task.train) / len(task.tokens)
    symbols = (plan.instances(index, steps) / fraction) ** (1 / max(task.length - 1, 1))
    symbols = math.floor(symbols + 1e-9)
    if symbols >= task.least_symbols(task.params):
        ways.append(f"{symbols} symbols")
    return f"one exposure each needs {' or '.join(ways)}"


def _of_scan(stream: Stream, scan: CorpusScan, index: int) -> Iterator[Advice]:
    """Tokens that the corpus lacks, examples that it has."""
    found, task = scan.tasks[index], stream.plan.tasks[index]
    tokens = np.concatenate([task.symbols, task.labels])
    never = tokens[np.concatenate([found.symbols, found.labels]) == 0].tolist()
    sample = "" if scan.num_scanned == scan.num_tokens else "'s sample"
    if never:
        some = ", ".join(map(str, never[:5])) + (", ..." if len(never) > 5 else "")
        yield Advice(
            f"injection.tasks.{index}.symbols",
            f"{len(never)} of {len(tokens)} tokens that the corpus{sample} never has ({some})",
            f"the host text does not train their embeddings, so that {task.name} must learn them "
            "from its instances alone",
            "put them into injection.exclude_tokens, choose another injection.seed"
            + (", or scan all" if sample else ""),
        )
    injected = stream.plan.instances(index, stream.num_steps)
    natural = natural_in_run(stream, scan, index)
    if injected and natural > MOST_NATURAL * injected:
        yield Advice(
            "injection.seed" if task.has_label else f"injection.tasks.{index}.params.file",
            str(stream.plan.seed) if task.has_label else task.name,
            f"the host text of the run holds about {natural:,.0f} examples of {task.name} by "
            f"itself, {natural / injected:.1%} of the {injected:,} injected ones, test examples "
            "and wrong places among them",
            "choose another, so that other symbols are drawn"
            if task.has_label
            else "leave them out, or count those copies too; quotes or brackets may hide more",
        )
    elif injected and sample:
        tokens_read = stream.num_positions * stream.plan.geometry.seq_len
        enough = math.ceil(UNSEEN * tokens_read / (MOST_NATURAL * injected))
        if scan.num_scanned < enough:
            yield Advice(
                "--scan-tokens",
                f"{scan.num_scanned:,}",
                f"so small a sample cannot show that natural examples of {task.name} are below "
                f"{MOST_NATURAL:.0%} of its {injected:,} injected ones",
                f"scan {min(enough, scan.num_tokens):,} tokens",
            )


def _of_stream(
    experiment: ExperimentConfig, stream: Stream, manifest: Manifest | None
) -> Iterator[Advice]:
    """Batch, epochs, reserved tokens, warm-up."""
    plan, steps, train = stream.plan, stream.num_steps, experiment.train
    # Sequences stand within rows, several in one: they begin none.
    labelled = [index for index, task in enumerate(plan.tasks) if task.has_label]
    share = sum(plan.instances(index, steps) for index in labelled) / stream.num_positions
    if share > MOST_ROWS:
        yield Advice(
            "injection.tasks",
            f"{share:.0%} of all rows",
            f"more than {MOST_ROWS:.0%} of the rows begin with an instance, so that the run trains "
            "on the tasks more than on the host text",
            f"lower the rates to {MOST_ROWS * plan.geometry.batch_size:,.0f} a step in all, or "
            "raise train.global_train_batch_size",
        )
    epochs = stream.num_positions / stream.order.epoch_rows
    if epochs > MOST_EPOCHS:
        most = stream.order.epoch_rows // stream.order.batch_size
        yield Advice(
            "train.max_duration",
            f"{steps:,} steps",
            f"the corpus is read {number(epochs)} times: repeated host text is learned by heart",
            f"prepare a larger corpus, or train at most {most:,} steps",
        )
    if manifest is None and plan.tasks and not experiment.injection.exclude_tokens:
        yield Advice(
            "corpus",
            "null",
            "token files without a manifest do not say which ids are special or single bytes, so "
            "that a task may have drawn some as symbols",
            "list them in injection.exclude_tokens (docs/data.md has those of dolma-v1_5), or make "
            "a corpus with `olmo-ext prepare`",
        )
    scheduler = train.scheduler
    if scheduler.units == SchedulerUnits.steps and scheduler.t_warmup >= steps:
        yield Advice(
            "train.scheduler.t_warmup",
            str(scheduler.t_warmup),
            f"the run has {steps:,} steps, so that the learning rate never reaches its peak",
            f"set it to {max(steps // 100, 1)}, 1% of the run",
        )


def _of_cost(experiment: ExperimentConfig, cost: Cost) -> Iterator[Advice]:
    """What does not fit."""
    train, memory = experiment.train, cost.memory
    for told in too_large(experiment, cost, gpu_bytes=GPU_BYTES):
        yield Advice(*told)
    if memory.start > GPU_BYTES:
        yield Advice(
            "rung",
            str(experiment.rung),
            f"each rank builds the whole model in fp32, {memory.start / 1e9:.0f} GB before it is "
            f"sharded, more than the {GPU_BYTES / 1e9:.0f} of an H100",
            "choose a smaller one: neither more GPUs nor smaller micro-batches change that",
        )
    if memory.step > GPU_BYTES:
        per_row = (memory.activations + memory.logits) / cost.microbatch
        rows = int((GPU_BYTES - memory.state) // per_row)
        yield Advice(
            "train.device_train_microbatch_size",
            str(train.device_train_microbatch_size),
            f"a GPU would need about {memory.step / 1e9:.0f} GB, more than the "
            f"{GPU_BYTES / 1e9:.0f} of an H100",
            f"set it to {rows} or less"
            if rows >= 1
            else "set train.distributed_strategy=fsdp and take more GPUs (--gpus)",
        )


def round_up(value: float) -> float:
    """The least number of three digits that is not below."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return math.ceil(value / unit - 1e-9) * unit
