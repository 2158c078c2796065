"""Sharded checkpoints as stock ai2-olmo writes them under FSDP, and pickles that would run code."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from refusals import refuses
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from data_injection.tasks.comparison import Comparison
from eval.checkpoints.checkpoint import load_model
from eval.checkpoints.sharded import InertUnpickler, checkpoint_kind
from eval.scores.evaluate import Done, TaskSet, evaluate

KINDS = ("torch_new", "olmo_core")


class Bomb:
    """Touches a file when it is unpickled the plain way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model on two FSDP ranks in each of the engine's formats, and unsharded."""
    out = tmp_path_factory.mktemp("sharded") / "out"
    worker = Path(__file__).with_name("sharded_worker.py")
    done = warm.run(worker, out, *KINDS, "torch_legacy", ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture
def copies(stock: Path, tmp_path: Path) -> Path:
    shutil.copytree(stock, tmp_path / "out")
    return tmp_path / "out"


@torch.no_grad()
def logits(path: Path) -> torch.Tensor:
    return load_model(path)(torch.arange(2, 34).view(2, 16)).logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_checkpoint_is_the_unsharded_model(kind: str, stock: Path) -> None:
    assert checkpoint_kind(stock / kind) == kind
    expected = logits(stock / "unsharded")
    assert torch.equal(logits(stock / kind), expected)
    # The ranks' parts are unlike, so that a part in the wrong place would show.
    assert not torch.equal(expected[0], expected[1])
    assert len(expected.unique()) > 1000


def test_a_folder_of_stock_checkpoints_is_evaluated_but_for_what_cannot_be_read(
    stock: Path,
) -> None:
    task = Comparison("cmp", symbols=10 + np.arange(20), labels=np.array([240, 7, 99]), seed=0)
    done: dict[str, Done] = {}
    with refuses(key="CHECKPOINT", rule="1 of 4 checkpoints") as error:
        done.update((d.source.kind, d) for d in evaluate(stock, asked=TaskSet((task,), 250)))
    (problem,) = error.value.value
    assert str(stock / "torch_legacy") in problem
    assert "scripts/unshard.py" in problem
    expected = [row["value"] for row in done["unsharded"].rows]
    assert len(expected) > 30
    for kind in KINDS:
        assert [row["value"] for row in done[kind].rows] == expected
        assert {row["checkpoint"] for row in done[kind].rows} == {str(stock / kind)}
    rule = ("model.vocab_size 250", "a vocabulary of 256")
    with refuses(key=stock / "olmo_core", rule=rule, remedy="tokenizer"):
        list(evaluate(stock / "olmo_core", asked=TaskSet((task,), vocab_size=256)))


def test_what_cannot_be_read_without_trust_is_refused_by_name_with_the_remedy(
    stock: Path, tmp_path: Path
) -> None:
    local = tmp_path / "local"
    (local / "model").mkdir(parents=True)
    (local / "model" / "rank0.pt").touch()
    for path, kind in ((stock / "torch_legacy", "torch_legacy"), (local, "local")):
        with refuses(key=path, rule=f"kind '{kind}'", remedy="scripts/unshard.py"):
            load_model(path)


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("torch_new", "model_and_optim/__1_0.distcp"),
        ("olmo_core", "model/rank_1.safetensors"),
        ("torch_new", "model_and_optim/.metadata"),
        ("olmo_core", "model/metadata.json"),
    ],
)
@pytest.mark.parametrize("damage", ["cut off", "gone"])
def test_a_damaged_shard_is_named_and_the_way_out(
    damage: str, kind: str, file: str, copies: Path
) -> None:
    path = copies / kind / file
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:2000])  # the model comes first
    if damage == "gone" and "meta" in file:  # then it is no such checkpoint
        with pytest.raises(FileNotFoundError, match="torch_new or olmo_core"):
            load_model(copies / kind)
        return
    # A shard of torch's says itself that it ends too early; else the whole checkpoint is named.
    named = path if (damage, path.suffix) == ("cut off", ".distcp") else copies / kind
    with refuses(key=named, remedy=("restore it", "another checkpoint")):
        load_model(copies / kind)


def test_a_part_that_no_rank_wrote_is_missed(copies: Path) -> None:
    path = copies / "olmo_core" / "model" / "metadata.json"
    described = json.loads(path.read_text())
    del described["tensors"]["transformer.ln_f.weight"]["shard_spec_per_file"]["rank_1.safetensors"]
    path.write_text(json.dumps(described))
    rule = "no shard with 12 of 24 numbers of transformer.ln_f.weight"
    with refuses(key=copies / "olmo_core", rule=rule, remedy="another checkpoint"):
        load_model(copies / "olmo_core")


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_of_another_model_is_refused(kind: str, copies: Path) -> None:
    config = copies / kind / "config.yaml"
    config.write_text(config.read_text().replace("d_model: 24", "d_model: 48"))
    key = f"{copies / kind}: transformer.wte.weight"
    with refuses(key=key, rule=("is (256, 24)", "has (256, 48)"), remedy="config.yaml"):
        load_model(copies / kind)


def test_a_bomb_in_metadata_does_not_run(copies: Path, tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", copies / "torch_new" / "model_and_optim" / ".metadata"
    path.write_bytes(pickle.dumps(Bomb(ran)))
    with refuses(key=copies / "torch_new", rule="asks for posix.system, which no checkpoint needs"):
        load_model(copies / "torch_new")
    assert not ran.exists()
    pickle.loads(path.read_bytes())  # the payload works
    assert ran.exists()


def test_a_bomb_in_a_shard_does_not_run(copies: Path, tmp_path: Path) -> None:
    folder, ran = copies / "torch_new" / "model_and_optim", tmp_path / "ran"
    metadata = pickle.loads((folder / ".metadata").read_bytes())  # this test wrote it
    buffer = io.BytesIO()
    torch.save(Bomb(ran), buffer)
    for index, info in metadata.storage_data.items():
        if index.fqn == "model.transformer.ln_f.weight":
            info.relative_path, info.offset, info.length = "bomb.distcp", 0, len(buffer.getvalue())
    (folder / "bomb.distcp").write_bytes(buffer.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with refuses(key=copies / "torch_new", rule="UnpicklingError"):
        load_model(copies / "torch_new")
    assert not ran.exists()
    torch.load(folder / "bomb.distcp", weights_only=False)
    assert ran.exists()


def test_a_bomb_in_model_pt_does_not_run(copies: Path, tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", copies / "unsharded" / "model.pt"
    torch.save({"transformer.wte.weight": Bomb(ran)}, path)
    with refuses(key=path, rule=("as tensors alone", "not run")):
        load_model(copies / "unsharded")
    assert not ran.exists()
    torch.load(path, weights_only=False)
    assert ran.exists()


def test_metadata_cannot_lead_out_of_the_checkpoint(copies: Path) -> None:
    folder = copies / "torch_new" / "model_and_optim"
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = "../../secret"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with refuses(key=folder / ".metadata", rule="out of the checkpoint, to '../../secret'"):
        load_model(copies / "torch_new")


@pytest.mark.parametrize(
    "name",
    [
        *("builtins.eval", "builtins.setattr", "os.system", "torch.load", "torch.hub.load"),
        *("torch.distributed.checkpoint.metadata.os", "torch.serialization.load"),
    ],
)
def test_no_name_but_those_of_metadata_is_ever_given_out(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    with pytest.raises(pickle.UnpicklingError, match="asks for"):
        InertUnpickler(io.BytesIO()).find_class(module, attribute)


class _Attribute:
    """Pickled as getattr(owner, name)."""

    def __init__(self, owner: object, name: str) -> None:
        self.arguments = owner, name

    def __reduce__(self) -> tuple:
        return getattr, self.arguments


def test_an_enums_member_pickled_by_getattr_is_read_and_no_other_attribute() -> None:
    """Python 3.11.0 to 3.11.3 write members so; others have the value."""
    member = _Attribute(_MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT")
    assert InertUnpickler(io.BytesIO(pickle.dumps(member))).load().args == (
        "TORCH_CONTIGUOUS_FORMAT",
    )
    for owner, name in (
        (torch.Size, "count"),
        (OrderedDict, "fromkeys"),
        (torch.float32, "is_complex"),
    ):
        with pytest.raises(pickle.UnpicklingError, match="asks for an attribute"):
            InertUnpickler(io.BytesIO(pickle.dumps(_Attribute(owner, name)))).load()
