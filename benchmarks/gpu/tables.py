"""RESULTS.md's tables of GPUs, made again from what the driver and `olmo-ext bench` brought back.

    python benchmarks/gpu/tables.py                         # from docs/findings/gpu/*.jsonl
    python benchmarks/gpu/tables.py OUT/results.jsonl       # take a session's results in, then so
    python benchmarks/gpu/tables.py bench.json              # or those of `olmo-ext bench --json`

After a session that and a commit are all. Results are kept as docs/findings/gpu/CARD-DATE.jsonl.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_injection.files import replace_file
from eval.text import markdown_table

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "docs" / "findings" / "gpu"
DOCUMENT = ROOT / "benchmarks" / "RESULTS.md"
MARK = re.compile(r"(<!-- gpu: (\w+) -->)\n.*?(<!-- end -->)", re.DOTALL)
NONE = "Not yet measured."

Row = dict[str, Any]


def read_results(path: Path) -> Iterator[Row]:
    """Lines of results.jsonl, or rows of bench.json as such lines, each with its card and date.

    Raises ValueError for a file that holds neither, or of no card: a rehearsal's.
    """
    text = path.read_text()
    if path.suffix == ".json":
        rows = [{"stage": "speed", "rung": row["model"]} | row for row in json.loads(text)]
    else:
        rows = [json.loads(line) for line in text.splitlines()]
    card = next(filter(None, (row.get("gpu", row.get("card")) for row in rows)), "")
    if not card:
        raise ValueError(f"{path} tells of no card: a rehearsal, or the env stage was left out")
    seconds = next((row["t"] for row in rows if "t" in row), path.stat().st_mtime)
    told = {"card": card, "day": time.strftime("%Y-%m-%d", time.gmtime(seconds))}
    told |= next(({"commit": row["commit"]} for row in rows if row.get("commit")), {"commit": ""})
    for row in rows:
        yield told | row


def take_in(path: Path, kept: Path = KEPT) -> Path:
    """Keep a session's results under their card and day, paths of its machine cut off."""
    rows = list(read_results(path))
    card = re.sub(r"\W+", "-", rows[0]["card"].lower().removeprefix("nvidia "))
    target = kept / f"{card}-{rows[0]['day']}.jsonl"
    lines = map(json.dumps, rows)
    text = "".join(re.sub(r"/[\w.-]+(/[\w.-]+){2,}/", "", line) + "\n" for line in lines)
    replace_file(target, text)
    return target


def speed(rows: Iterable[Row]) -> str:
    """Stock's steps and ours in turns, a line a rung and session."""
    head = ["rung", "rows, micro-batch", "tokens/s", "stock's", "ours / stock", "MFU", "GB of both"]
    lines = [
        [
            row["rung"],
            f"{row['rows']}, {row.get('micro', row.get('micro_batch'))}",
            f"{row['ours_tok_s']:,.0f}",
            f"{row['stock_tok_s']:,.0f}",
            f"{row['ratio']:.3f}",
            f"{row['ours_mfu']:.1%}",
            f"{row['peak_gb_both']:.1f}",
            where(row),
        ]
        for row in rows
        if row["stage"] == "speed" and "ratio" in row
    ]
    return markdown_table([*head, "measured on"], lines) if lines else NONE


def variants(rows: Iterable[Row]) -> str:
    """What makes a rung faster: a line a variant, beside eager's of its session."""
    told = [row for row in rows if row["stage"] == "variants" and "tok_s" in row]
    eager = {(r["card"], r["day"], r["rung"]): r["tok_s"] for r in told if r["variant"] == "eager"}
    head = ["rung", "variant", "tokens/s", "against eager", "MFU", "peak GB", "loss difference"]
    lines = []
    for row in told:
        plain = eager.get((row["card"], row["day"], row["rung"]))
        times = f"{row['tok_s'] / plain:.2f}" if plain else "-"
        numbers = [f"{row['tok_s']:,.0f}", times, f"{row['mfu']:.1%}", f"{row['peak_gb']:.1f}"]
        lines.append([row["rung"], row["variant"], *numbers, f"{row['loss_diff']:.0e}", where(row)])
    return markdown_table([*head, "measured on"], lines) if lines else NONE


def where(row: Row) -> str:
    return ", ".join(filter(None, (row["card"].removeprefix("NVIDIA "), row["day"], row["commit"])))


TABLES = {"speed": speed, "variants": variants}


def filled(text: str, rows: list[Row]) -> str:
    """A document with each marked table made from the rows."""
    return MARK.sub(lambda m: f"{m[1]}\n{TABLES[m[2]](rows)}\n{m[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="*", help="of a session, to keep")
    for path in parser.parse_args().results:
        print(take_in(path))
    rows = [row for path in sorted(KEPT.glob("*.jsonl")) for row in read_results(path)]
    replace_file(DOCUMENT, filled(DOCUMENT.read_text(), rows))
    print(f"{DOCUMENT}: {len(rows)} results of {len({where(row) for row in rows})} sessions")


if __name__ == "__main__":
    main()
