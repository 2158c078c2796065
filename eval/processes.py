"""Work side by side in processes: one way to start them, and to stop when somebody stops.

with in_processes(measure, checkpoints, jobs=2, preload=["olmo.model"]) as results:
    for checkpoint, rows in results: ...
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from data_injection.errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def in_processes(
    work: Callable[[T], R], items: Sequence[T], *, jobs: int, preload: Sequence[str] = ()
) -> Iterator[Iterator[tuple[T, R]]]:
    """(item, its result) as they come; what has not begun is dropped if the caller stops.

    With one job the work is done here. Else in processes of a fork server, which has imported
    `preload` once (torch's threads do not survive a plain fork), with the cores shared out.

    Raises ConfigError where a process was killed.
    """
    jobs = min(jobs, len(items))
    if jobs <= 1:
        yield ((item, work(item)) for item in items)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*preload])
    threads = max((os.cpu_count() or 1) // jobs, 1)
    pool = ProcessPoolExecutor(jobs, context, initializer=_use_threads, initargs=(threads,))
    try:
        futures = {pool.submit(work, item): item for item in items}
        yield ((futures[future], future.result()) for future in as_completed(futures))
    except BrokenProcessPool as error:
        rule = "was too many: a process was killed, often for want of memory"
        remedy = "what is done is kept: go on with fewer"
        raise ConfigError(key="--jobs", value=jobs, rule=rule, remedy=remedy) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _use_threads(num: int) -> None:
    import torch

    torch.set_num_threads(num)
