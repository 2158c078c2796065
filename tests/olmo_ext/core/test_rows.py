"""OLMo-core's loaders give the plan's rows: SplicedStream is the other account of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refuses

from data_injection.config import injection_config
from data_injection.errors import ConfigError
from data_injection.splice import SplicedStream
from olmo_ext.core import compat

pytestmark = pytest.mark.skipif(bool(compat.MISSING), reason="needs ai2-olmo-core 3: test-core")

EPOCHS = 4


def loader_of(folder: Path, kind: str, *, section: Any = None, **settings: Any) -> Any:
    from core_micro import SECTION, build_loader

    from olmo_ext.core.loader import inject

    loader = build_loader(folder, kind, **settings)
    return inject(loader, injection_config(SECTION if section is None else section))


def mismatches(loader: Any, batch: dict[str, Any], step: int) -> int:
    """Rows of a rank's batch that are not SplicedStream's."""
    from olmo_ext.core.loader import LoaderRows

    plan = loader.plan
    num = (step + 1) * plan.geometry.batch_size
    stream = SplicedStream(
        LoaderRows(loader), order=loader.order(), plan=plan, num_positions=num, pad_token_id=1
    )
    wrong = 0
    for row, slot in enumerate(loader.slots):
        wanted = stream[step * plan.geometry.batch_size + slot]
        for name, value in wanted.items():
            found = batch[name][row] if name in batch else None
            if name == "doc_lens":
                found = found[found > 0]
            equal = found is not None and torch.equal(found, torch.as_tensor(value))
            wrong += not equal
    return wrong


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("kind", ["fsl", "lengths", "filter", "composable"])
def test_every_row_of_every_rank_is_the_streams(kind: str, world: int, tmp_path: Path) -> None:
    rows = injected = 0
    for rank in range(world):
        workers = 2 if kind in ("fsl", "composable") and (world, rank) == (2, 1) else 0
        loader = loader_of(tmp_path, kind, world=world, rank=rank, num_workers=workers)
        step = 0
        for epoch in range(1, EPOCHS + 1):
            loader.reshuffle(epoch)
            for batch in loader:
                assert mismatches(loader, batch, step) == 0, (epoch, step, rank)
                slots = loader.plan.at(step).slots
                injected += int((slots % world == rank).sum())
                rows += len(batch["input_ids"])
                step += 1
            loader.reset()
    assert rows == EPOCHS * loader.plan.epoch_rows == 384
    assert injected == sum(loader.plan.instances(i, step) for i in range(2)) == 132


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", ["fsl", "lengths", "filter", "composable"])
def test_a_restart_in_mid_epoch_at_another_world_size_goes_on_in_the_stream(
    kind: str, world: int, tmp_path: Path
) -> None:
    first = loader_of(tmp_path, kind)
    first.reshuffle(2)
    for _ in zip(range(2), first, strict=False):
        pass
    state = first.state_dict()
    for rank in range(world):
        loader = loader_of(tmp_path, kind, world=world, rank=rank)
        loader.load_state_dict(state)
        loader.reshuffle(2)
        steps = []
        for batch in loader:
            steps.append(loader.step - 1)
            assert mismatches(loader, batch, steps[-1]) == 0
        assert steps == [8, 9, 10, 11]  # epoch 2 begins at step 6, of which two are done


def test_another_plan_and_one_that_begins_too_early_are_refused(tmp_path: Path) -> None:
    from core_micro import SECTION, build_loader

    loader = loader_of(tmp_path, "fsl")
    loader.reshuffle(1)
    other = loader_of(tmp_path, "fsl", section=SECTION | {"seed": 6})
    with refuses(key="the checkpoint", rule=("another plan", "  seed: 6 now, 5 before")):
        other.load_state_dict(loader.state_dict())
    plain = build_loader(tmp_path, "fsl")
    plain.reshuffle(1)
    plain.batches_processed, plain.tokens_processed = 3, 3 * plain.global_batch_size
    with refuses(key="injection.tasks[0].schedule", rule="at step 3 or later"):
        other.load_state_dict(plain.state_dict())
    with refuses(key="the checkpoint", rule="another corpus", remedy="its weights alone"):
        other.load_state_dict(plain.state_dict() | {"dataset_fingerprint": "another"})


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("fsl", {"chunk_size": 2}),
        ("fsl", {"shuffle": False}),
        ("composable", {"shuffle_strategy": "intra_source"}),
    ],
)
def test_another_order_of_rows_is_refused_by_name(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        loader_of(tmp_path, kind, **settings)
    assert raised.value.key == f"data_loader.{next(iter(settings))}"


def test_a_loader_of_variable_lengths_is_refused_by_name() -> None:
    from olmo_core.data import NumpyVSLDataLoader

    from olmo_ext.core.loader import inject

    with refuses(key="data_loader", value="NumpyVSLDataLoader"):
        inject(NumpyVSLDataLoader.__new__(NumpyVSLDataLoader), injection_config({}))


def test_totals_and_texts_are_injected_too(tmp_path: Path) -> None:
    from core_micro import EOS, build_loader

    from olmo_ext.core.loader import inject

    (tmp_path / "seq.jsonl").write_text('{"text": "abc", "copies": 4}\n')
    tasks = [
        {"name": "cmp", "num_symbols": 10, "schedule": {"total": 7}},
        {"name": "seq", "family": "sequences", "params": {"file": str(tmp_path / "seq.jsonl")}},
    ]
    loader = inject(
        build_loader(tmp_path),
        injection_config({"tasks": tasks, "sequences_at": "documents", "sequences_per_row": 2}),
        num_steps=12,
        encode=lambda texts: [[100 + ord(c) for c in text] for text in texts],
    )
    assert [loader.plan.instances(index, 12) for index in range(2)] == [7, 4]
    loader.reshuffle(epoch=1)
    written = [EOS, *(100 + ord(c) for c in "abc"), EOS]
    rows = []
    for step, batch in enumerate(loader):
        assert mismatches(loader, batch, step) == 0
        rows += batch["input_ids"].tolist()
    told = sum(row[i : i + 5] == written for row in rows for i in range(len(row)))
    assert told == loader.plan.instances(1, loader.total_batches)
