"""`olmo-ext predict`: which rate does a size need? From two short runs of it, a burst and its twin.

    olmo-ext predict runs/chain --json predicted.json

The equation and the fit: theory/advice/accumulation.py; what it was tested on: docs/findings.md.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from data_injection.errors import ConfigError
from eval.text import new_table, number, print_table, with_interval
from launch.json_file import write_json
from launch.terminal import say, typed_command
from theory.advice.accumulation import LEARNED, Balance, balance

if TYPE_CHECKING:
    from rich.console import Console

CELL = ["rung", "params", "learning_rate", "corpus_hash", "task"]
"""What a burst and its twin share, besides the seed."""

CONSTANT = ("constant", "constant_with_warmup")
"""Schedulers under which a step after the burst forgets as one in it."""

CLEAR = 0.1
"""The least gain in score of a burst of one seed, which has no interval."""


def predict(source: Path, *, ceiling: float, out: Path | None, console: Console) -> None:
    """Print a row a size and host; write what was found to `out`.

    Raises ConfigError or FileNotFoundError where the runs hold no burst with a twin, or one whose
    gain is not clear or whose learning rate is not constant, or for a ceiling that cannot be one.
    """
    from eval.commit import git_commit

    if not LEARNED < ceiling <= 1:
        rule = f"must be above {LEARNED}, the score of a learned task, and at most 1"
        remedy = "leave it out (0.9), or take what the task comes to when it is trained alone"
        raise ConfigError(key="--ceiling", value=str(ceiling), rule=rule, remedy=remedy)
    rows = [predicted(cell, curves, ceiling) for cell, curves in twins(source).items()]
    table = new_table("size", "host", numbers=("lr", "seeds", "gain", "g", "lambda", "rate*"))
    for row in rows:
        both = [row[name].values() for name in ("gain_per_instance", "forgetting_per_step")]
        intervals = [with_interval(*(1e3 * value for value in one)) for one in both]
        table.add_row(
            row["rung"], row["corpus_hash"][:8], number(row["learning_rate"]),
            str(len(row["seeds"])), f"{row['burst_gain']:.2f}", *intervals,
            with_interval(*row["rate"].values()),
        )  # fmt: skip
    print_table(table, console)
    say(console, "g and lambda in thousandths, an instance and a step; rate* in instances a step")
    if out is not None:
        told = {
            "command": typed_command(),
            "commit": git_commit(),
            "records": str(source),
            "ceiling": ceiling,
            "equation": "dx/dtau = rate g (A - x) - lambda (x - B); "
            "rate* = lambda (1/2 - B) / (g (A - 1/2))",
            "interval": "95%, jackknife over seeds, Student's t",
            "sizes": rows,
        }
        say(console, str(write_json(out, told)))


def twins(source: Path) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """By CELL, each seed's burst (start, stop, rate) and test scores of both runs by step."""
    from eval.checkpoints.checkpoint import load_plan
    from eval.records import read_records, record_files
    from eval.run import read_run

    runs: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for file in record_files(source):
        frame, plan = read_records(file), load_plan(file.parent)
        frame = frame[(frame.metric == "score") & (frame.split == "test")]
        if "subset" in frame:
            frame = frame[frame.subset.fillna("all") == "all"]
        last = int(frame.step.max()) if len(frame) else 0
        ended = last >= read_run(file.parent)["num_steps"]
        for task, rows in frame.groupby("task"):
            index = plan.task_index(str(task))
            counts = [plan.instances(index, step) for step in range(last + 1)]
            with_rows = [step for step in range(last) if counts[step + 1] > counts[step]]
            one: dict[str, Any] = {"seed": int(rows.seed.iloc[0]), "folder": file.parent}
            one["scores"] = rows.set_index("step").value
            if with_rows:
                start, stop = with_rows[0], with_rows[-1] + 1
                one |= {"start": start, "stop": stop, "rate": counts[-1] / (stop - start)}
            key = tuple(rows.iloc[0].get(name) for name in CELL)
            runs.setdefault(key, []).append(one | {"last": last, "ended": ended})
    found = {key: _paired(of_cell) for key, of_cell in runs.items()}
    found = {key: pairs for key, pairs in found.items() if pairs}
    if not found:
        raise ConfigError(
            key="RUNS",
            value=str(source),
            rule="must hold twins: a run whose task comes in a burst and then no more, and one of "
            "the same size, seed, learning rate and corpus whose task has not come when it ends "
            "(one that was cut off, or not measured at its last step, is no twin)",
            remedy="see configs/confirm/chain.yaml",
        )
    return found


def _paired(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # A twin's task may come at its very last step, since a plan wants one. A run cut off before its
    # burst has not seen the task either, but is no twin.
    without = (one for one in runs if one["ended"])
    none = {one["seed"]: one for one in without if one.get("start", one["last"]) >= one["last"] - 1}
    pairs = [
        one | {"twin": none[one["seed"]]["scores"]}
        for one in runs
        if one["seed"] in none and one.get("stop", one["last"]) < one["last"] - 1
    ]
    for one in pairs:
        _check_constant(one["folder"])
    return pairs


def _check_constant(folder: Path) -> None:
    from eval.run import EXPERIMENT, load_config

    name = str(load_config(folder / EXPERIMENT).train.scheduler.name)
    if name not in CONSTANT:
        key, value = "train.scheduler.name", f"{name} ({folder})"
        rule = "must be constant, or forgetting after a burst has another learning rate than in it"
        remedy = "train the pair with constant_with_warmup, as configs/confirm/chain.yaml"
        raise ConfigError(key=key, value=value, rule=rule, remedy=remedy)


def predicted(cell: tuple[Any, ...], pairs: list[dict[str, Any]], ceiling: float) -> dict[str, Any]:
    """g, lambda and rate* of one size in one host. Raises ConfigError for a gain not clear of 0."""
    from eval.statistics import seed_interval

    key = dict(zip(CELL, cell, strict=True))
    start, stop, rate = (pairs[0][name] for name in ("start", "stop", "rate"))
    if len({(one["start"], one["stop"], one["rate"]) for one in pairs}) > 1:
        what = f"the bursts of {key['rung']}"
        rule = "must be the same for all seeds"
        raise ConfigError(key=what, rule=rule, remedy="predict from one sweep")
    table = pd.DataFrame({one["seed"]: one["scores"] - one["twin"] for one in pairs}).dropna()
    table = table[(table.index > start) & (table.index < min(one["last"] for one in pairs))]
    if stop not in table.index or not (table.index > stop).any():
        what, value = "callbacks.task_eval.every", str(list(table.index))
        rule = f"must measure the score at the burst's end (step {stop}) and after it"
        remedy = "`olmo-ext eval` adds steps that have checkpoints"
        raise ConfigError(key=what, value=value, rule=rule, remedy=remedy)
    gain, low, _ = seed_interval(table.loc[stop].tolist())
    if not (low > 0 or (len(pairs) == 1 and gain >= CLEAR)):
        raise ConfigError(
            key=f"gain of {key['rung']} ({key['task']}, {key['corpus_hash'][:8]})",
            value=f"{gain:.2f}",
            rule="must be clear of 0 over seeds at the burst's end, or there is nothing to forget",
            remedy="take a longer or denser burst, another learning rate, or more seeds",
        )
    twin = {one["seed"]: float(one["twin"].loc[start + 1 : stop].mean()) for one in pairs}
    if ceiling <= (highest := max(twin.values())):
        rule = f"must be above the twin's score, {highest:.2f} in {key['rung']}"
        remedy = "give what the task comes to when it is trained alone"
        raise ConfigError(key="--ceiling", value=str(ceiling), rule=rule, remedy=remedy)
    curves = {seed: table[seed].tolist() for seed in table}
    found: Balance = balance(
        [float(step) for step in table.index], curves, start=start, stop=stop, rate=rate,
        ceiling=ceiling, twin=twin,
    )  # fmt: skip
    return key | {
        "seeds": sorted(curves),
        "burst": {"start": start, "stop": stop, "rate": rate},
        "burst_gain": gain,
        "gain_per_instance": asdict(found.gain),
        "forgetting_per_step": asdict(found.forgetting),
        "rate": asdict(found.threshold),
    }
