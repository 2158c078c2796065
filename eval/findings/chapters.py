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
from eval.figures.style import png
from eval.findings import chain, hosts, mechanism, placement, widths
from eval.findings import controls as findings
from eval.findings import figures as findings_figures
from eval.findings.contrasts import sweep_of
from eval.findings.controls import Table, fill
from eval.records import FILE_NAME, REQUIRED, read_records
from eval.run import read_run

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

    beyond_headline: tuple[str, ...] = ()
    """Sweeps that `confirm --headline` leaves out: their cells stay out of the tables."""


def _of(sweep: str, draw: Callable[[pd.DataFrame], Figure]) -> Callable[[pd.DataFrame], Figure]:
    return lambda frame: draw(frame[sweep_of(frame) == sweep])


CHAPTERS = {
    "controls": Chapter(findings.SWEEPS, findings.thin, findings.TABLES, findings_figures.FIGURES),
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
        hosts.TABLES | chain.TABLES | widths.TABLES,
        {"course": hosts.course, "chain": widths.chain},
        closed=(1024, 4096, 16384),
        beyond_headline=("widths",),
    ),
    "placement": Chapter(
        ("placement",), placement.thin, placement.TABLES, {"course": placement.course}
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
    frame = chapter.thin(pd.concat([_to_the_end(run) for run in folders]))
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / FILE_NAME, as_json_lines(frame))
    replace_file(folder / "provenance.json", json.dumps(provenance(folders), indent=1))
    frame = read_records(folder / FILE_NAME)
    for figure, draw in chapter.figures.items():
        replace_file(folder / f"{figure}.png", png(draw(frame)))
    text, old = document.read_text(), []
    for other in CHAPTERS:
        if (path := out / "findings" / other / FILE_NAME).exists():
            text = fill(text, read_records(path), CHAPTERS[other].tables)
        else:
            old.append(other)
    note = f"> Not run here, committed numbers: {', '.join(old)}.\n\n" if old else ""
    return replace_file(out / "findings.md", note + text)


def _to_the_end(folder: Path) -> pd.DataFrame:
    """A run's records, with scores of its last step: tables take the last there is."""
    frame = read_records(folder)
    last = frame[frame.metric == "score"].step.max()
    steps = read_run(folder)["num_steps"]
    if last != steps:
        raise ConfigError(
            f"{folder}: scores are recorded up to step {last}, its last step is {steps}; train it "
            f"to its end, or `olmo-ext eval {folder}` if it was"
        )
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
