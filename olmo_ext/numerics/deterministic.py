"""deterministic: true, the same bits from the same run on the same machine, on CUDA too.

    with deterministic(experiment):         # before CUDA starts
        ...

torch then takes deterministic algorithms alone and raises where an operation has none. The flag is
put back; the environment's CUBLAS_WORKSPACE_CONFIG is read once, when CUDA starts, and stays.
Bit-equal resume on CUDA by this setting: not yet measured (docs/findings/gpu did it by hand).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from data_injection.errors import ConfigError
from olmo_ext.numerics.kernels import has_flash_attention

if TYPE_CHECKING:
    from olmo_ext.config import ExperimentConfig

CUBLAS, FIT = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
"""The variable, and the values under which cuBLAS adds in one order (its documentation)."""


@contextmanager
def deterministic(experiment: ExperimentConfig) -> Iterator[None]:
    """Deterministic algorithms within, if the experiment asks for them.

    Raises ConfigError for what cannot be: before any work what is known, and from within an
    operation that has no deterministic algorithm, by torch's name for it.
    """
    if not experiment.deterministic:
        yield
        return
    _prepare_cublas()
    if experiment.train.model.flash_attention and has_flash_attention():
        key, rule = "train.model.flash_attention", "must be false with deterministic=true: the "
        rule += "flash-attn package's backward pass adds in any order, and torch cannot see it"
        remedy = "torch's own attention is taken instead"
        raise ConfigError(key=key, value=True, rule=rule, remedy=remedy)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        rule = f"cannot be kept: {operation.split()[-1]} has no deterministic algorithm"
        remedy = "leave out what calls it, or set deterministic=false"
        raise ConfigError(key="deterministic", value=True, rule=rule, remedy=remedy) from error
    finally:
        torch.use_deterministic_algorithms(before)


def _prepare_cublas() -> None:
    given = os.environ.setdefault(CUBLAS, FIT[0]) if not torch.cuda.is_initialized() else None
    if (given or os.environ.get(CUBLAS)) not in FIT:
        rule = f"must be one of {', '.join(FIT)} before CUDA starts, for deterministic=true"
        remedy, value = "set it in the environment", os.environ.get(CUBLAS)
        raise ConfigError(key=CUBLAS, value=value, rule=rule, remedy=remedy)
