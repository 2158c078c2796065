"""Runs to audit, trained once: bare memmaps uninterrupted and resumed, and a prepared corpus."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from data_injection.manifest import MANIFEST, CorpusFile, Manifest
from olmo_ext.config import load_experiment
from olmo_ext.train import train

VOCAB, SEQ_LEN, NUM_ROWS = 256, 16, 8200
"""So many rows that most of the file is beyond the 64 KiB at its ends."""


@pytest.fixture(scope="session")
def bare_run(
    tmp_path_factory: pytest.TempPathFactory, write_experiment_in: Callable[[Path], Callable]
) -> Path:
    """12 steps on a bare memmap, checkpoints at 0, 4, 8 and 12. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("bare")
    write = write_experiment_in(folder)
    tokens = np.random.default_rng(3).integers(2, VOCAB, SEQ_LEN * NUM_ROWS, dtype=np.uint16)
    tokens.tofile(folder / "tokens.npy")
    return train(load_experiment(write(quick)))


@pytest.fixture(scope="session")
def resumed_run(bare_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bare_run`, its last checkpoint lost and its last steps taken again, from step 8."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    shutil.copytree(bare_run, folder, symlinks=True)
    shutil.rmtree(folder / "step12-unsharded")
    overrides = [f"train.save_folder={folder}"]
    return train(load_experiment(bare_run / "experiment.yaml", overrides), resume=True)


@pytest.fixture(scope="session")
def prepared_run(
    tmp_path_factory: pytest.TempPathFactory, write_experiment_in: Callable[[Path], Callable]
) -> Path:
    """12 steps on a corpus of two files, of the same size, with a manifest."""
    folder = tmp_path_factory.mktemp("prepared")
    write = write_experiment_in(folder)
    make_corpus(folder / "corpus")

    def edit(config: dict) -> None:
        quick(config)
        config["corpus"] = str(folder / "corpus")
        del config["train"]["data"]["paths"]

    return train(load_experiment(write(edit)))


def quick(config: dict) -> None:
    config["train"]["save_interval_unsharded"] = 4
    config["callbacks"] = {"progress": None}


def make_corpus(folder: Path) -> None:
    folder.mkdir()
    words = {f"word{i}": i for i in range(VOCAB)}
    Tokenizer(WordLevel(words, unk_token="word0")).save(str(folder / "tokenizer.json"))
    files = []
    for number in range(2):
        path = folder / f"tokens-{number:05d}.npy"
        tokens = np.random.default_rng(number).integers(2, VOCAB, SEQ_LEN * 20, dtype=np.uint16)
        tokens.tofile(path)
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        files.append(CorpusFile(path.name, len(tokens), sha))
    tokenizer = (folder / "tokenizer.json").read_bytes()
    manifest = Manifest(
        name="made by hand",
        tokenizer="tokenizer.json",
        tokenizer_sha256=hashlib.sha256(tokenizer).hexdigest(),
        vocab_size=VOCAB,
        eos_token_id=0,
        pad_token_id=1,
        special_token_ids=(0, 1),
        byte_token_ids=(),
        dtype="uint16",
        num_tokens=sum(file.num_tokens for file in files),
        num_documents=1,
        files=tuple(files),
        sources=(),
    )
    (folder / MANIFEST).write_text(json.dumps(dataclasses.asdict(manifest)))
