"""Evaluate checkpoints: every complete one of every run below a folder, every task and split.

    evaluate("runs/quickstart")          # appends to each run's records.jsonl what is not there yet

Idempotent: a (step, task, split) that already stands in the records is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_injection.plan import InjectionPlan
from eval.accuracy import score_task
from eval.checkpoint import Checkpoint, find_checkpoints, load_model, load_plan
from eval.records import FILE_NAME, RecordWriter, lock_folder, read_records, task_fields

SPLITS = ("train", "test")


def run_folders(source: str | Path) -> list[Path]:
    """Folders of runs (with a plan.json) at or below `source`, sorted."""
    source = Path(source)
    folders = sorted({path.parent for path in source.rglob("plan.json")})
    if not folders:
        raise FileNotFoundError(f"no run (a folder with plan.json) in or below {source}")
    return folders


def evaluate(source: str | Path, *, device: str = "cpu") -> Iterator[tuple[Path, Checkpoint, int]]:
    """Score the checkpoints below `source`; yields (run, checkpoint, records written) one by one.

    Raises:
        FileNotFoundError: no run there.
        ConfigError: a run whose saved experiment compiles to another plan.
    """
    for folder in run_folders(source):
        plan = load_plan(folder)
        run_fields = json.loads((folder / "run.json").read_text())["record_fields"]
        done = _done(folder)
        with lock_folder(folder), RecordWriter(folder / FILE_NAME) as writer:
            for checkpoint in find_checkpoints(folder):
                rows = _score(checkpoint, plan, run_fields, done, device=device)
                writer.write(rows)
                yield folder, checkpoint, len(rows)


def _done(folder: Path) -> set[tuple[int, str, str]]:
    if not (folder / FILE_NAME).is_file():
        return set()
    scores = read_records(folder / FILE_NAME).query("metric == 'score'")
    return set(zip(scores.step, scores.task, scores.split, strict=True))


def _score(
    checkpoint: Checkpoint,
    plan: InjectionPlan,
    run_fields: dict[str, Any],
    done: set[tuple[int, str, str]],
    *,
    device: str,
) -> list[dict[str, Any]]:
    missing = [
        (task, split)
        for task in plan.tasks
        for split in SPLITS
        if (checkpoint.step, task.name, split) not in done
    ]
    if not missing:
        return []
    model = load_model(checkpoint.path, device=device)
    geometry = plan.geometry
    common = run_fields | {
        "step": checkpoint.step,
        "tokens": checkpoint.step * geometry.batch_size * geometry.seq_len,
    }
    return [
        common | task_fields(plan, task.name, step=checkpoint.step) | {"split": split} | score
        for task, split in missing
        for score in score_task(
            lambda ids: model(ids.to(device), last_logits_only=True).logits[:, -1],
            task,
            split=split,
        )
    ]
