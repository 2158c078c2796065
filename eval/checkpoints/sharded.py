"""Model weights of stock OLMo's sharded (FSDP) checkpoints, without trusting a pickle in them.

    kind = checkpoint_kind("step1000")                       # "torch_new", "olmo_core", ...
    state = read_sharded("step1000", kind, shapes)           # name -> whole tensor

torch_new (`torch.distributed.checkpoint`) describes itself in a pickle, `.metadata`. It is read by
an unpickler that never looks a name up: the few classes it may name become inert records of their
arguments, anything else is refused. olmo_core's description is JSON, its tensors are safetensors.
The shapes come from the model's config, so that no file can ask for more memory than the model.

This project writes no sharded checkpoints (docs/engine.md); these are other people's runs.
"""

from __future__ import annotations

import io
import pickle
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from data_injection.errors import ConfigError
from data_injection.files import parse_json

Shapes = Mapping[str, tuple[int, ...]]

Place = slice | tuple[slice, ...]
"""Of a part in the flattened tensor, or in the tensor."""

Parts = Callable[[str, tuple[int, ...]], Iterator[tuple[Place, torch.Tensor]]]
"""From a tensor's name and shape to its stored parts, each with its place."""

MARKS = {
    "unsharded": ("model.pt", "config.yaml"),
    "core": ("model_and_optim/.metadata", "config.json"),
    "torch_new": ("model_and_optim/.metadata",),
    "olmo_core": ("model/metadata.json",),
    "torch_legacy": ("rank0.pt",),
    "local": ("model/rank0.pt",),
    "hf": ("config.json",),
}
"""What tells a checkpoint's kind: the files that it has. The names are those of the engine's
`sharded_checkpointer`; "core" is OLMo-core 2 and later (`eval.checkpoints.core`)."""

READABLE = ("unsharded", "torch_new", "olmo_core", "core", "hf")

UNSAFE = "it keeps its weights in pickled Python objects, and loading those runs what they name"
UNSHARD = "if you trust it, unshard it with scripts/unshard.py of AI2's OLMo and give the result"


def checkpoint_kind(path: Path) -> str | None:
    """The kind of checkpoint that a folder is, None if it is none. Nothing is read."""
    for kind, files in MARKS.items():
        if all((path / name).is_file() for name in files):
            return kind
    return None


def read_sharded(path: Path, kind: str, shapes: Shapes) -> dict[str, torch.Tensor]:
    """The whole tensors of a sharded checkpoint's model, as `shapes` says they must be.

    Raises:
        ConfigError: not readable safely, damaged, incomplete, or of another model.
    """
    if kind not in READABLE:
        rule = f"is a sharded checkpoint of the kind {kind!r}: {UNSAFE}"
        raise ConfigError(key=path, rule=rule, remedy=UNSHARD)
    state = {}
    try:
        parts = {"torch_new": _open_torch_new, "olmo_core": _open_olmo_core}[kind](path)
        for name, shape in shapes.items():
            tensor, seen = None, torch.zeros(shape, dtype=torch.bool)
            for place, part in parts(name, shape):
                if tensor is None:
                    tensor = torch.empty(shape, dtype=part.dtype)
                flat = isinstance(place, slice)
                (tensor.view(-1) if flat else tensor)[place] = part
                (seen.view(-1) if flat else seen)[place] = True
            if tensor is None or not bool(seen.all()):
                rule = f"has no shard with {int((~seen).sum())} of {seen.numel()} numbers of {name}"
                remedy = "a rank's file is missing or was cut off: use another checkpoint"
                raise ConfigError(key=path, rule=rule, remedy=remedy)
            state[name] = tensor
    except ConfigError:
        raise
    except Exception as error:  # whatever a file that is not what it should be leads to
        rule = f"cannot be read: {first_line(error)}"
        raise ConfigError(key=path, rule=rule, remedy=RESTORE) from error
    return state


RESTORE = "restore it or use another checkpoint"


def first_line(error: BaseException) -> str:
    """What an exception says, in one line, but torch's advice to let a file run its code."""
    said = str(error)
    if "weights_only" in said:
        found = re.search(r"GLOBAL (\S+)", said)
        said = "it holds more than tensors" + (f", it asks for {found[1]}" if found else "")
    return f"{type(error).__name__}: {(said.splitlines() or [''])[0][:300]}"


# -- torch_new -----------------------------------------------------------------------------------


class Inert:
    """Stands for an object of a pickle: keeps what it would have been made of, does nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


METADATA_CLASSES = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties"),
        *("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
        *("_MEM_FORMAT_ENCODING", "_MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT"),
    )
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("olmo_core.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"),
    ("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("pathlib._local", "PosixPath"),
    ("collections", "OrderedDict"),
}


class InertUnpickler(pickle.Unpickler):
    """Reads a pickle without looking anything up: a name gives a record or an error, never code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch", "Size"):
            return tuple
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) in METADATA_CLASSES:
            return Inert
        if (module, name) == ("builtins", "getattr"):
            return _member
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs")


def _member(owner: Any, name: Any) -> Inert:
    """Stands for getattr, by which Python 3.11.0 to 3.11.3 pickle an enum's member."""
    if owner is not Inert or not isinstance(name, str):
        raise pickle.UnpicklingError("it asks for an attribute, which no checkpoint needs")
    return Inert(name)


def _metadata(path: Path) -> Any:
    with (path / "model_and_optim" / ".metadata").open("rb") as file:
        return InertUnpickler(file).load()


def _open_torch_new(path: Path) -> Parts:
    metadata = _metadata(path)
    stored = defaultdict(list)
    for index, info in metadata.storage_data.items():
        stored[index.fqn].append((index, info))

    def parts(name: str, shape: tuple[int, ...]) -> Iterator[tuple[Place, torch.Tensor]]:
        key, what = f"model.{name}", f"{path}: {name}"
        described = metadata.state_dict_metadata.get(key)
        found = None if described is None else tuple(getattr(described, "size", ()))
        if found != shape:
            raise _other_shape(what, found, shape)
        for index, info in stored[key]:
            if transforms := getattr(info, "transform_descriptors", None):
                rule = f"is stored compressed ({transforms}), which is not read here"
                raise ConfigError(key=what, rule=rule, remedy="save it again without")
            part = _torch_tensor(path / "model_and_optim", info)
            yield _place(tuple(index.offset), tuple(part.shape), shape, what=what), part

    return parts


def _torch_tensor(folder: Path, info: Any) -> torch.Tensor:
    """The tensor that torch.save wrote at an offset of a .distcp file."""
    file_name = str(info.relative_path)
    if Path(file_name).name != file_name:
        rule = f"leads out of the checkpoint, to {file_name!r}"
        raise ConfigError(key=f"{folder}/.metadata", rule=rule)
    with (folder / file_name).open("rb") as file:
        file.seek(info.offset)
        data = file.read(info.length)
    if len(data) < info.length:
        raise ConfigError(key=folder / file_name, rule="ends too early", remedy=RESTORE)
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _place(
    offset: tuple[int, ...], size: tuple[int, ...], shape: tuple[int, ...], *, what: str
) -> tuple[slice, ...]:
    if len(offset) != len(shape) or len(size) != len(shape):
        rule = f"has a part of {size} at {offset}, of {shape}"
        raise ConfigError(key=what, rule=rule, remedy=RESTORE)
    place = tuple(slice(o, o + n) for o, n in zip(offset, size, strict=True))
    if any(s.start < 0 or s.stop > n for s, n in zip(place, shape, strict=True)):
        rule = f"has a part of {size} at {offset}, outside {shape}"
        raise ConfigError(key=what, rule=rule, remedy=RESTORE)
    return place


# -- olmo_core -----------------------------------------------------------------------------------


def _open_olmo_core(path: Path) -> Parts:
    from safetensors import safe_open

    folder = path / "model"
    tensors = parse_json((folder / "metadata.json").read_bytes())["tensors"]

    def parts(name: str, shape: tuple[int, ...]) -> Iterator[tuple[Place, torch.Tensor]]:
        described, what = tensors.get(name), f"{path}: {name}"
        found = None if described is None else tuple(described["shape"])
        if described is None or found != shape:
            raise _other_shape(what, found, shape)
        for file_name, spec in described["shard_spec_per_file"].items():
            if spec["flattened_offsets"] is None:
                rule = "is stored by blocks (a DTensor's), which is not read here"
                remedy = "unshard it with AI2's scripts/unshard.py and give the result"
                raise ConfigError(key=what, rule=rule, remedy=remedy)
            spans = [(start, stop) for start, stop in spec["flattened_offsets"] if stop > start]
            if not spans:
                continue
            if Path(file_name).name != file_name:
                raise ConfigError(key=what, rule=f"leads out of the checkpoint, to {file_name!r}")
            with safe_open(folder / file_name, framework="pt") as file:
                data = file.get_tensor(name)
            first = 0
            for start, stop in spans:
                yield slice(start, stop), data[first : first + stop - start]
                first += stop - start

    return parts


def _other_shape(what: str, found: Any, shape: tuple[int, ...]) -> ConfigError:
    rule = f"is {found or 'absent'}, but the model of its config.yaml has {shape}"
    return ConfigError(key=what, rule=rule, remedy="give the config.yaml that was saved with it")
