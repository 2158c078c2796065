"""What a researcher reads before paying for a run: the plan, the corpus, the cost, the warnings.

found = preflight(load_experiment("experiment.yaml"), gpus=8)
show(found, Console())
write_json(Path("plan.json"), as_json(found))
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from olmo.util import is_url
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_injection.beat import Beat, to_stderr
from data_injection.corpus.manifest import Manifest
from data_injection.corpus.scan import CorpusScan, scan_corpus
from data_injection.tasks.base import Task
from data_injection.tasks.sequence_file import Encode
from data_injection.tasks.sequences import Sequences
from eval.text import count, new_table, number, print_table
from launch.plan.warnings import Advice, advise, natural_in_run
from olmo_ext.build import Stream, corpus_encode
from olmo_ext.config import ExperimentConfig
from olmo_ext.cost import MFU, PEAK_TFLOPS, Cost, run_cost
from olmo_ext.prepare import prepare

UNITS = ("per_step", "per_sequence", "per_token", "task_tokens_per_token")


@dataclass(frozen=True)
class Preflight:
    """Everything that is known of a run before it starts."""

    experiment: ExperimentConfig
    stream: Stream
    manifest: Manifest | None
    scan: CorpusScan | None
    """None if it was not asked for, or if there is nothing to scan."""

    cost: Cost
    advice: list[Advice]


def preflight(
    experiment: ExperimentConfig, *, scan: bool = True, scan_tokens: int | None = None,
    gpus: int = 1, peak_tflops: float = PEAK_TFLOPS, mfu: float = MFU,
) -> Preflight:  # fmt: skip
    """Compile the plan, scan the corpus, reckon the cost.

    Args:
        scan: look for the tasks' tokens and examples in the corpus.
        scan_tokens: in an evenly spread sample of so many tokens only.
        gpus, peak_tflops, mfu: see `run_cost`.

    Raises:
        ConfigError: as `train` would, or an option out of its range.
    """
    # What it logs of a task without instances is said here with its remedy.
    logger = logging.getLogger("olmo_ext.build")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with Beat(to_stderr) as beat:
            beat.then("checking the corpus and compiling the plan")
            prepared = prepare(experiment)
    finally:
        logger.setLevel(before)
    stream, manifest = prepared.stream, prepared.manifest
    cost = run_cost(
        experiment.train, num_steps=stream.num_steps, gpus=gpus, peak_tflops=peak_tflops, mfu=mfu
    )
    encode = corpus_encode(experiment, manifest)
    counts = _scan(experiment, stream, encode, max_tokens=scan_tokens) if scan else None
    advice = advise(experiment, stream, scan=counts, cost=cost, manifest=manifest)
    return Preflight(experiment, stream, manifest, counts, cost, advice)


def _scan(
    experiment: ExperimentConfig, stream: Stream, encode: Encode | None, *, max_tokens: int | None
) -> CorpusScan | None:
    """The scan with its progress on stderr."""
    data = experiment.train.data
    assert data.paths is not None
    if not stream.plan.tasks or any(is_url(path) for path in data.paths):
        return None
    dtype = np.dtype(data.effective_memmap_dtype)
    wanted = sum(Path(path).stat().st_size for path in data.paths) // dtype.itemsize
    wanted, done = wanted if max_tokens is None else min(wanted, max_tokens), 0
    with Beat(to_stderr) as beat:

        def progress(num_tokens: int) -> None:
            nonlocal done
            done += num_tokens
            beat.at("scanning the corpus, tokens", done, wanted)

        progress(0)
        return scan_corpus(
            data.paths, stream.plan.tasks, dtype=dtype, encode=encode, max_tokens=max_tokens,
            eos_token_id=experiment.train.model.eos_token_id, progress=progress,
        )  # fmt: skip


# -- for people ----------------------------------------------------------------------------------


def show(found: Preflight, console: Console) -> None:
    """Print it."""
    stream, plan = found.stream, found.stream.plan
    print_table(_rates(stream), console)
    positions, epoch = stream.num_positions, stream.order.epoch_rows
    epochs = number(positions / epoch)
    console.print(
        f"{stream.num_steps:,} steps of {stream.order.batch_size} rows x {plan.geometry.seq_len} "
        f"tokens = {positions * plan.geometry.seq_len:,} tokens, {epochs} epochs of "
        f"the corpus ({epoch:,} rows); one exposure an example is one epoch over a task's train "
        f"split\nplan {plan.hash}"
    )
    console.print(f"never drawn as symbols: {_reserved(found)}\n")
    if found.scan is not None:
        _show_scan(found, found.scan, console)
    else:
        why = "there are no tasks" if not plan.tasks else "by --no-scan, or paths that are URLs"
        console.print(f"corpus not scanned: {why}\n")
    for line in _cost_lines(found):
        console.print(line)
    for advice in found.advice:
        console.print(Text.assemble(("\nwarning: ", "bold yellow"), str(advice)))


def _rates(stream: Stream) -> Table:
    """Frequencies in all units; an exposure is an epoch over the task's train split."""
    plan, steps = stream.plan, stream.num_steps
    titles = ["instances", *("per\n" + unit for unit in ("step", "row", "token"))]
    table = new_table("task", numbers=(*titles, "tokens\n/token", "exposures\n/example"))
    for index, (task, schedule) in enumerate(zip(plan.tasks, plan.schedules, strict=True)):
        rates = plan.rates(index)
        table.add_row(
            f"{task.name}\n{task.family}\n{_grade(task)}, {schedule.label}",
            f"{plan.instances(index, steps):,}",
            *(f"{rates[unit]:.3g}" for unit in UNITS),
            f"{plan.exposures_per_example(index, steps):.3g}\nof {len(task.train):,}",
        )
    return table


def _grade(task: Task) -> str:
    """What tells its size: bits of structure, or the longest sequence and the copies there are."""
    if isinstance(task, Sequences):
        levels = ", ".join(str(level) for level in np.unique(task.table.copies).tolist())
        return f"at most {task.length} tokens, copies {levels}"
    return f"{task.bits:.0f} bits"


def reserved_tokens(found: Preflight) -> dict[str, int]:
    """How many ids no task may draw, by kind; an id of two kinds counts in the first."""
    model, manifest = found.experiment.train.model, found.manifest
    kinds: list[tuple[str, set[int]]] = [
        ("EOS", {model.eos_token_id}),
        ("padding", {model.pad_token_id}),
        ("special", set(manifest.special_token_ids) if manifest else set()),
        ("single bytes", set(manifest.byte_token_ids) if manifest else set()),
        ("injection.exclude_tokens", set(found.experiment.injection.exclude_tokens)),
    ]
    seen: set[int] = set()
    counts = {}
    for kind, ids in kinds:
        counts[kind] = len(ids - seen)
        seen |= ids
    return counts


def _reserved(found: Preflight) -> str:
    kinds = reserved_tokens(found)
    text = ", ".join(f"{num} {kind}" for kind, num in kinds.items() if num)
    if found.manifest is None:
        text += "; special and single-byte tokens are not known, there is no manifest"
    return f"{sum(kinds.values())} ids ({text})"


def _show_scan(found: Preflight, scan: CorpusScan, console: Console) -> None:
    share = ""
    if scan.num_scanned != scan.num_tokens:
        share = f", an evenly spread sample: {scan.num_scanned / max(scan.num_tokens, 1):.2%} of "
        share += f"{scan.num_tokens:,}; counts are the sample's"
    console.print(f"corpus scan: {scan.num_scanned:,} tokens{share}")
    tokens = new_table("task", "kind", numbers=("tokens", "never", "min", "median", "max", "share"))
    titles = ("train", "test", "before\nEOS", "in the\nrun", "injected", "natural /\ninjected")
    examples = new_table("task", numbers=titles)
    for index, task in enumerate(found.stream.plan.tasks):
        counts = scan.tasks[index]
        for kind, values in (("symbols", counts.symbols), ("labels", counts.labels)):
            if len(values):
                tokens.add_row(task.name, kind, *_spread(values, scan))
        numbers = natural_counts(found.stream, scan, index)
        ratio = numbers["natural_per_injected"]
        counted = [f"{numbers[name]:,}" for name in ("train", "test", "before_eos", "injected")]
        counted.insert(3, number(numbers["natural_in_run"]))
        examples.add_row(task.name, *counted, "-" if ratio is None else f"{ratio:.2%}")
    print_table(tokens, console)
    texts = any(isinstance(task, Sequences) for task in found.stream.plan.tasks)
    where = (
        " (texts between blanks, line breaks or EOS; in quotes some are missed)" if texts else ""
    )
    console.print(f"examples that stand in the corpus by themselves, anywhere in it{where}:")
    print_table(examples, console)


def _spread(values: np.ndarray, scan: CorpusScan) -> list[str]:
    share = values.sum() / max(scan.num_scanned, 1)
    spread = [values.min(), np.median(values), values.max()]
    never = str((values == 0).sum())
    return [str(len(values)), never, *(f"{value:,.0f}" for value in spread), f"{share:.3%}"]


def natural_counts(stream: Stream, scan: CorpusScan, index: int) -> dict[str, Any]:
    """A task's examples in the scanned text beside those that are injected."""
    task, counts = stream.plan.tasks[index], scan.tasks[index]
    injected = stream.plan.instances(index, stream.num_steps)
    natural = natural_in_run(stream, scan, index)
    return {
        "train": int(counts.occurrences[task.train].sum()),
        "test": int(counts.occurrences[task.test].sum()),
        "before_eos": int(counts.before_eos.sum()),
        "natural_in_run": natural,
        "injected": injected,
        "natural_per_injected": natural / injected if injected else None,
    }


def _cost_lines(found: Preflight) -> list[str]:
    cost, memory, train = found.cost, found.cost.memory, found.experiment.train
    gb = {name: f"{size / 1e9:.3g}" for name, size in asdict(memory).items()}
    step, state = f"{memory.step / 1e9:.3g}", f"{memory.state / 1e9:.3g}"
    gpus = f"{cost.gpus} GPU{'s' if cost.gpus > 1 else ''}"
    device = ", an H100 SXM in dense bf16," if cost.peak_tflops == PEAK_TFLOPS else ""
    lines = [
        f"cost: {count(cost.num_params)} parameters ({count(cost.num_params_total)} with the input "
        f"embedding), {count(cost.num_tokens)} tokens: {cost.flops:.3g} FLOPs as the engine "
        f"counts, {cost.flops_6nd:.3g} by 6ND",
        f"memory a GPU, estimated: {step} GB = {state} of state in {train.precision} under "
        f"{train.distributed_strategy} on {gpus} (weights {gb['weights']}, gradients "
        f"{gb['gradients']}, optimizer {gb['optimizer']}, working copies {gb['working_copies']}), "
        f"{gb['activations']} of activations and {gb['logits']} of logits for {cost.microbatch} "
        "rows (olmo_ext/cost.py has the formula)",
        f"time: {number(cost.hours)} hours on {gpus}, {number(cost.gpu_hours)} GPU hours, at "
        f"{cost.peak_tflops:g} TFLOP/s{device} and MFU {cost.mfu:g}; without callbacks and "
        "checkpoints, and a small model reaches far less",
    ]
    if memory.start > memory.step:
        lines.append(
            f"at the start {gb['start']} GB, as each rank builds the whole model in fp32: that is "
            "the peak, not a step"
        )
    if train.precision == "fp32" and device:
        lines.append("train.precision is fp32: give --peak-tflops of your device for the hours")
    if train.activation_checkpointing is not None:
        lines.append("train.activation_checkpointing is set: activations are an upper bound")
    return lines


# -- for programs --------------------------------------------------------------------------------


def as_json(found: Preflight) -> dict[str, Any]:
    """All numbers as JSON values."""
    stream, plan, scan, cost = found.stream, found.stream.plan, found.scan, found.cost
    tasks = []
    for index, (task, schedule) in enumerate(zip(plan.tasks, plan.schedules, strict=True)):
        entry: dict[str, Any] = {
            "name": task.name,
            "family": task.family,
            "schedule": schedule.label,
            "bits": task.bits if np.isfinite(task.bits) else None,
            "examples": {"train": len(task.train), "test": len(task.test)},
            "instances": plan.instances(index, stream.num_steps),
            "exposures_per_example": plan.exposures_per_example(index, stream.num_steps),
            "rates": plan.rates(index),
            "symbols": task.symbols.tolist(),
            "labels": task.labels.tolist(),
        }
        if scan is not None:
            counts = scan.tasks[index]
            entry["scan"] = {
                "symbol_counts": counts.symbols.tolist(),
                "label_counts": counts.labels.tolist(),
                "examples": natural_counts(stream, scan, index),
            }
        tasks.append(entry)
    positions = stream.num_positions
    return {
        "plan_hash": plan.hash,
        "corpus_hash": stream.identity["corpus_hash"],
        "steps": stream.num_steps,
        "batch_size": stream.order.batch_size,
        "seq_len": plan.geometry.seq_len,
        "tokens": positions * plan.geometry.seq_len,
        "epoch_rows": stream.order.epoch_rows,
        "epochs": positions / stream.order.epoch_rows,
        "reserved_tokens": reserved_tokens(found),
        "manifest": found.manifest is not None,
        "scan": scan and {"corpus_tokens": scan.num_tokens, "scanned_tokens": scan.num_scanned},
        "tasks": tasks,
        "cost": asdict(cost)
        | {
            "hours": cost.hours,
            "gpu_hours": cost.gpu_hours,
            "memory": asdict(cost.memory)
            | {name: getattr(cost.memory, name) for name in ("state", "step", "total")},
        },
        "warnings": [asdict(advice) for advice in found.advice],
    }
