"""The findings: a chapter's sweeps on this machine, then docs/findings.md with their numbers.

    olmo-ext confirm                         # the controls: 45 to 70 minutes; resumable
    olmo-ext confirm --chapter mechanism     # interference, features, retention: 20 minutes
    olmo-ext confirm --chapter hosts         # a burst in hosts and widths, 90 runs: 42 minutes
    olmo-ext confirm --chapter regimes       # one rate, facts, fresh seeds, streams: 2.5 hours
    olmo-ext confirm --out docs              # and make the committed document anew

The text is docs/findings.md's; its tables and figures are made from the runs, so that a second
machine's numbers can be laid beside the committed ones.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from data_injection.errors import ConfigError
from launch.grid import Settings, Sweep, load_sweep
from launch.runs import plan_sweeps
from launch.sweep.executor import train_all
from launch.sweep.quickstart import embedded_corpus
from olmo_ext.shipped import shipped

CONFIGS = shipped("configs/confirm")
DOCUMENT = shipped("docs/findings.md")
README = DOCUMENT.parent.parent / "README.md"


def confirm_sweeps(chapter: str) -> list[Sweep]:
    """The sweeps that a chapter stands on, in the order in which they are run."""
    from eval.findings.chapters import CHAPTERS

    return [load_sweep(CONFIGS / f"{name}.yaml") for name in CHAPTERS[chapter].sweeps]


def confirm(chapter: str, runs: Path, *, out: Path | None, jobs: int, console: Console) -> Path:
    """Train what is missing of a chapter and write OUT/findings.md (default: in the runs' folder).

    Raises ConfigError for a chapter that there is not.
    """
    from data_injection.corpus.closed import prepare_closed
    from data_injection.corpus.facts import prepare_facts
    from data_injection.files import replace_file
    from eval.findings.chapters import CHAPTERS, chapter_records, missing, write_chapter
    from eval.findings.controls import fill

    if chapter not in CHAPTERS:
        rule = f"must be one of {', '.join(CHAPTERS)}"
        raise ConfigError(key="--chapter", value=chapter, rule=rule)
    if needed := [one for one in missing(chapter, out or runs) if one != chapter]:
        rule = f"compares its runs with those of {needed[0]}, whose records are not there"
        remedy = f"olmo-ext confirm --chapter {needed[0]}"
        raise ConfigError(key="--chapter", value=chapter, rule=rule, remedy=remedy)
    started = time.monotonic()
    corpus = embedded_corpus(runs, console)
    console.print("checking every run ...")
    sweeps, overrides = confirm_sweeps(chapter), [f"corpus={corpus}"]
    if closed := CHAPTERS[chapter].closed:
        for num in closed:
            prepare_closed(corpus, runs / "hosts" / f"t{num}", num_tokens=num)
        for num in CHAPTERS[chapter].facts:
            prepare_facts(num, runs / "hosts" / f"f{num}", tokenizer=str(corpus))
        sweeps, overrides = [_in_folder(sweep, runs) for sweep in sweeps], []
    planned = plan_sweeps(sweeps, runs, overrides=overrides)
    console.print(f"{len(planned)} runs; each is one process on one thread, {jobs} side by side")
    train_all(planned, jobs=jobs, console=console)
    console.print("tables and figures ...")
    folders = [run.folder for run in planned]
    path = write_chapter(chapter, folders, document=DOCUMENT, out=out or runs).resolve()
    if path == DOCUMENT and README.exists():  # the committed one: the README shows a table of it
        frame = chapter_records(chapter, path.parent)
        replace_file(README, fill(README.read_text(), frame, CHAPTERS[chapter].tables))
    console.print(f"{path}\n{time.monotonic() - started:.0f} s")
    return path


def _in_folder(sweep: Sweep, runs: Path) -> Sweep:
    """A sweep whose axes name corpora in runs/, with those in another folder."""

    def placed(of: Settings) -> Settings:
        return {k: str(runs / v[len("runs/") :]) if k == "corpus" else v for k, v in of.items()}

    axes = sweep.axes.items()
    return replace(sweep, axes={a: {k: placed(v) for k, v in of.items()} for a, of in axes})
