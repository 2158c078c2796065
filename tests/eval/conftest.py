"""Runs to audit, trained once: bare memmaps uninterrupted and resumed, and a prepared corpus.

And a model whose only feature is known: what alignment search and patching must find.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn

from data_injection.corpus.manifest import MANIFEST, CorpusFile, Manifest
from data_injection.tasks.base import Task
from data_injection.tasks.comparison import Comparison
from data_injection.tasks.modular_addition import ModularAddition
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


class PlantedBlock(nn.Module):
    """A token reads the one before it; then the MLP's output is a linear map of `act` of it all."""

    def __init__(self, width: int, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_out = nn.Linear(width, width, bias=False)
        self.act = act
        nn.init.zeros_(self.attn_out.weight)
        nn.init.zeros_(self.ff_out.weight)

    def forward(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, None]:
        before_BTD = torch.cat([torch.zeros_like(x_BTD[:, :1]), x_BTD[:, :-1]], dim=1)
        x_BTD = x_BTD + self.attn_out(before_BTD)
        return x_BTD + self.ff_out(self.act(x_BTD)), None


class Planted(nn.Module):
    """A model that solves a task in a way that is known, behind the engine's hooks.

    Along `feature_DK` the embedding holds what a symbol hides, everything else in it is noise.
    Block 1's attention moves that of the token before to other directions; block 2's MLP alone
    combines the two and writes the answer. With `scramble` all weights are random.
    """

    def __init__(self, task: Task, *, scramble: bool = False, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        vocab, num = int(task.tokens.max()) + 1, len(task.symbols)
        frame_DD = torch.linalg.qr(torch.randn(width, width))[0]
        rank = 1 if task.family == "comparison" else 2
        feature_DK, moved_DK = frame_DD[:, :rank], frame_DD[:, rank : 2 * rank]
        answer_DK, one_D = frame_DD[:, 2 * rank : 3 * rank], frame_DD[:, 3 * rank]
        place = torch.arange(num, dtype=torch.float32)
        circle_SK = torch.stack([torch.cos(2 * torch.pi * place / num),
                                 torch.sin(2 * torch.pi * place / num)], dim=1)  # fmt: skip
        hidden_SK = (place - place.mean())[:, None] if rank == 1 else circle_SK
        noise_SD = torch.randn(num, width - 3 * rank - 1) * hidden_SK.std()

        def combine(x_BTD: torch.Tensor) -> torch.Tensor:
            own, other = x_BTD @ feature_DK, x_BTD @ moved_DK
            if rank == 1:
                return (other - own) @ answer_DK.T
            real = own[..., 0] * other[..., 0] - own[..., 1] * other[..., 1]
            imaginary = own[..., 0] * other[..., 1] + own[..., 1] * other[..., 0]
            return torch.stack([real, imaginary], dim=-1) @ answer_DK.T

        blocks = nn.ModuleList([PlantedBlock(width, combine), PlantedBlock(width, combine)])
        embedding, head = nn.Embedding(vocab, width), nn.Linear(width, vocab, bias=False)
        modules = {"wte": embedding, "blocks": blocks, "ln_f": nn.Identity(), "ff_out": head}
        self.transformer = nn.ModuleDict(modules)
        self.feature_DK = feature_DK
        if scramble:
            for block in blocks:
                nn.init.normal_(block.attn_out.weight, std=width**-0.5)
                nn.init.normal_(block.ff_out.weight, std=width**-0.5)
            return
        with torch.no_grad():
            embedding.weight[task.symbols] = (
                hidden_SK @ feature_DK.T + noise_SD @ frame_DD[:, 3 * rank + 1 :].T + one_D
            )
            blocks[0].attn_out.weight.copy_(moved_DK @ feature_DK.T)
            blocks[1].ff_out.weight.copy_(torch.eye(width))
            head.weight.zero_()
            if rank == 1:
                head.weight[task.labels[0]] = -answer_DK[:, 0]
                head.weight[task.labels[1]] = one_D / 2
                head.weight[task.labels[2]] = answer_DK[:, 0]
            else:
                head.weight[task.symbols] = 50 * circle_SK @ answer_DK.T

    def forward(self, input_ids: torch.Tensor, last_logits_only: bool = False) -> SimpleNamespace:
        x_BTD = self.transformer.wte(input_ids)
        for block in self.transformer.blocks:
            x_BTD, _ = block(x_BTD)
        if last_logits_only:
            x_BTD = x_BTD[:, -1:]
        return SimpleNamespace(logits=self.transformer.ff_out(self.transformer.ln_f(x_BTD)))


@pytest.fixture
def planted() -> Callable[..., Planted]:
    """planted(task) -> a model that solves it with a known feature at known places."""
    return Planted


@pytest.fixture
def ranks() -> Comparison:
    """Comparison of 40 symbols."""
    return Comparison("cmp", symbols=10 + np.arange(40)[::-1], labels=np.array([1, 2, 3]), seed=0)


@pytest.fixture
def sums() -> ModularAddition:
    """Addition modulo 23, over 23 symbols."""
    return ModularAddition("add", symbols=10 + np.arange(23), labels=np.array([]), seed=0)
