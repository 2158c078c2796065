"""Which of how many processes this is, whatever engine trains; 0 of 1 without a process group."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from data_injection.errors import ConfigError
from eval.run import differences, told_differences


def get_world_size() -> int:
    return dist.get_world_size() if _distributed() else 1


def get_global_rank() -> int:
    return dist.get_rank() if _distributed() else 0


def check_one_run(identity: dict[str, Any]) -> None:
    """Raise ConfigError on all ranks if one of them would train another run; all must call.

    A file on a node's own disk or a package of another version differs where the experiment does
    not, and each rank checks its batches by its own plan.
    """
    of_rank0: list[Any] = [identity]
    found_by_rank: list[Any] = [None] * get_world_size()
    dist.broadcast_object_list(of_rank0)
    dist.all_gather_object(found_by_rank, differences(identity, of_rank0[0]))
    for rank, found in enumerate(found_by_rank):
        if found:
            rule = "would train another run than rank 0: "
            rule += "; ".join(told_differences(found, then="on rank 0"))
            remedy = "give all nodes the same files and packages, and a family of one's own a seed"
            raise ConfigError(key=f"rank {rank}", rule=rule, remedy=remedy)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
