"""Features of checkpoints: probes and Fourier counts, alignment search and causal effects.

    for task, what, num in evaluate_features("runs/w64", das=True):
        print(task.name, what, num)            # records appended to the run's records.jsonl

Idempotent and resumable: what stands in the records is skipped, place by place. Probes are those of
the callback `features`, with its settings where the run had it, so that either gives the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf

from data_injection.errors import ConfigError
from data_injection.lock import lock_folder
from data_injection.plan import InjectionPlan
from data_injection.tasks.base import Task
from eval.alignment.causal import causal_effects
from eval.alignment.controls import METRIC, Place, feature_rank, places_of, score_alignment
from eval.alignment.das import STEPS
from eval.alignment.interventions import Site, num_blocks
from eval.checkpoints.checkpoint import (
    Checkpoint,
    by_step,
    find_checkpoints,
    load_model,
    load_plan,
    random_model,
    refuse_core,
)
from eval.features.activations import residual_stream
from eval.features.presence import COUNTS, score_features
from eval.records import FILE_NAME, RecordWriter, records_of, task_fields
from eval.run import EXPERIMENT, load_config, read_run, run_folders

METRICS = (METRIC, "causal_share", "causal_recovered", "ablation_drop")
"""What --das adds to the probes' metrics."""

_CALLBACK = ("layers", "position", "contexts", "permutations")


@dataclass(frozen=True)
class FeatureJob:
    """A checkpoint whose tasks are to be measured."""

    folder: Path
    checkpoint: Checkpoint
    plan: InjectionPlan
    tasks: tuple[Task, ...]


def find_jobs(
    source: str | Path, *, steps: Sequence[int] = (), tasks: Sequence[str] = ()
) -> list[FeatureJob]:
    """The checkpoints of a run, of all runs below a folder, or the one that is given, by step.

    steps, tasks: these alone; empty means all that are there (tasks: all that declare targets).

    Raises:
        FileNotFoundError: no run, no checkpoint, or not of these steps.
        ConfigError: no task declares targets, or none of that name.
    """
    source = Path(source)
    one = source if (source / "model.pt").is_file() else None
    remedy = "Injection(callbacks={'features': {}}) measures its features while it trains"
    refuse_core(source, remedy)
    jobs, known = [], set()
    for folder in [by_step(source).parent] if one else run_folders(source):
        refuse_core(folder, remedy)
        plan = load_plan(folder)
        able = [task for task in plan.tasks if task.targets()]
        known |= {task.name for task in able}
        chosen = tuple(task for task in able if not tasks or task.name in tasks)
        for checkpoint in find_checkpoints(folder):
            is_meant = one is None or checkpoint.path.resolve() == one.resolve()
            if chosen and is_meant and (not steps or checkpoint.step in steps):
                jobs.append(FeatureJob(folder, checkpoint, plan, chosen))
    if not known:
        rule, remedy = "holds no task that declares targets", "of sequences run `olmo-ext eval`"
        raise ConfigError(key=source, rule=rule, remedy=remedy)
    if unknown := sorted(set(tasks) - known):
        rule = "must be tasks of the runs that declare targets"
        remedy = f"these do: {', '.join(sorted(known))}"
        raise ConfigError(key="--task", value=unknown, rule=rule, remedy=remedy)
    if not jobs:
        at = f" of step {', '.join(map(str, steps))}" if steps else ""
        raise FileNotFoundError(f"no complete checkpoint{at} in or below {source}")
    return jobs


def evaluate_features(
    jobs: Sequence[FeatureJob],
    *,
    das: bool = False,
    rank: int | None = None,
    search_steps: int = STEPS,
    device: str = "cpu",
) -> Iterator[tuple[FeatureJob, str, int]]:
    """Measure what is missing; yields (job, what was measured, records written) one by one.

    Args:
        rank: of the subspaces; None takes the dimensions of what the probes found.

    Raises:
        ConfigError: another process writes into the run's folder, or the model cannot be measured.
    """
    for folder in dict.fromkeys(job.folder for job in jobs):
        run_fields = read_run(folder)["record_fields"]
        known: dict[Any, Any] = {}
        with lock_folder(folder), RecordWriter(folder / FILE_NAME) as writer:
            done = _Done(folder)
            for job in (job for job in jobs if job.folder == folder):
                measured = _measure(
                    job, done, known, das=das, rank=rank, search_steps=search_steps, device=device
                )
                geometry = job.plan.geometry
                tokens = job.checkpoint.step * geometry.batch_size * geometry.seq_len
                common = run_fields | {"step": job.checkpoint.step, "tokens": tokens}
                for task, what, rows in measured:
                    fields = common | task_fields(job.plan, task.name, step=job.checkpoint.step)
                    writer.write([fields | row for row in rows])
                    yield job, what, len(rows)


def num_missing(jobs: Sequence[FeatureJob], *, das: bool, rank: int | None = None) -> int:
    """How many pieces `evaluate_features` has to measure; no model is read."""
    missing, done = 0, {folder: _Done(folder) for folder in {job.folder for job in jobs}}
    for job in jobs:
        saved, step = done[job.folder], job.checkpoint.step
        depth = OmegaConf.load(job.checkpoint.path / "config.yaml").model.n_layers if das else 0
        for task in job.tasks:
            missing += not saved.probes(step, task)
            if das:
                missing += not saved.effects(step, task, depth)
                missing += len(set(places_of(task, depth=depth)) - saved.places(step, task, rank))
    return missing


def _measure(
    job: FeatureJob,
    done: _Done,
    known: dict[Any, Any],
    *,
    das: bool,
    rank: int | None,
    search_steps: int,
    device: str,
) -> Iterator[tuple[Task, str, list[dict[str, Any]]]]:
    """What is missing of a checkpoint, piece by piece: a piece is written as a whole."""
    step, seed = job.checkpoint.step, job.plan.seed
    model: torch.nn.Module | None = None
    for task in job.tasks:
        missing_probes = not done.probes(step, task)
        if not das and not missing_probes:
            continue
        model = model or load_model(job.checkpoint.path, device=device)
        probed = done.of_probes(step, task)
        if missing_probes:
            rows = _probe(model, task, _settings(job.folder), seed=seed, device=device)
            probed = pd.DataFrame(rows)
            yield task, f"{task.name}: probes", [{"split": ""} | row for row in rows]
        if not das:
            continue
        if not done.effects(step, task, num_blocks(model)):
            effects = causal_effects(model, task, seed=seed)
            yield task, f"{task.name}: causal effects", [{"split": "test"} | r for r in effects]
        if "untrained" not in known:
            known["untrained"] = random_model(job.checkpoint.path, seed=seed, device=device)
        places = score_alignment(
            model,
            task,
            untrained=known["untrained"],
            rank=rank or feature_rank(task, _present(probed)),
            seed=seed,
            steps=search_steps,
            skip=done.places(step, task, rank),
            known=known,
        )
        for rows in places:
            first = rows[0]
            what = f"{first['variable']} at {first['layer']}.{first['position']}"
            yield task, f"{task.name}: {what}", [{"split": "test"} | row for row in rows]


def _settings(folder: Path) -> dict[str, Any]:
    """What the run's features callback measured with; nothing where it had none."""
    saved = OmegaConf.select(load_config(folder / EXPERIMENT), "callbacks.features")
    return {name: saved[name] for name in _CALLBACK if name in saved} if saved else {}


def _probe(
    model: torch.nn.Module, task: Task, settings: dict[str, Any], *, seed: int, device: str
) -> list[dict[str, Any]]:
    layers = sorted(settings.get("layers") or range(num_blocks(model) + 1))
    return score_features(
        lambda ids: residual_stream(model, ids.to(device)), task, layers=layers, seed=seed,
        **{name: settings[name] for name in _CALLBACK[1:] if name in settings},
    )  # fmt: skip


def _present(probed: pd.DataFrame) -> dict[str, Any]:
    """Units (from 0) that the probes found over all layers, by target."""
    found = probed[probed.metric.isin([*COUNTS.values(), "probe_count"]) & probed.layer.isna()]
    units = zip(found.group, found.present, strict=True)
    return {group: [unit - 1 for unit in present] for group, present in units}


class _Done:
    """What a run's records hold already. A piece is complete if its last row is there."""

    def __init__(self, folder: Path) -> None:
        self._rows = records_of(
            folder,
            *("layer", "group", "present", "component", "position", "variable", "held_out"),
            *("control", "subset", "rank"),
        )

    def _of(self, step: int, task: Task) -> pd.DataFrame:
        return self._rows[(self._rows.step == step) & (self._rows.task == task.name)]

    def of_probes(self, step: int, task: Task) -> pd.DataFrame:
        rows = self._of(step, task)
        return rows[rows.group.isin(list(task.targets()))]

    def probes(self, step: int, task: Task) -> bool:
        rows = self.of_probes(step, task)
        counts = rows[rows.metric.isin([*COUNTS.values(), "probe_count"]) & rows.layer.isna()]
        return set(counts.group) == set(task.targets())

    def effects(self, step: int, task: Task, blocks: int) -> bool:
        rows = self._of(step, task)
        last = (rows.metric == "ablation_drop") & (rows.component == "mlp")
        return bool((last & (rows.layer == blocks) & (rows.position == task.length - 2)).any())

    def places(self, step: int, task: Task, rank: int | None) -> set[Place]:
        rows = self._of(step, task)
        rows = rows[(rows.metric == METRIC) & (rows.control == "full_vector")]
        rows = rows[(rows.subset == "answered") & ((rows["rank"] == rank) | (rank is None))]
        sites = map(Site, rows.layer.astype(int).tolist(), rows.position.astype(int).tolist())
        return set(zip(rows.variable, sites, rows.held_out, strict=True))
