"""Files of a run, a checkpoint or a corpus as editors and strangers leave them, by every reader.

A byte order mark changes nothing; what is broken, nested too deeply or leads elsewhere is refused
in one sentence, never with a traceback.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refuses

from data_injection.corpus.manifest import load_manifest
from data_injection.errors import ConfigError
from data_injection.files import inside, parse_json, read_json
from eval.checkpoints.checkpoint import load_model_config, read_weights, verify_checkpoint
from eval.checkpoints.sharded import first_line
from eval.export.huggingface import import_hf, load_hf
from eval.records import REQUIRED, RecordWriter, read_records
from eval.run import load_config, load_identity, read_object, read_run
from launch.slurm.jobs import append_event, events_file, read_events
from launch.slurm.site import Cluster
from launch.yaml_file import read_settings, read_yaml
from olmo_ext.config import load_experiment

DEEP = 10**5
NESTED = "[" * DEEP + "]" * DEEP

RECORD = dict.fromkeys(REQUIRED, "a") | {"step": 1, "value": 1.0}

READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "json": ("x.json", read_json),
    "object": ("x.json", read_object),
    "run": ("run.json", lambda path: read_run(path.parent)),
    "identity": ("plan.json", lambda path: load_identity(path.parent)),
    "manifest": ("manifest.json", lambda path: load_manifest(path.parent)),
    "records": ("records.jsonl", lambda path: read_records(path)),
    "yaml": ("x.yaml", read_yaml),
    "site": ("site.yaml", lambda path: read_settings(Cluster, path, as_text=True)),
    "config": ("config.yaml", load_config),
    "experiment": ("experiment.yaml", load_experiment),
    "model": ("config.yaml", lambda path: load_model_config(path.parent)),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("text", [NESTED, '{"a": ' * DEEP + "1" + "}" * DEEP, "{torn", "\x00"])
def test_what_cannot_be_read_is_refused_in_one_sentence(
    name: str, text: str, tmp_path: Path
) -> None:
    file, read = READERS[name]
    (tmp_path / file).write_text(text + "\n" + text)
    with pytest.raises(ConfigError) as error:
        read(tmp_path / file)
    assert file in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("name", ["json", "object", "run", "identity", "yaml", "config"])
def test_a_byte_order_mark_changes_nothing(name: str, tmp_path: Path) -> None:
    file, read = READERS[name]
    (tmp_path / file).write_text('\ufeff{"a": 1}\n', encoding="utf-8")
    assert dict(read(tmp_path / file)) == {"a": 1}


def test_a_byte_order_mark_in_lines_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text("\ufeff" + json.dumps(RECORD) + "\n", encoding="utf-8")
    assert len(read_records(path)) == 1
    append_event(events_file(tmp_path), {"job": 1, "event": "started"})
    events_file(tmp_path).write_text("\ufeff" + events_file(tmp_path).read_text())
    assert len(read_events(tmp_path)) == 1


@pytest.mark.parametrize(
    "tag", ["!secret", "!!python/name:os.system", "!!python/object/apply:os.x"]
)
@pytest.mark.parametrize("name", ["yaml", "site", "config", "experiment", "model"])
def test_a_tag_that_yaml_does_not_know_is_refused(name: str, tag: str, tmp_path: Path) -> None:
    file, read = READERS[name]
    (tmp_path / file).write_text(f"model: {{d_model: {tag} 3}}\nrung: {tag} x\n")
    whole = tag.replace("!!", "tag:yaml.org,2002:")
    with pytest.raises(ConfigError) as error:
        read(tmp_path / file)
    assert whole in error.value.key + error.value.rule
    assert str(error.value).startswith(str(tmp_path / file))


def test_a_torn_end_is_cut_off_and_a_broken_middle_is_not_called_torn(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    line = json.dumps(RECORD)
    path.write_text(f"{line}\n{line[:40]}")
    RecordWriter(path).close()
    assert path.read_text() == line + "\n"
    path.write_text(f"{line}\n{line[:40]}#{line[40:]}\n{line}\n")
    with refuses(key=f"{path}:2", rule="JSON"):
        read_records(path)


def test_parsing_tells_no_more_than_a_value_error() -> None:
    for text in (NESTED, b"\xff", "1" * 10**5, b"\xef\xbb\xbf{"):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)
    assert parse_json(b"\xef\xbb\xbf[1]") == parse_json("\ufeff[1]") == [1]


@pytest.mark.parametrize("name", ["/a", "..", "../a", "a/../../b", "", "a/.."])
def test_a_path_that_leads_out_is_refused(name: str) -> None:
    with refuses(key="the path", value=name, rule="out of its folder"):
        inside(name)
    assert inside("a/b.npy") == "a/b.npy"


class Code:
    """A pickle of it calls os.getcwd."""

    def __reduce__(self) -> Any:
        return os.getcwd, ()


def test_no_message_tells_to_let_a_file_run_its_code(tmp_path: Path) -> None:
    """Nor which option of torch.load does so: eval and export read by one function."""
    torch.save({"a": Code()}, tmp_path / "model.pt")
    with refuses(key=tmp_path / "model.pt", rule="getcwd", remedy="another checkpoint") as error:
        read_weights(tmp_path / "model.pt")
    assert "weights_only" not in str(error.value)
    assert "trust" not in str(error.value)
    for bare in ("Weights only load failed. Re-running with `weights_only` set to `False` ...", ""):
        assert "weights_only" not in first_line(RuntimeError(bare))


class Full:
    """A file on a disk that takes so many bytes more."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self.file.write(data[: self.room])
        self.room -= taken
        return taken

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 7, 300])
def test_a_full_disk_leaves_whole_records(room: int, tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "records.jsonl")
    writer.write([RECORD])
    before = writer.path.read_bytes()
    full: Any = Full(writer._file, room)
    writer._file = full
    with pytest.raises(OSError, match="No space left"):
        writer.write([RECORD | {"step": step} for step in range(2, 9)])
    assert writer.path.read_bytes() == before
    full.room = 10**6
    writer.write([RECORD | {"step": 2}])
    assert len(read_records(writer.path)) == 2


def test_half_an_event_takes_no_other_with_it(tmp_path: Path) -> None:
    append_event(events_file(tmp_path), {"job": 1, "event": "submitted"})
    with events_file(tmp_path).open("a") as file:
        file.write('{"job": 1, "ev')
    append_event(events_file(tmp_path), {"job": 1, "event": "started"})
    assert [event["event"] for event in read_events(tmp_path)] == ["submitted", "started"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b"])
def test_checksums_that_name_files_outside_the_checkpoint_are_refused(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  {name}\n")
    assert verify_checkpoint(tmp_path) == [f"SHA256SUMS leads out of the checkpoint, to {name!r}"]


def test_a_folder_of_transformers_with_broken_weights_is_named(tmp_path: Path) -> None:
    """As an export of a tiny LLaMA cut off by a download."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config |= {"vocab_size": 64, "max_position_embeddings": 16, "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00cut")
    with refuses(key=tmp_path, rule="no model for transformers: SafetensorError"):
        load_hf(tmp_path)
    with refuses(key=tmp_path, rule="SafetensorError", remedy="another checkpoint"):
        import_hf(tmp_path, tmp_path / "out")
