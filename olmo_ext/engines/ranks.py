"""Which of how many processes this is, whatever engine trains; 0 of 1 without a process group."""

from __future__ import annotations

import torch.distributed as dist


def get_world_size() -> int:
    return dist.get_world_size() if _distributed() else 1


def get_global_rank() -> int:
    return dist.get_rank() if _distributed() else 0


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
