"""Audit: was each example trained on as often as the plan says, and none that is held out?

check_exposures(plan, exposures, start=0, step=400)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_injection.plan import InjectionPlan
from eval.audit.subject import OK, Verdict, judge, listing
from eval.text import plural


def _copies(
    plan: InjectionPlan, index: int, seen: NDArray[np.int64], *, first: int, count: int
) -> list[str]:
    """Each sequence as often as it was its turn."""
    task, wanted = plan.tasks[index], np.zeros_like(seen)
    if count:
        wanted += np.bincount(plan.instance_examples(index, first, count), minlength=len(seen))
    wrong = np.flatnonzero(seen != wanted)
    if not len(wrong):
        return []
    said = f"{task.name}: example {wrong[0]} was seen {seen[wrong[0]]} times, planned were "
    return [f"{said}{wanted[wrong[0]]} ({plural(len(wrong), 'example')} differ)"]


def check_exposures(
    plan: InjectionPlan, exposures: list[NDArray[np.int64]], *, start: int, step: int
) -> Verdict:
    """Each task's examples as often as its closed form says, and none of the test split."""
    problems, numbers, said = [], [], []
    for index, (task, seen) in enumerate(zip(plan.tasks, exposures, strict=True)):
        before = plan.instances(index, start)
        planned = plan.instances(index, step) - before
        trained = int(seen.sum())
        train = seen[task.train] if len(task.train) else np.zeros(1, dtype=np.int64)
        num_test = trained - int(train.sum())
        numbers.append(
            {
                "task": task.name,
                "planned": planned,
                "trained": trained,
                "train_examples": len(train),
                "distinct": int((train > 0).sum()),
                "least": int(train.min()),
                "most": int(train.max()),
                "of_test_split": num_test,
            }
        )
        if trained != planned:
            problems.append(f"{task.name}: {planned:,} instances planned, {trained:,} trained")
        if num_test:
            problems.append(f"{task.name}: {plural(num_test, 'row')} of the test split")
        # Every example comes once before any comes twice.
        bounds = planned // len(train), -(-planned // len(train))
        if not task.has_label:
            problems += _copies(plan, index, seen, first=before, count=planned)
        elif not start and trained == planned and (train.min(), train.max()) != bounds:
            problems.append(
                f"{task.name}: an example was seen {train.min()} to {train.max()} times, planned "
                f"were {bounds[0]} to {bounds[1]}"
            )
        said.append(f"{task.name} {trained:,}")
    if not plan.tasks:
        return Verdict("exposures", OK, "the run has no tasks")
    agreed = f"instances trained as planned: {listing(said)}; none of a test split"
    return judge("exposures", problems, agreed, numbers={"tasks": numbers})
