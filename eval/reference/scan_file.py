"""The statements of a corpus as a file beside it, so that it is scanned once for all its runs.

    scan = load_scan(path, corpus_hash=identity["corpus_hash"])      # None if it is not there
    save_scan(scan, path, corpus_hash=...)

One row a statement; the name is a digest of corpus, grammar and sample, so that a change of any of
them is another file. Written to a temporary name and renamed.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from data_injection.corpus.manifest import digest
from data_injection.reference.grammar import GRAMMAR, Statement
from data_injection.reference.scan import Place, ReferenceScan
from eval.text import write_table

FOLDER = "reference"


def list_name(corpus_hash: str, *, sample_tokens: int | None) -> str:
    """Name of the list, which is its identity."""
    return digest([GRAMMAR, corpus_hash, sample_tokens])[:16]


def save_scan(scan: ReferenceScan, path: Path) -> None:
    """Write a list; readable by anything that reads parquet."""
    rows = [
        {
            **{k: v for k, v in asdict(place).items() if k != "statement"},
            **{f"statement_{k}": v for k, v in asdict(place.statement).items()},
        }
        for place in scan.places
    ]
    counts = {"num_tokens": str(scan.num_tokens), "num_scanned": str(scan.num_scanned)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, pd.DataFrame(rows), metadata=counts)


def load_scan(path: Path) -> ReferenceScan | None:
    """The list that was written there, None if there is none."""
    import pyarrow.parquet as pq

    if not path.is_file():
        return None
    table = pq.read_table(path)
    places = []
    for row in table.to_pylist():
        said = {k.removeprefix("statement_"): v for k, v in row.items() if k.startswith("stat")}
        said["operands"] = tuple(said["operands"])
        place = {k: v for k, v in row.items() if not k.startswith("statement_")}
        places.append(Place(statement=Statement(**said), **place))
    counts = table.schema.metadata
    return ReferenceScan(
        num_tokens=int(counts[b"num_tokens"]),
        num_scanned=int(counts[b"num_scanned"]),
        places=tuple(places),
    )
