"""What the scan for the reference tasks costs, beside np.bincount over the same tokens.

    python benchmarks/reference.py runs/corpus

CPU seconds of one thread; each pair in turns, warm, the median over the pairs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from data_injection.corpus.manifest import corpus_paths, load_manifest
from data_injection.reference.scan import scan_reference
from data_injection.reference.vocabulary import TokenText

CHUNK = 2**20
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    folder = parser.parse_args().corpus
    manifest = load_manifest(folder)
    text = TokenText.from_file(folder / manifest.tokenizer)
    tokens = np.concatenate(
        [np.fromfile(path, dtype=manifest.dtype) for path in corpus_paths(folder, manifest)]
    )
    assert len(text.marks)  # made once for a tokenizer

    def scan() -> None:
        scan_reference([tokens], text, dtype=tokens.dtype, eos_token_id=manifest.eos_token_id)

    def bincount() -> None:
        for start in range(0, len(tokens), CHUNK):
            np.bincount(tokens[start : start + CHUNK], minlength=manifest.vocab_size)

    scan(), bincount()
    pairs = [(_seconds(scan), _seconds(bincount)) for _ in range(REPEATS)]
    speed = len(tokens) / median(s for s, _ in pairs) / 1e6
    ratio = median(s / b for s, b in pairs)
    print(f"{manifest.name}: {speed:.1f}M tokens/s, {ratio:.1f} times a bincount")


def _seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
