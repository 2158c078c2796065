"""A checkpoint as a folder that stock transformers loads, tasks and model card in it; and back.

    export_hf("runs/w32", "exported")          # LlamaForCausalLM, no remote code
    import_hf("exported", "olmo")              # a checkpoint again, bit for bit
    last_logits = load_hf("exported")          # for eval.scores.accuracy.score_task

Folders are written under a temporary name and renamed. Nothing that is read can run: weights_only
on one side, safetensors on the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from data_injection.corpus.encoder import parse_tokenizer, tokenizer_path
from data_injection.errors import ConfigError, DivergedError
from data_injection.files import check_folder, replaced
from eval.checkpoints.checkpoint import (
    IDENTITY_FILE,
    check_whole,
    read_identity,
    read_weights,
    write_checksums,
)
from eval.checkpoints.sharded import RESTORE, first_line
from eval.export.harness import (
    FOLDER,
    IDS_TOKENIZER,
    write_harness,
    write_ids_tokenizer,
    write_tokenizer_config,
)
from eval.export.llama import (
    check_llama_shaped,
    llama_config,
    llama_weights,
    olmo_config,
    olmo_weights,
)
from eval.export.model_card import model_card
from eval.export.provenance import Provenance, find_provenance, find_tokenizer
from eval.export.task_tables import FILE_NAME, task_tables
from eval.run import read_object

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    num_params: int
    provenance: Provenance


def export_hf(
    source: str | Path,
    out: str | Path,
    *,
    step: int | None = None,
    tokenizer: str | None = None,
    no_tokenizer: bool = False,
    dtype: str = "fp32",
    despite_divergence: bool = False,
) -> Exported:
    """Write a checkpoint, or a run's, as a folder of transformers' LlamaForCausalLM.

    Args:
        source: a checkpoint, or a run: its latest complete checkpoint, or `step`'s.
        out: the folder to make.
        tokenizer: tokenizer.json or short name; default is the one the run's corpus was made with.
        no_tokenizer: write no tokenizer of text; that of token ids is written all the same.
        dtype: "fp32" keeps every number; "bf16" rounds them.
        despite_divergence: write it although its numbers, or its scores, are not finite.

    Raises:
        ConfigError: not LLaMA-shaped, or cannot be read or written as asked; nothing is left.
        FileNotFoundError: no checkpoint there.
    """
    if dtype not in DTYPES:
        rule = f"must be one of {', '.join(DTYPES)}"
        raise ConfigError(key="--dtype", value=dtype, rule=rule)
    if tokenizer is not None and no_tokenizer:
        rule = "exclude each other"
        raise ConfigError(key="--tokenizer and --no-tokenizer", rule=rule, remedy="leave one out")
    provenance = find_provenance(source, step=step)
    model = provenance.model
    check_llama_shaped(model)
    text_tokenizer = None
    if not no_tokenizer:
        text_tokenizer = tokenizer_path(tokenizer) if tokenizer else find_tokenizer(provenance)
    config = llama_config(model)
    eos, pad, rows = model["eos_token_id"], model["pad_token_id"], config["vocab_size"]
    with _new_folder(Path(out)) as folder:
        if text_tokenizer is not None:
            _write_tokenizer(folder, text_tokenizer, model, rows)
        state = _read_whole(provenance.path)
        if not despite_divergence:
            check_finite(provenance, state)
        num_params = _write_weights(folder, provenance, state, dtype)
        _write_json(folder / "config.json", config | {"dtype": str(DTYPES[dtype])[6:]})
        ends = {"eos_token_id": eos, "pad_token_id": pad}
        known = {key: token for key, token in ends.items() if token < rows}
        _write_json(folder / "generation_config.json", known | {"do_sample": False})
        write_ids_tokenizer(folder / IDS_TOKENIZER, vocab_size=rows, eos=eos, pad=pad)
        if provenance.plan is not None and provenance.plan.labelled:
            (folder / FILE_NAME).write_text(task_tables(provenance.plan))
            write_harness(folder / FOLDER, provenance.plan)
        _write_json(
            folder / IDENTITY_FILE,
            provenance.summary() | {"dtype": dtype, "model": model, "stream": provenance.identity},
        )
        card = model_card(
            provenance, num_params=num_params, dtype=dtype, tokenizer=text_tokenizer is not None
        )
        (folder / "README.md").write_text(card)
    return Exported(Path(out), num_params, provenance)


def import_hf(source: str | Path, out: str | Path) -> Path:
    """Write a LLaMA's folder as an unsharded OLMo checkpoint: config.yaml and model.pt, fp32.

    One of ours gives back the ModelConfig it was exported from, unless its config.json has become
    another since. It can be evaluated; training cannot go on from it, for want of the optimizer.

    Raises:
        ConfigError: OLMo cannot compute this LLaMA, or its files do not fit each other.
        FileNotFoundError: no config.json or safetensors there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    source = Path(source)
    files = sorted(source.glob("*.safetensors"))
    if not (source / "config.json").is_file() or not files:
        raise FileNotFoundError(
            f"{source} must hold config.json and *.safetensors, as save_pretrained writes them"
        )
    model = olmo_config(read_object(source / "config.json"), read_identity(source).get("model"))
    try:
        tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        rule = f"cannot be read: {first_line(error)}"
        raise ConfigError(key=source, rule=rule, remedy=RESTORE) from error
    if model["weight_tying"]:  # some writers repeat it
        head = tensors.pop("lm_head.weight", None)
        if head is not None and not torch.equal(head, tensors["model.embed_tokens.weight"]):
            rule = "is true, but lm_head is not the embedding"
            remedy = "set it to false in config.json"
            raise ConfigError(key=f"{source}: tie_word_embeddings", rule=rule, remedy=remedy)
    state = olmo_weights(model, tensors)
    with _new_folder(Path(out)) as folder:
        (folder / "config.yaml").write_text(yaml.safe_dump({"model": model}, sort_keys=False))
        torch.save({name: tensor.float() for name, tensor in state.items()}, folder / "model.pt")
        write_checksums(folder)
    return Path(out)


def load_hf(path: str | Path, *, device: str = "cpu") -> Callable[[torch.Tensor], torch.Tensor]:
    """The model of a transformers folder for `eval.scores.accuracy`, fp32; all code is theirs.

    Raises FileNotFoundError if there is no config.json.
    """
    from transformers import AutoModelForCausalLM

    if not (Path(path) / "config.json").is_file():
        raise FileNotFoundError(
            f"{path} holds no config.json; `olmo-ext export` writes such folders"
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # theirs and safetensors' own, of many kinds
        rule = f"is no model for transformers: {first_line(error)}"
        raise ConfigError(key=path, rule=rule) from error
    model.to(device).eval()

    def last_logits(ids_BT: torch.Tensor) -> torch.Tensor:
        return model(ids_BT.to(device), logits_to_keep=1, use_cache=False).logits[:, -1]

    return last_logits


def check_finite(provenance: Provenance, state: dict[str, torch.Tensor]) -> None:
    """Raise DivergedError for a checkpoint with a weight or, in its run's records, a score that is
    not a number."""
    bad = [name for name, part in state.items() if not bool(part.isfinite().all())]
    bad += [str(row["task"]) for row in provenance.scores if row.get("diverged") is True]
    if bad:
        rule = f"has diverged ({bad[0]} is not finite)"
        remedy = "export an earlier one with --step, or pass --despite-divergence"
        raise DivergedError(key=provenance.path, rule=rule, remedy=remedy)


def _read_whole(path: Path) -> dict[str, torch.Tensor]:
    check_whole(path, "model.pt")
    return read_weights(path / "model.pt")


def _write_weights(
    folder: Path, provenance: Provenance, state: dict[str, torch.Tensor], dtype: str
) -> int:
    """model.safetensors; returns the number of parameters."""
    from safetensors.torch import save_file

    tensors = {
        name: tensor.to(DTYPES[dtype]).contiguous()
        for name, tensor in llama_weights(provenance.model, state).items()
    }
    file = folder / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(folder.stat().st_mode & 0o666)  # as any other file: save_file's is its owner's alone
    return sum(tensor.numel() for tensor in tensors.values())


def _write_tokenizer(folder: Path, path: Path, model: dict[str, Any], rows: int) -> None:
    """The run's tokenizer.json, byte for byte, and what transformers wants to know of it."""
    data = path.read_bytes()
    tokenizer = parse_tokenizer(data, where=str(path))
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    if size > rows:
        rule = f"has ids up to {size - 1} but the model's embedding {rows} rows"
        remedy = "pass --tokenizer with the one it was trained on, or --no-tokenizer"
        raise ConfigError(key=path, rule=rule, remedy=remedy)
    (folder / "tokenizer.json").write_bytes(data)
    special = {"eos_token": model["eos_token_id"], "pad_token": model["pad_token_id"]}
    names = {key: tokenizer.id_to_token(token) for key, token in special.items()}
    known = {key: name for key, name in names.items() if name is not None}
    write_tokenizer_config(folder, known, model_max_length=model["max_sequence_length"])


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill; ConfigError if `out` is there and not empty. A link is followed."""
    out = out.resolve() if out.is_symlink() else out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        rule = "is there already and not empty"
        raise ConfigError(key="--out", value=out, rule=rule, remedy="choose another folder")
    check_folder(out.parent, "--out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replaced(out) as temporary:
        temporary.mkdir()
        yield temporary
