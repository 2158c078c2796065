"""Every work-around for stock ai2-olmo 0.6.0, each with the wart, the engine's line and its end.

The engine is never patched: these are subclasses and shields that the trainer calls at its seams.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from copy import copy
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import numpy as np
import torch
import wandb
from olmo.checkpoint import Checkpointer, FullCheckpointer, save_state_dict
from olmo.config import TrainConfig
from olmo.data.iterable_dataset import IterableDataset
from olmo.data.memmap_dataset import MemMapDataset
from olmo.util import is_url
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import StateDictType
from torch.distributed.fsdp.api import FullOptimStateDictConfig, FullStateDictConfig
from torch.utils.data import get_worker_info

from data_injection.files import sync_path
from olmo_ext.engines.ranks import get_global_rank

# Wart: train.py:44 imports olmo.eval for a name in annotations, and so torchmetrics, scikit-learn
# and transformers: a third of a start. Goes when it does so for type checking alone.
sys.modules.setdefault("olmo.eval", SimpleNamespace(Evaluator=Any))  # type: ignore[arg-type]
try:
    import olmo.train
finally:
    if isinstance(sys.modules["olmo.eval"], SimpleNamespace):
        del sys.modules["olmo.eval"]
Trainer = olmo.train.Trainer

log = logging.getLogger(__name__)


class HostDataset(MemMapDataset):
    """The engine's memmap dataset, read at a third of the cost of a short row.

    Warts: `offsets` asks for S3, R2 and Weka clients on every row (memmap_dataset.py:102-116);
    `get_bytes_range` opens a buffered file for it (util.py:388), and the tokens are copied twice
    (memmap_dataset.py:167). `__getitem__` looks through all files for the row's (line 186). Goes
    when the engine caches the table, bisects it and reads with pread.
    """

    def __getitem__(self, index: int) -> dict[str, Any]:
        position = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= position < len(self):
            return super().__getitem__(index)  # its IndexError
        ends, files = self._files
        # The engine then looks through the one file that has the row.
        return MemMapDataset.__getitem__(files[bisect_right(ends, position)], position)

    @cached_property
    def _files(self) -> tuple[list[int], list[HostDataset]]:
        """Where each file's rows end, and this dataset with that file alone (same row numbers)."""
        files = []
        for number, rows in enumerate(self.offsets):
            file = copy(self)
            file._mmap_offsets = [rows]
            file._memmap_paths = (self._memmap_paths[number],)
            file._metadata = [self._metadata[number]]
            if self._label_mask_paths is not None:
                file._label_mask_paths = [self._label_mask_paths[number]]
            files.append(file)
        return [end for _, end in self.offsets], files

    @property
    def offsets(self) -> list[tuple[int, int]]:
        return super().offsets if self._mmap_offsets is None else self._mmap_offsets

    def _read_chunk_from_memmap(self, path: Any, index: int, dtype: Any = None) -> torch.Tensor:
        if is_url(path):
            return super()._read_chunk_from_memmap(path, index, dtype)
        dtype = dtype or self.dtype
        num_bytes = np.dtype(dtype).itemsize * self._chunk_size
        # Opened for every row: a descriptor kept would have to survive fork, pickling and corpora
        # of more files than a process may open, for one microsecond.
        descriptor = os.open(path, os.O_RDONLY)
        try:
            buffer = os.pread(descriptor, num_bytes, index * num_bytes)
        finally:
            os.close(descriptor)
        if len(buffer) < num_bytes:  # a file system may return less than asked; the engine loops
            return super()._read_chunk_from_memmap(path, index, dtype)
        array = np.frombuffer(buffer, dtype=dtype)
        return torch.tensor(array) if dtype == np.bool_ else torch.from_numpy(array.astype(np.int_))


class PositionDataset(IterableDataset):
    """The engine's iterable dataset over stream positions, read without its threads.

    Wart: `_get_dataset_item` (iterable_dataset.py:183) reports the index it asked for, which here
    is a stream position; batches keep the engine's meaning of "index", the row of the corpus. Goes
    when the engine lets a dataset name its own index.

    Wart: `__iter__` holds the index of every row to the end of the run (line 118) in each worker of
    each rank: 400 MB for 100 million. Here it runs over one window of positions after another. Goes
    when the engine counts where it does not shuffle.
    """

    WINDOW = 2**20
    """Positions, rounded down to whole rounds of all workers (at least one)."""

    window: range | None = None
    """The positions that the engine's `__iter__` sees; None for all."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        assert (self.drop_last, self.shuffle) == (True, False)
        info = get_worker_info()
        # The engine deals one batch a worker in turn: after whole rounds the first is next again.
        round_size = self.device_batch_size * self.world_size * (info.num_workers if info else 1)
        size = max(self.WINDOW // round_size, 1) * round_size
        stop = min(n for n in (self.total_size, self.max_examples) if n is not None)
        starts = range(self.start_index, stop, size)
        return chain.from_iterable(self._rows(range(s, min(s + size, stop))) for s in starts)

    def _rows(self, window: range) -> Iterator[dict[str, Any]]:
        part = copy(self)
        part.window, part.start_index, part.max_examples = window, 0, None
        return IterableDataset.__iter__(part)

    def get_global_indices(self) -> np.ndarray:
        if self.window is None:
            return super().get_global_indices()
        return np.arange(self.window.start, self.window.stop, dtype=np.uint32)

    def _get_dataset_item(self, idx: int) -> dict[str, Any]:
        return self.dataset[idx]


class _LinkPath(type(Path())):  # type: ignore[misc]
    """A path whose links are replaced in one step: never absent, never partial."""

    def unlink(self, missing_ok: bool = False) -> None:
        if not self.is_symlink():
            super().unlink(missing_ok=missing_ok)

    def symlink_to(self, target: Any, target_is_directory: bool = False) -> None:
        temporary = Path(f"{self}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target, target_is_directory=target_is_directory)
        temporary.replace(self)


def link_latest(checkpoint: Path) -> None:
    """Let `latest-unsharded` beside a checkpoint lead to it, as the engine does after a save."""
    _LinkPath(checkpoint.with_name("latest-unsharded")).symlink_to(checkpoint.name)


@contextlib.contextmanager
def atomic_links() -> Iterator[None]:
    """Let the engine replace `latest-unsharded` in one step while it saves.

    Wart: it unlinks it and then links it anew (train.py:489-491), so that a kill in between leaves
    a run without one. Goes when the engine renames a link into place.
    """
    before = olmo.train.Path
    olmo.train.Path = _LinkPath
    try:
        yield
    finally:
        olmo.train.Path = before


def open_indices(cfg: TrainConfig, folder: Path) -> TextIO | None:
    """The engine's log of rows per step.

    Wart: its own script truncates it when a run is resumed. Goes when it appends.
    """
    if not cfg.save_data_indices:
        return None
    path = folder / "data-indices" / f"rank{get_global_rank()}.tsv.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    return gzip.open(path, "at")


class _TorchOnCpu:
    """torch, as the engine's trainer is to see it on a machine without CUDA."""

    cuda = SimpleNamespace(get_rng_state=lambda: torch.zeros(0), set_rng_state=lambda state: None)

    def autocast(self, _: str, *, enabled: bool, dtype: torch.dtype) -> torch.autocast:
        enabled &= dtype == torch.bfloat16
        return torch.autocast("cpu", enabled=enabled, dtype=torch.bfloat16)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextlib.contextmanager
def cpu_shield() -> Iterator[None]:
    """Let the engine's hard-coded CUDA calls pass on a machine without CUDA.

    Warts: torch.cuda.get/set_rng_state raise on a CPU build (train.py:335, 433); autocast("cuda")
    warns at every micro-batch and computes in fp32 whatever is asked for (799, 903). Nothing is
    changed where CUDA is available. Goes when the engine asks its device.
    """
    before = olmo.train.torch
    olmo.train.torch = before if torch.cuda.is_available() else _TorchOnCpu()
    try:
        yield
    finally:
        olmo.train.torch = before


def plain_trainer_state(state: dict[str, Any]) -> dict[str, Any]:
    """The trainer's state with strings, numbers and tensors only.

    Wart: train.pt holds paths and RNG tuples (train.py:320-337), which torch.load refuses under
    weights_only since torch 2.6 (checkpoint.py:316). Plain values need no allow-list.
    """
    plain = dict(state)
    for key in ("checkpoints", "unsharded_checkpoints", "ephemeral_checkpoints"):
        plain[key] = [str(path) for path in state[key]]
    rng = dict(state["rng"])
    rng["python"] = json.dumps(rng["python"])
    name, keys, pos, has_gauss, cached = rng["numpy"]
    words = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    rng["numpy"] = [name, words, int(pos), int(has_gauss), float(cached)]
    plain["rng"] = rng
    return plain


def stock_trainer_state(plain: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `plain_trainer_state`; a state that the engine wrote passes unchanged."""
    state = dict(plain)
    for key in ("checkpoints", "unsharded_checkpoints", "ephemeral_checkpoints"):
        state[key] = [Path(path) for path in plain.get(key, [])]
    rng = dict(plain["rng"])
    if isinstance(rng["python"], str):
        version, words, gauss = json.loads(rng["python"])
        rng["python"] = (version, tuple(words), gauss)
    if isinstance(rng["numpy"], list):
        name, keys, *rest = rng["numpy"]
        rng["numpy"] = (name, keys.numpy().astype(np.uint32), *rest)
    if torch.cuda.is_available() and rng["cuda"].numel() == 0:
        rng["cuda"] = torch.cuda.get_rng_state()  # saved on a CPU: nothing to restore
    state["rng"] = rng
    return state


def sync_checkpoint(folder: Path) -> None:
    """Force a checkpoint's files and its entries onto the disk.

    Wart: the engine renames a checkpoint into place without it (checkpoint.py:581), so that after a
    power cut a complete-looking one may hold empty files. Goes when the engine syncs.
    """
    for path in [*(p for p in folder.iterdir() if p.is_file()), folder]:
        sync_path(path)


def finish_wandb(exit_code: int) -> None:
    """End the W&B run before the engine does.

    Wart: `close` passes quiet=True (train.py:1377), which current wandb no longer takes, so that
    every run with W&B ends in a TypeError. Goes when the engine drops the argument.
    """
    if wandb.run is None:
        return
    try:
        wandb.finish(exit_code=exit_code)
    except OSError as error:
        log.warning("W&B's service is gone (%s): its run may lack the end", error)
        wandb.run = None  # else the engine would end it once more


def outlive_wandb() -> None:
    """Let the run go on when W&B's service has ended; call it after `wandb.init`.

    Wart: SLURM sends SIGTERM to every process of a job, and W&B's service ends at once. The next
    `wandb.log`, the engine's own included, then raises ConnectionResetError, before the run has
    saved the step that the signal asks it to save. Goes when the service ignores SIGTERM while its
    client lives.
    """
    stock, said = wandb.log, False

    def log_or_warn(*args: Any, **kwargs: Any) -> None:
        nonlocal said
        try:
            stock(*args, **kwargs)
        except OSError as error:
            if not said:
                log.warning("W&B's service is gone (%s): no more is sent to it", error)
            said = True

    wandb.log = log_or_warn


class CpuFullCheckpointer(FullCheckpointer):
    """Unsharded checkpoints of an FSDP model on the CPU.

    Wart: the stock one gathers with offload_to_cpu=True, which on the CPU frees the tensors that it
    returns and crashes rank 0 (checkpoint.py:633). Same files, without the offload. Goes when the
    engine offloads only what is not on the CPU.
    """

    def save_checkpoint(
        self, dir: Any, dist_model: Any, optim: Any, trainer_state: Any, *, upload_to: Any = None
    ) -> None:
        with self._temporary_wd(dir) as folder:
            asked = {"rank0_only": True, "offload_to_cpu": False}
            how = FullStateDictConfig(**asked), FullOptimStateDictConfig(**asked)
            with FSDP.state_dict_type(dist_model, StateDictType.FULL_STATE_DICT, *how):
                where = folder, upload_to, self.cfg.save_overwrite
                self._write_model_dict(dist_model.state_dict(), *where)
                self._write_optim_dict(FSDP.optim_state_dict(dist_model, optim), *where)
            if get_global_rank() == 0:
                save_state_dict(
                    folder, "train.pt", trainer_state, upload_to=upload_to, synchronize=False
                )
            self._save_config(folder, upload_to=upload_to)


def checkpointer_for(
    checkpointer: Checkpointer, dist_model: torch.nn.Module, on_files: Callable[[Path], None]
) -> Checkpointer:
    """The checkpointer to use in place of the engine's choice.

    `on_files` is called with the temporary folder just before it is renamed (every checkpointer
    ends with `_save_config`, checkpoint.py:604), so that what it writes is there or the whole
    checkpoint is not.
    """
    on_cpu = next(dist_model.parameters()).device.type == "cpu"
    if isinstance(checkpointer, FullCheckpointer) and isinstance(dist_model, FSDP) and on_cpu:
        checkpointer = CpuFullCheckpointer(checkpointer.cfg)
    save_config = checkpointer._save_config

    def save_config_and_ours(dir: Any, *, upload_to: str | None = None) -> None:
        save_config(dir, upload_to=upload_to)
        if get_global_rank() == 0:
            on_files(Path(dir))

    checkpointer._save_config = save_config_and_ours
    return checkpointer
