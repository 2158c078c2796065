"""The demo: half a minute on a CPU, told in words, for who has never seen this.

    olmo-ext demo

One run of configs/quickstart.yaml at the quickstart's largest width, on a little of the embedded
text. Nothing is done otherwise than in any run, and it leaves a run's folder like any other.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console

from data_injection.corpus.prepare import prepare_embedded
from data_injection.errors import ConfigError
from eval.audit.audit import audit_run
from eval.audit.explain import explain_step
from eval.audit.subject import DIFFERS
from eval.records import read_records
from eval.report.write import write_report
from eval.run import MARKER, PLAN, load_identity, read_run
from launch.sweep.quickstart import CONFIG, SMOKE, WIDTHS
from launch.terminal import progress_bar, say
from olmo_ext.config import load_experiment
from olmo_ext.train import train

VOCABULARY, DOCUMENTS, SYMBOLS, STEPS = 512, 100, 40, 300


def demo(out: Path, *, console: Console, errors: Console) -> None:
    """Prepare, inject, train, audit and report; OUT/run is replaced if it is an earlier demo's."""
    folder = out / "run"
    manifest = prepare_embedded(out / "corpus", vocab_size=VOCABULARY, max_documents=DOCUMENTS)
    # What a start leaves that was killed before its plan stood is taken over by any start.
    if folder.exists() and any(p.name[0] != "." and p.name != "logs" for p in folder.iterdir()):
        if not (folder / PLAN).is_file() or _run_name(folder) != "demo":
            rule = f"holds a {folder.name} that is no demo's"
            raise ConfigError(key="--out", value=str(out), rule=rule, remedy="name another folder")
        shutil.rmtree(folder)
    tell = partial(say, console)
    tell(f"1. Text. {manifest.num_tokens:,} tokens of ordinary English and Python: the host.")
    tell(
        f"2. A rare task. {SYMBOLS} tokens get a secret order. An example is two of them and a "
        "label that\n   says which stands higher. No text tells; half of the pairs are kept for "
        "the test.\n"
        f"3. Training. {STEPS} steps of 32 rows, each with examples written over its text:"
    )
    name = f"w{WIDTHS[-1]}"
    model = {"d_model": WIDTHS[-1], "vocab_size": VOCABULARY, "embedding_size": VOCABULARY}
    (task,) = SMOKE["injection.tasks"]
    settings = SMOKE | {
        "injection.tasks": [task | {"num_symbols": SYMBOLS}],
        **{f"train.model.{key}": value for key, value in model.items()},
        **{"corpus": str(out / "corpus"), "rung": name, "train.run_name": "demo"},
        **{"train.save_folder": str(folder), "train.max_duration": STEPS},
        **{"train.save_interval_unsharded": STEPS, "callbacks.task_eval.every": STEPS // 3},
        **{"callbacks.interference": None, "callbacks.features": None},
    }
    words = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # too small for threads, which on a busy machine wait for each other
    try:
        train(load_experiment(CONFIG, words, corpus=False))
    finally:
        torch.set_num_threads(before)
    if (folder / MARKER).exists():
        raise typer.Exit(1)  # by a signal: there is nothing to tell
    _tell_of(folder, tell)
    with progress_bar(errors) as bar:
        found = audit_run(folder, progress=bar)
        bar("drawing the report", 0, 0)
        path = write_report(folder)
    differ = [one.said for one in found.verdicts if one.status == DIFFERS]
    said = f"NO: {differ[0]}" if differ else "yes: plan, ledger, text and weights agree"
    tell(f"6. Was what was trained what was planned? {said} (olmo-ext audit).")
    tell(
        f"\nLook: {path} (any browser)\n"
        "Next: olmo-ext quickstart   do larger models learn rarer tasks? five minutes\n"
        "      olmo-ext init mine    an experiment of your own, with a reason at every setting"
    )


def _run_name(folder: Path) -> Any:
    """By plan.json: a start killed after that has no run.json yet."""
    return load_identity(folder).get("train", {}).get("run_name")


def _tell_of(folder: Path, tell: Callable[[str], None]) -> None:
    """What stood in the stream, and what came of it, from what the run left."""
    task = next(iter(read_run(folder)["tasks"].values()))
    row = explain_step(folder, 0, most=1).rows[0]
    there = f" in place of {row.replaced.text!r}" if row.replaced and row.replaced.text else ""
    told = row.tokens.text if row.tokens.text is not None else row.tokens.ids
    tell(
        f"4. What was injected. {task['per_step']:g} examples in each step's batch, exactly: "
        f"{task['instances']:,} in all.\n   The first: {told!r}{there}, row {row.slot} of step 0."
    )
    rows = read_records(folder)
    rows = rows[(rows.subset == "all") & (rows.task != "")]
    test = rows[(rows.split == "test") & (rows.metric == "label_accuracy")].set_index("step")
    course = ", ".join(f"{value:.0%} at step {step}" for step, value in test.value.items())
    last = test.iloc[-1]
    score = (last.value - last.majority) / (1 - last.majority)
    learned = "learned the order" if score >= 0.5 else "not learned the order (yet)"
    tell(
        f"5. What happened. Test pairs answered rightly: {course}.\n   The model has {learned}: "
        f"of {last.n:,.0f} pairs that it never saw it has {last.value:.0%} right, and\n   always "
        f"naming the commoner label {last.majority:.0%}: a score of {score:.2f} (0 guessing, 1 all "
        "right), from one seed,\n   so provisional. "
        f"It saw each training pair {last.exposures_per_example:.1f} times."
    )
