"""The training data loader: the engine's own loader over the spliced stream.

    loader = build_train_dataloader(train, plan=plan, order=order, num_positions=...)

With an empty plan its batches are byte for byte those of stock ai2-olmo's `build_train_dataloader`,
epoch after epoch; with a plan nothing but the injected tokens differs
(tests/olmo_ext/test_data.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from olmo.config import TrainConfig
from olmo.data.collator import DataCollator
from olmo.util import file_size, get_bytes_range, is_url
from torch.utils.data import DataLoader

from data_injection.digest import fingerprint as fingerprint_files
from data_injection.errors import ConfigError
from data_injection.order import RowOrder
from data_injection.plan import InjectionPlan
from data_injection.splice import SplicedStream
from olmo_ext.compat import HostDataset, PositionDataset
from olmo_ext.signals import ignore_in_worker

SAMPLED_ROWS = 2048
"""Rows looked at before training, evenly spread over each file, at least four of each."""


def build_host(train: TrainConfig, *, include_instance_metadata: bool = False) -> HostDataset:
    """The corpus as rows of max_sequence_length tokens, as the engine's build_memmap_dataset."""
    data, model = train.data, train.model
    assert data.paths is not None
    return HostDataset(
        *data.paths,
        chunk_size=model.max_sequence_length,
        memmap_dtype=data.effective_memmap_dtype,
        metadata=[{"path": str(path)} for path in data.paths],
        include_instance_metadata=include_instance_metadata,
        pad_token_id=model.pad_token_id,
        eos_token_id=model.eos_token_id,
        generate_attention_mask=data.generate_attention_mask,
        generate_doc_lengths=data.generate_doc_lengths,
        label_mask_paths=data.label_mask_paths,
        instance_filter_config=data.instance_filter,
    )


def check_memmaps(train: TrainConfig) -> None:
    """Raise ConfigError for files that the engine would read as nonsense.

    Looks for a NumPy header (the engine's .npy files have none), a size that is no whole number of
    tokens, uint32 data read as uint16, and token ids beyond the embedding, in `SAMPLED_ROWS` rows.
    Files behind a URL are left to the engine.
    """
    dtype = train.data.effective_memmap_dtype
    size, vocab = np.dtype(dtype).itemsize, train.model.vocab_size
    row = train.model.max_sequence_length
    num_samples = max(SAMPLED_ROWS // max(len(train.data.paths or []), 1), 4)

    def refused(key: str, value: object, rule: str, remedy: str) -> ConfigError:
        return ConfigError(key=f"train.data.{key}", value=str(value), rule=rule, remedy=remedy)

    # A URL must stay a string: Path("s3://x") is "s3:/x".
    for path in (Path(p) for p in train.data.paths or [] if not is_url(p)):
        if not path.is_file():
            remedy = "correct the path, or make a corpus with `olmo-ext prepare`"
            raise refused("paths", path, "must name files", remedy)
        num_bytes = path.stat().st_size
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                rule = "must have no NumPy header, which the engine would read as tokens"
                raise refused("paths", path, rule, "write it with array.tofile()")
        if num_bytes % size:
            rule = f"must be of a size that divides the {num_bytes} bytes of {path}"
            remedy = "set it to the type the file was written with"
            raise refused("memmap_dtype", train.data.memmap_dtype, rule, remedy)
        if num_bytes < size * row:
            rule = f"must hold rows of max_sequence_length={row}, not {num_bytes // size} tokens"
            remedy = "remove the file or lower train.model.max_sequence_length"
            raise refused("paths", path, rule, remedy)
        tokens = np.memmap(path, dtype=dtype, mode="r")
        starts = np.linspace(0, len(tokens) - row, num=min(num_samples, len(tokens) // row))
        sample = np.stack([tokens[s - s % 2 :][:row] for s in starts.astype(np.int64)])
        largest = int(sample.max())
        if largest >= vocab:
            rule = f"must hold ids below train.model.vocab_size {vocab}, not {largest}"
            remedy = f"correct train.data.memmap_dtype={train.data.memmap_dtype} or the vocabulary"
            raise refused("paths", path, rule, remedy)
        # Little-endian uint32 read as uint16 has a zero high half at every second place.
        if dtype == np.uint16 and sample.shape[1] > 1 and (sample[:, 1::2] <= vocab >> 16).all():
            rule = f"must be the type of {path}, which looks like uint32: every second token is 0"
            raise refused("memmap_dtype", train.data.memmap_dtype, rule, "set it to uint32")


def fingerprint(paths: Sequence[str]) -> str:
    """Identity of files that have no manifest, wherever the engine can read them."""
    return fingerprint_files(paths, size=file_size, read=get_bytes_range)


def data_seed(train: TrainConfig) -> int:
    """The seed of the row order, by the engine's rule."""
    return train.data.seed if train.data.seed is not None else train.seed


def build_train_dataloader(
    train: TrainConfig,
    *,
    plan: InjectionPlan,
    order: RowOrder,
    num_positions: int,
    world_size: int | None = None,
    rank: int | None = None,
    fs_local_rank: int | None = None,
    include_instance_metadata: bool = False,
) -> DataLoader:
    """The engine's DataLoader over stream positions 0 .. num_positions-1.

    `world_size`, `rank` and `fs_local_rank` default to the process group's. The engine's threads
    are off (num_threads=0): with num_workers=0 they cost more than reading a row.
    """
    data = train.data
    workers = data.num_workers
    stream = SplicedStream(
        build_host(train, include_instance_metadata=include_instance_metadata),
        order=order,
        plan=plan,
        num_positions=num_positions,
        pad_token_id=train.model.pad_token_id,
    )
    dataset = PositionDataset(
        stream,
        train.global_train_batch_size,
        shuffle=False,
        drop_last=True,
        world_size=world_size,
        rank=rank,
        fs_local_rank=fs_local_rank,
        num_threads=0,
    )
    return DataLoader(
        dataset,
        batch_size=train.device_train_batch_size,
        drop_last=True,
        collate_fn=DataCollator(
            pad_direction=data.pad_direction, pad_token_id=train.model.pad_token_id
        ),
        num_workers=workers,
        pin_memory=data.pin_memory,
        prefetch_factor=None if workers == 0 else data.prefetch_factor,
        persistent_workers=False if workers == 0 else data.persistent_workers,
        timeout=data.timeout,
        # Its own: every new iterator draws a seed, and from the global generator that would make a
        # resumed run's dropout differ from the uninterrupted one's.
        generator=torch.Generator(),
        worker_init_fn=ignore_in_worker,
    )
