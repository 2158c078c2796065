"""Token files as other programs write them: read as their type says, or refused by a dry run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from refusals import refuses

from olmo_ext.config import load_experiment
from olmo_ext.train import train

NUM, VOCAB = 40_000, 256
GOOD = np.random.default_rng(0).integers(2, VOCAB, size=NUM)
WILD = np.concatenate([GOOD[:5], [60_000], GOOD[6:]])
BEYOND = np.random.default_rng(0).integers(0, 100_278, size=NUM)


def saved(path: Path) -> None:
    np.save(path, GOOD.astype(np.uint16))


def zipped(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, GOOD.astype(np.uint16))


TYPE, PATHS = "train.data.memmap_dtype", "train.data.paths"
REFUSED: dict[str, tuple[np.ndarray | bytes | Callable[[Path], None], str, str]] = {
    "all zero": (np.zeros(NUM, np.uint16), TYPE, "every second token"),
    "as int32": (GOOD.astype(np.int32), TYPE, "looks like uint32"),
    "as uint32": (GOOD.astype(np.uint32), TYPE, "looks like uint32"),
    "dolma2 as uint32": (BEYOND.astype(np.uint32), PATHS, "below train.model.vocab_size 256"),
    "empty": (b"", PATHS, "not 0 tokens"),
    "short": (GOOD[:15].astype(np.uint16), PATHS, "not 15 tokens"),
    "saved by numpy": (saved, PATHS, "no NumPy header"),
    "odd bytes": (GOOD.astype(np.uint16).tobytes() + b"x", TYPE, "divides the 80001 bytes of"),
    "one wild in the first row": (WILD.astype(np.uint16), PATHS, "vocab_size 256, not 60000"),
    "a zip of arrays": (zipped, PATHS, "below train.model.vocab_size 256"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_not_of_its_type_is_refused_by_a_dry_run(
    name: str, write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    experiment, (content, key, rule) = write_experiment(), REFUSED[name]
    path = tmp_path / "tokens.npy"
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.tobytes())
    with refuses(key=key, value="uint16" if key == TYPE else path, rule=rule):
        train(load_experiment(experiment), dry_run=True)


def test_a_good_file_passes(write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    experiment = write_experiment()
    GOOD.astype(np.uint16).tofile(tmp_path / "tokens.npy")
    train(load_experiment(experiment), dry_run=True)
    assert not (tmp_path / "run").exists()
