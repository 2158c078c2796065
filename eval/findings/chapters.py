"""The chapters of docs/findings.md: which sweeps each stands on, its tables and its figures.

write_chapter("controls", run_folders, document=DOCUMENT, out=Path("docs"))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from data_injection.errors import ConfigError
from data_injection.files import replace_file
from eval.figures import features as feature_plots
from eval.figures import interference as interference_plots
from eval.figures import retention as retention_plots
from eval.figures.heatmap import heatmap
from eval.figures.style import png
from eval.findings import chain, hosts, mechanism, placement, regimes
from eval.findings import controls as findings
from eval.findings.contrasts import final, sweep_of
from eval.findings.controls import Table, fill
from eval.records import FILE_NAME, REQUIRED, read_records
from eval.run import read_run
from eval.scores.cells import cells
from eval.scores.rows import one_precision

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Chapter:
    """A part of the findings that one command repeats."""

    sweeps: tuple[str, ...]
    """Files of configs/confirm, in the order in which they are run."""

    thin: Callable[[pd.DataFrame], pd.DataFrame]
    """The records of its sweeps that are committed."""

    tables: Mapping[str, Table]
    figures: Mapping[str, Callable[[pd.DataFrame], Figure]]

    closed: tuple[int, ...] = ()
    """Tokens of the closed hosts, RUNS/hosts/t<tokens>, that its sweeps name beside RUNS/corpus."""

    facts: tuple[int, ...] = ()
    """And of the hosts of facts, RUNS/hosts/f<facts>."""

    beside: tuple[str, ...] = ()
    """Chapters whose records its tables read too."""


def _of(sweep: str, draw: Callable[[pd.DataFrame], Figure]) -> Callable[[pd.DataFrame], Figure]:
    return lambda frame: draw(frame[sweep_of(frame) == sweep])


def _staircase(frame: pd.DataFrame) -> Figure:
    rows = final(frame)
    return heatmap(cells(rows[rows.sweep == "mixture"]))


CHAPTERS = {
    "controls": Chapter(findings.SWEEPS, findings.thin, findings.TABLES, {"staircase": _staircase}),
    "mechanism": Chapter(
        ("mechanism", "matched_frequency", "shuffled"),
        mechanism.thin,
        mechanism.TABLES,
        {
            "interference": _of("mechanism", interference_plots.interference),
            "features": _of("mechanism", feature_plots.features),
            "gaps": _of("matched_frequency", retention_plots.gaps),
            "forgetting": _of("matched_frequency", retention_plots.forgetting),
        },
    ),
    "hosts": Chapter(
        ("closed_host", "chain", "widths"),
        hosts.thin,
        hosts.TABLES | chain.TABLES,
        {"course": hosts.course, "chain": chain.draw},
        closed=(1024, 4096, 16384),
    ),
    "placement": Chapter(("placement",), placement.thin, placement.TABLES, {}),
    "regimes": Chapter(
        ("streams", "one_rate", "fresh_seeds", "facts", "large_host", "hosts_by_width"),
        hosts.thin,
        regimes.TABLES,
        {},
        closed=(1024, 4096, 16384, 65536),
        facts=(128, 2048),
        beside=("hosts",),
    ),
}


def write_chapter(name: str, folders: Sequence[Path], *, document: Path, out: Path) -> Path:
    """Write OUT/findings/<chapter> (records, provenance, figures) and OUT/findings.md.

    folders: of the chapter's runs. document: the text; tables of chapters whose records are in OUT
    are made anew, and a line above it says which are still the document's own. Returns the path of
    the new text. Raises FileNotFoundError or ConfigError if a run that a table needs is missing, or
    its records stop before its last step.
    """
    chapter, folder = CHAPTERS[name], out / "findings" / name
    frame = chapter.thin(one_precision(pd.concat([_to_the_end(run) for run in folders])))
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / FILE_NAME, as_json_lines(frame))
    replace_file(folder / "provenance.json", json.dumps(provenance(folders), indent=1))
    frame = read_records(folder / FILE_NAME)
    for figure, draw in chapter.figures.items():
        replace_file(folder / f"{figure}.png", png(draw(frame)))
    text, old = document.read_text(), []
    for other, one in CHAPTERS.items():
        if not missing(other, out):
            text = fill(text, chapter_records(other, out), one.tables)
        else:
            old.append(other)
    note = f"> Not run here, committed numbers: {', '.join(old)}.\n\n" if old else ""
    return replace_file(out / "findings.md", note + text)


def missing(name: str, out: Path) -> list[str]:
    """Of a chapter and those beside it, the ones whose records are not in OUT/findings."""
    of = (name, *CHAPTERS[name].beside)
    return [one for one in of if not (out / "findings" / one / FILE_NAME).exists()]


def chapter_records(name: str, out: Path) -> pd.DataFrame:
    """The records that a chapter's tables read, from OUT/findings."""
    of = (name, *CHAPTERS[name].beside)
    return pd.concat([read_records(out / "findings" / one) for one in of], ignore_index=True)


def _to_the_end(folder: Path) -> pd.DataFrame:
    """A run's records, with scores of its last step: tables take the last there is."""
    frame = read_records(folder)
    last = frame[frame.metric == "score"].step.max()
    steps = read_run(folder)["num_steps"]
    if last != steps:
        rule = f"must hold scores of its last step, {steps}, and they end at {last}"
        remedy = f"train it to its end, or `olmo-ext eval {folder}` if it was"
        raise ConfigError(key=f"{folder}: records", value=last, rule=rule, remedy=remedy)
    return frame


VERSIONS = ("python", "torch", "ai2-olmo", "numpy")


def provenance(folders: Sequence[Path]) -> dict[str, Any]:
    """What the runs' own files say of where and when they were made, every value that occurs."""
    told = [read_run(folder) for folder in folders]
    said = {
        key: sorted({str(one[key]) for one in told})
        for key in ("commit", "corpus_hash", "device", "threads", *VERSIONS)
    }
    starts = sorted(start["started"] for one in told for start in one["starts"])
    return {"runs": len(told), "first_start": starts[0], "last_start": starts[-1]} | said


def as_json_lines(frame: pd.DataFrame) -> str:
    """One record a line, as read_records reads, without the fields that a row does not have."""
    clean = (
        {k: v for k, v in row.items() if v is not None and v == v and (v != "" or k in REQUIRED)}
        for row in frame.to_dict("records")
    )
    return "".join(json.dumps(row) + "\n" for row in clean)
