"""Masks, document lengths and loss of an injected row, from files to the engine's own targets.

    pytest tests/olmo_ext/test_masks.py

What every batch must hold is put together here from the files (np.memmap), NumPy's shuffle and
`plan.at`; whether a row is filtered is stock's own verdict.

B = global batch, T = tokens a row, S = steps, R = rows of the corpus, V = vocabulary, W = ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from olmo.config import DataConfig, InstanceFilterConfig, ModelConfig, TrainConfig
from olmo.data import MemMapDataset
from olmo.train import Trainer, cross_entropy_loss
from torch.utils.data import DataLoader

from data_injection.config import InjectionConfig, ScheduleConfig, TaskConfig
from data_injection.order import RowOrder
from data_injection.plan import InjectionPlan, compile_plan
from olmo_ext.compat import PositionDataset
from olmo_ext.data import build_train_dataloader

# Two workers for each of several ranks are on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

T, B, V, SEED, EOS, PAD = 16, 12, 200, 11, 0, 1
FILES = (17, 22, 12)
"""Rows of each file: 51, so an epoch has 4 steps and leaves 3 rows out."""

NUM_STEPS, BORDERS = 11, (4, 8)
"""The stream passes from one epoch of the corpus to the next between steps 3 and 4, 7 and 8."""

DTYPES = {
    "label_mask": torch.bool,
    "attention_mask": torch.float32,
    "instance_mask": torch.bool,
    "doc_lens": torch.int32,
}
KEYS = tuple(DTYPES)
FILTER = InstanceFilterConfig(
    repetition_max_period=3, repetition_min_period=1, repetition_max_count=4
)
TASKS = [
    TaskConfig("cmp", num_symbols=6, schedule=ScheduleConfig(rate=3)),
    # With it every row of the last step of an epoch and of the first of the next is injected.
    TaskConfig(
        "add",
        family="modular_addition",
        num_symbols=7,
        schedule=ScheduleConfig(kind="trace", steps=sorted([3, 4, 7, 8] * 9)),
    ),
]


def make_train(folder: Path, *keys: str, world_size: int = 1, **data: Any) -> TrainConfig:
    """Files with label masks; three rows in four repeat an n-gram, all through or at the start."""
    rng = np.random.default_rng(0)
    paths = []
    for number, num_rows in enumerate(FILES):
        tokens = rng.integers(2, V, size=num_rows * T + 5)  # a part of a row, which is ignored
        tokens[rng.random(len(tokens)) < 0.1] = EOS
        tokens[rng.random(len(tokens)) < 0.1] = PAD
        for row in range(num_rows):
            start = row * T
            if row % 4 == 1:
                tokens[start : start + T] = np.resize([8, 9], T)
            elif row % 4 == 2:  # what an example overwrites: a spliced row would pass the filter
                tokens[start : start + 5] = 7
        path = folder / f"part{number}.npy"
        tokens.astype(np.uint16).tofile(path)
        (rng.random(len(tokens)) < 0.7).tofile(f"{path}.mask")
        paths.append(str(path))
    if "label_mask" in keys:
        data["label_mask_paths"] = [f"{path}.mask" for path in paths]
    return TrainConfig(
        seed=SEED,
        model=ModelConfig(
            max_sequence_length=T,
            vocab_size=V,
            embedding_size=V,
            eos_token_id=EOS,
            pad_token_id=PAD,
        ),
        data=DataConfig(
            paths=paths,
            drop_last=True,
            generate_attention_mask="attention_mask" in keys,
            generate_doc_lengths="doc_lens" in keys,
            instance_filter=FILTER if "instance_mask" in keys else None,
            **data,
        ),
        global_train_batch_size=B,
        device_train_batch_size=B // world_size,
    )


def make_plan(*, offset: int = 0) -> InjectionPlan:
    return compile_plan(
        InjectionConfig(seed=3, offset=offset, tasks=TASKS),
        batch_size=B,
        seq_len=T,
        epoch_rows=48,
        vocab_size=V,
        eos_token_id=EOS,
        reserved_tokens=[PAD],
    )


def load(
    train: TrainConfig, plan: InjectionPlan, *, world_size: int = 1, start_step: int = 0
) -> list[DataLoader]:
    """The loaders of all ranks."""
    loaders = [
        build_train_dataloader(
            train,
            plan=plan,
            order=RowOrder(num_rows=sum(FILES), batch_size=B, seed=SEED),
            num_positions=NUM_STEPS * B,
            world_size=world_size,
            rank=rank,
            fs_local_rank=rank,
        )
        for rank in range(world_size)
    ]
    for loader in loaders:
        loader.dataset.start_index = start_step * B  # as the engine's trainer does on restoring
    return loaders


@dataclass
class Wanted:
    """What every step and slot must hold: arrays (S, B, T) or (S, B)."""

    tokens: NDArray[np.int64]
    label_mask: NDArray[np.bool_]
    attention_mask: NDArray[np.bool_]
    filtered: NDArray[np.bool_]
    """Stock's verdict on the text of the corpus."""

    injected: NDArray[np.bool_]
    row: NDArray[np.int64]


def stock_verdicts(train: TrainConfig) -> NDArray[np.bool_]:
    """Which rows of the corpus the engine's own filter masks, (R,)."""
    stock = MemMapDataset(*train.data.paths, chunk_size=T, instance_filter_config=FILTER)
    return np.array([not stock[row]["instance_mask"] for row in range(len(stock))])


def raw_rows(paths: list[str], dtype: Any) -> NDArray:
    """All whole rows of the files, (R, T)."""
    files = [np.memmap(path, dtype=dtype, mode="r") for path in paths]
    return np.concatenate([file[: len(file) // T * T].reshape(-1, T) for file in files])


def reconstruct(train: TrainConfig, plan: InjectionPlan) -> Wanted:
    paths, num_rows = train.data.paths or [], sum(FILES)
    shuffled = []
    for epoch in range(3):
        rows = np.arange(num_rows, dtype=np.uint32)
        np.random.Generator(np.random.PCG64(SEED + epoch)).shuffle(rows)
        shuffled.append(rows[: num_rows // B * B])
    row_SB = np.concatenate(shuffled)[: NUM_STEPS * B].reshape(NUM_STEPS, B).astype(np.int64)
    tokens_SBT = raw_rows(paths, np.uint16).astype(np.int64)[row_SB]
    filtered_SB = np.zeros_like(row_SB, dtype=bool)
    if train.data.instance_filter is not None:
        filtered_SB = stock_verdicts(train)[row_SB]
    label_mask_SBT = np.ones_like(tokens_SBT, dtype=bool)
    if train.data.label_mask_paths:
        label_mask_SBT = raw_rows(train.data.label_mask_paths, np.bool_)[row_SB]
    injected_SB = np.zeros_like(filtered_SB)
    for step in range(NUM_STEPS):
        rows = plan.at(step)
        for slot, task, example in zip(rows.slots, rows.tasks, rows.examples, strict=True):
            where = slice(plan.offset, plan.offset + 4)
            tokens_SBT[step, slot, where] = [*plan.tasks[task].tokens[example], EOS]
            label_mask_SBT[step, slot] &= not filtered_SB[step, slot]
            label_mask_SBT[step, slot, where] = True
            injected_SB[step, slot] = True
    attention_SBT = tokens_SBT != train.model.pad_token_id
    return Wanted(tokens_SBT, label_mask_SBT, attention_SBT, filtered_SB, injected_SB, row_SB)


def document_lengths(tokens_T: NDArray) -> list[int]:
    ends = sorted({*(np.flatnonzero(tokens_T == EOS) + 1).tolist(), T})
    return np.diff([0, *ends]).tolist()


def check(
    loaders: list[DataLoader], wanted: Wanted, *, keys: set[str], start_step: int = 0
) -> None:
    """Every key of every batch of every rank: rank r of W holds the slots r, r + W, ..."""
    world_size = len(loaders)
    for rank, loader in enumerate(loaders):
        batches = list(loader)
        assert len(batches) == NUM_STEPS - start_step
        for step, batch in enumerate(batches, start=start_step):
            expected = {
                "input_ids": wanted.tokens,
                "index": wanted.row,
                "label_mask": wanted.label_mask,
                "attention_mask": wanted.attention_mask,
                "instance_mask": wanted.injected | ~wanted.filtered,
            }
            at = (step, slice(rank, B, world_size))
            for key, values in expected.items():
                if key in keys:
                    np.testing.assert_array_equal(batch[key].numpy(), values[at], err_msg=key)
            if "doc_lens" in keys:
                lengths = [document_lengths(tokens) for tokens in wanted.tokens[at]]
                read = [row[row > 0].tolist() for row in batch["doc_lens"]]
                assert read == lengths
                assert batch["max_doc_lens"] == list(map(max, lengths))
            assert set(batch) - {"max_doc_lens"} == keys
            assert all(batch[key].dtype == DTYPES[key] for key in keys & set(DTYPES))


def batch_keys(*keys: str) -> set[str]:
    # Of a filtered row only the example is trained on: that takes a label mask in every row.
    return {"input_ids", "index", *keys} | ({"label_mask"} if "instance_mask" in keys else set())


# -- what is looked at -------------------------------------------------------------------------


def test_these_files_and_this_plan_have_every_case(tmp_path: Path) -> None:
    train, plan = make_train(tmp_path, *KEYS), make_plan()
    local = np.concatenate([np.arange(num_rows) for num_rows in FILES])
    verdicts = stock_verdicts(train)
    assert verdicts[np.isin(local % 4, (1, 2))].all(), "stock masks the rows that repeat"
    assert not verdicts[np.isin(local % 4, (0, 3))].any()
    wanted = reconstruct(train, plan)
    cases = set(zip(wanted.filtered.ravel(), wanted.injected.ravel(), strict=True))
    assert len(cases) == 4, "filtered or not, injected or not"
    for border in BORDERS:
        assert len(set(wanted.row[border - 4 : border].ravel())) == 48, "an epoch ends here"
        assert wanted.injected[border - 1 : border + 1].all(), "on both sides of the border"
    # An example laid over what repeats: the text would pass if it were judged after the splice.
    at_start = wanted.injected & (local[wanted.row] % 4 == 2)
    spliced = wanted.tokens[at_start].astype(np.uint16)
    assert len(spliced) > 5
    spliced.tofile(tmp_path / "spliced.npy")
    judged = MemMapDataset(tmp_path / "spliced.npy", chunk_size=T, instance_filter_config=FILTER)
    assert all(judged[row]["instance_mask"] for row in range(len(judged)))


# -- batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [PAD, EOS], ids=["pad", "pad-is-eos"])
@pytest.mark.parametrize("offset", [0, 5, T - 4])
@pytest.mark.parametrize("keys", [*((key,) for key in KEYS), KEYS], ids="-".join)
def test_every_key_is_that_of_the_spliced_text(
    tmp_path: Path, keys: tuple[str, ...], offset: int, pad: int
) -> None:
    train, plan = make_train(tmp_path, *keys, world_size=2), make_plan(offset=offset)
    train.model.pad_token_id = pad  # OLMo's own tokenizers pad with EOS
    wanted = reconstruct(train, plan)
    check(load(train, plan, world_size=2), wanted, keys=batch_keys(*keys))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_key_is_right_on_any_reader_over_several_epochs(
    tmp_path: Path, world_size: int, workers: int
) -> None:
    train = make_train(tmp_path, *KEYS, world_size=world_size, num_workers=workers)
    plan = make_plan()
    loaders = load(train, plan, world_size=world_size)
    check(loaders, reconstruct(train, plan), keys=batch_keys(*KEYS))


@pytest.mark.parametrize("window", [3 * B, PositionDataset.WINDOW])
@pytest.mark.parametrize("start_step", [0, 3, 4])
@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (1, 2), (2, 2)])
def test_persistent_workers_pass_every_epoch_border_each_time_they_are_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    world_size: int,
    workers: int,
    start_step: int,
    window: int,
) -> None:
    """Also after a restart on either side of a border; twice with the same living workers."""
    monkeypatch.setattr(PositionDataset, "WINDOW", window)
    data: dict[str, Any] = {"num_workers": workers, "persistent_workers": True}
    train = make_train(tmp_path, *KEYS, world_size=world_size, **data)
    plan = make_plan()
    wanted = reconstruct(train, plan)
    loaders = load(train, plan, world_size=world_size, start_step=start_step)
    assert all(loader.persistent_workers for loader in loaders)
    for _ in range(2):
        check(loaders, wanted, keys=batch_keys(*KEYS), start_step=start_step)


# -- loss --------------------------------------------------------------------------------------


def wanted_targets(wanted: Wanted, plan: InjectionPlan, keys: tuple[str, ...]) -> NDArray[np.bool_]:
    """Which tokens are trained on, (S, B, T), rule by rule."""
    example_T = np.isin(np.arange(T), range(plan.offset, plan.offset + 4))
    of_example = wanted.injected[..., None] & example_T
    # The corpus's own tokens: none of a filtered row, and those that the label masks leave.
    of_text = ~wanted.filtered[..., None] & wanted.label_mask & ~of_example
    targets = of_example | of_text
    if "attention_mask" in keys:
        targets &= wanted.attention_mask
    targets[..., 0] = False  # nothing stands before it to predict it from
    return targets


@pytest.mark.parametrize("pad", [PAD, EOS], ids=["pad", "pad-is-eos"])
@pytest.mark.parametrize("offset", [0, 5, T - 4])
@pytest.mark.parametrize(
    "keys",
    [("instance_mask",), ("instance_mask", "label_mask"), KEYS],
    ids="-".join,
)
def test_the_engines_loss_is_that_of_the_examples_and_of_what_the_masks_leave(
    tmp_path: Path, keys: tuple[str, ...], offset: int, pad: int
) -> None:
    train, plan = make_train(tmp_path, *keys), make_plan(offset=offset)
    train.model.pad_token_id = pad
    wanted = reconstruct(train, plan)
    targets_SBT = wanted_targets(wanted, plan, keys)
    num_trained = 0
    for step, batch in enumerate(load(train, plan)[0]):
        logits_BTV = torch.randn(B, T, V, requires_grad=True, dtype=torch.float64)
        trainer: Any = SimpleNamespace(
            dist_model=lambda logits=logits_BTV, **_: SimpleNamespace(logits=logits),
            loss_fn=cross_entropy_loss,
            get_labels=lambda batch: Trainer.get_labels(None, batch),  # type: ignore[arg-type]
        )
        loss, _, _ = Trainer.model_forward(trainer, batch, loss_reduction="sum")
        loss.backward()
        # A token's loss falls on the logits of the place before it; the last predict nothing.
        targets_BT = torch.from_numpy(targets_SBT[step])
        has_gradient_BT = logits_BTV.grad.abs().sum(dim=-1) > 0
        assert torch.equal(has_gradient_BT[:, :-1], targets_BT[:, 1:])
        assert not has_gradient_BT[:, -1].any()
        labels_BT = trainer.get_labels(batch)
        assert torch.equal(labels_BT != -100, targets_BT[:, 1:])
        tokens_BT = torch.from_numpy(wanted.tokens[step])
        log_p_BT = logits_BTV.detach().log_softmax(-1).gather(-1, tokens_BT.roll(-1, 1)[..., None])
        by_hand = -log_p_BT[:, :-1, 0][targets_BT[:, 1:]].sum()
        torch.testing.assert_close(loss.detach(), by_hand)
        injected_B = torch.from_numpy(wanted.injected[step])
        label_place = offset + 1  # of the third token among the labels, which begin one later
        num_trained += int((labels_BT[injected_B, label_place] != -100).sum())
    assert num_trained == sum(plan.instances(index, NUM_STEPS) for index in range(2)) == 69


def test_of_a_filtered_row_nothing_but_the_example_has_weight(tmp_path: Path) -> None:
    """Said once more without any rule: three targets in such a row, the example's second on."""
    train, plan = make_train(tmp_path, *KEYS), make_plan()
    wanted, num_rescued = reconstruct(train, plan), 0
    for step, batch in enumerate(load(train, plan)[0]):
        labels = Trainer.get_labels(None, batch).numpy()  # type: ignore[arg-type]
        for slot in np.flatnonzero(wanted.filtered[step]):
            example = wanted.tokens[step, slot, 1:4].tolist() if wanted.injected[step, slot] else []
            assert labels[slot].tolist() == [*example, *[-100] * (T - 1 - len(example))]
            num_rescued += bool(example)
    assert num_rescued > 20
