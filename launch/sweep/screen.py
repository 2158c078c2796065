"""Spend a budget twice: mixtures show roughly where learning ends, single-task runs look there.

    olmo-ext sweep mixture.yaml single.yaml --screen 3e18flops --out runs

A mixture carries all rates of a size in one run, but like tasks help each other: it is a screen,
not an answer. Its records give, per size and family, the rate at which learned turns to not
learned; the cells of the single-task sweep nearest to that are trained with what the budget has
left, and stand in OUT/<sweep>.chosen.yaml. The budget is for all of it, finished or not, so that
the same command chooses the same again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import OmegaConf
from rich.console import Console

from data_injection.errors import ConfigError
from data_injection.files import replace_file
from eval.text import new_table, number, print_table
from launch.grid import Sweep
from launch.reckon import Reckoner
from launch.runs import Run
from launch.sweep.frontier import Kind, RateFrontier, check_alike, fit_frontiers, kinds_of
from launch.sweep.sweep import Jobs, train_sweeps
from launch.terminal import say, typed_command

UNITS = ("tokens", "flops", "gpuh")

_BUDGET = re.compile(r"([0-9.]+(?:e[+-]?[0-9]+)?)\s*(tokens|flops|gpuh)", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """What may be spent, in one of UNITS."""

    amount: float
    unit: str

    def __str__(self) -> str:
        return f"{self.amount:.4g} {self.unit}"


def parse_budget(text: str) -> Budget:
    """3e18flops, 2e11tokens or 120gpuh. Raises ConfigError."""
    found = _BUDGET.fullmatch(text.strip())
    try:
        amount = float(found[1]) if found else 0.0
    except ValueError:
        amount = 0.0
    if not found or not 0 < amount < float("inf"):
        rule = f"must be a positive number and one of {', '.join(UNITS)}"
        raise ConfigError(key="--screen", value=text, rule=rule, remedy="for example 3e18flops")
    return Budget(amount, found[2].lower())


@dataclass(frozen=True)
class SingleCell:
    """Single-task runs that differ in the seed alone; they are taken together or not at all."""

    kind: Kind
    rate: float
    """Instances per token."""
    runs: tuple[Run, ...]
    price: float
    distance: float
    """Doublings of the rate between the cell and the frontier; infinite where nothing screened."""

    @property
    def name(self) -> str:
        return f"{self.kind} at {number(self.rate)} a token"


@dataclass(frozen=True)
class CellChoice:
    """What the budget pays for."""

    chosen: list[SingleCell]
    left_out: list[tuple[SingleCell, str]]
    """Cells and why they are not trained."""
    spent: float
    """By mixtures and chosen cells."""


def choose_cells(cells_: Sequence[SingleCell], *, budget: Budget, spent: float) -> CellChoice:
    """Nearest first, the cheaper of two equally near; one too dear is passed over for the next.

    Args:
        spent: by the mixtures, in the budget's unit.
    """
    chosen, left_out = [], []
    for cell in sorted(cells_, key=lambda c: (round(c.distance, 6), c.price, c.name)):
        left = budget.amount - spent
        if cell.rate == 0:
            left_out.append((cell, "a rate of 0 lies on no side of a frontier"))
        elif np.isinf(cell.distance):
            why = f"no mixture of this rung and family, {cell.kind.setting}, was screened"
            left_out.append((cell, why))
        elif cell.price > left:
            left_out.append((cell, f"costs {cell.price:.4g}, {left:.4g} {budget.unit} are left"))
        else:
            chosen.append(cell)
            spent += cell.price
    return CellChoice(chosen, left_out, spent)


def single_cells(
    runs: Sequence[Run], frontiers: Mapping[Kind, RateFrontier], *, unit: str, reckoner: Reckoner
) -> list[SingleCell]:
    """The cells of single-task runs, with their price and their distance from the frontier."""
    grouped: dict[tuple[Kind, float], list[Run]] = {}
    for run in runs:
        ((kind, rates),) = kinds_of(run).items()
        grouped.setdefault((kind, rates[0] if rates else 0.0), []).append(run)
    found = []
    for (kind, rate), members in grouped.items():
        frontier = frontiers.get(kind)
        known = frontier is not None and rate > 0
        distance = abs(log2(rate) - log2(frontier.rate)) if frontier and known else float("inf")
        price = sum(price_of(run, unit=unit, reckoner=reckoner) for run in members)
        found.append(SingleCell(kind, rate, tuple(members), price, distance))
    return found


def price_of(run: Run, *, unit: str, reckoner: Reckoner) -> float:
    """Of a whole run, in one of UNITS."""
    if unit == "tokens":
        return float(run.num_tokens)
    assert run.experiment is not None
    cost = reckoner.row(run.experiment).cost
    return cost.flops if unit == "flops" else cost.gpu_hours


def write_chosen(
    sweep: Sweep, runs: Sequence[Run], out: Path, *, overrides: Sequence[str] = ()
) -> Path:
    """A sweep file of the chosen points; its runs have the folders of the whole sweep's.

    overrides: what the command line set in all runs, over the sweep's own settings and axes.
    """
    given = _settings(overrides)
    settings = {key: value for key, value in sweep.settings.items() if key not in given}
    axes = {name: {k: dict(v) for k, v in a.items()} for name, a in sweep.axes.items()}
    own = {key for axis in axes.values() for label in axis.values() for key in label}
    # An axis goes over `set`: what is within one's reach, or holds it, stands last on the last one.
    last = {
        key: value for key, value in given.items() if any(_overlap(key, other) for other in own)
    }
    for label in axes[next(reversed(axes))].values():
        for key, value in last.items():
            label.pop(key, None)
            label[key] = value
    points = [run.point.name for run in runs if run.point is not None]
    settings |= {key: value for key, value in given.items() if key not in last}
    told: dict[str, Any] = {"name": sweep.name, "experiments": list(map(str, sweep.experiments))}
    told |= {"set": settings, "axes": axes, "only": points}
    text = yaml.safe_dump(told, sort_keys=False)
    out.mkdir(parents=True, exist_ok=True)
    header = f"# Single-task runs near the frontier, chosen by\n#   {typed_command()}\n"
    return replace_file(out / f"{sweep.name}.chosen.yaml", header + text)


def _settings(overrides: Sequence[str]) -> dict[str, Any]:
    """Overrides as a sweep's settings, read as the experiment reads them; of one key the last."""
    found: dict[str, Any] = {}
    for override in overrides:
        key, _, text = override.partition("=")
        read = OmegaConf.create(f"value: {text}" if text else "value: null")
        value = OmegaConf.to_container(read, resolve=False)["value"]  # type: ignore[index, call-overload]
        found.pop(key, None)
        found[key] = value
    return found


def _overlap(one: str, other: str) -> bool:
    """Whether two dotted keys are one, or one lies within the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def screen_sweeps(
    sweeps: Sequence[Sweep],
    runs: Sequence[Run],
    *,
    budget: str,
    out: Path,
    jobs: Jobs,
    retries: int,
    plan: bool,
    peak_tflops: float,
    mfu: float,
    console: Console,
    overrides: Sequence[str] = (),
) -> CellChoice | None:
    """Train the mixtures, choose single-task cells, write and train them; None if not that far.

    Args:
        overrides: with which `runs` were planned.
        plan: train nothing; if the mixtures are finished, choose and write all the same.

    Raises:
        ConfigError: a budget that is none or does not pay for the mixtures, no mixtures, no single
            runs, no mixture like any of these.
        RunFailed: as `train_sweeps`.
    """
    money = parse_budget(budget)
    reckoner = Reckoner(peak_tflops=peak_tflops, mfu=mfu)
    by_protocol: dict[str, list[Run]] = {"mixture": [], "single": [], "none": []}
    for run in runs:
        assert run.experiment is not None
        by_protocol[run.experiment.protocol].append(run)
    mixtures, singles = by_protocol["mixture"], by_protocol["single"]
    if not mixtures or not singles:
        rule = "needs a sweep of mixtures (several tasks a run) and one of single tasks; got "
        rule += f"{len(mixtures)} runs of mixtures and {len(singles)} of single tasks"
        raise ConfigError(key="--screen", rule=rule)
    check_alike(mixtures, singles)
    spent = sum(price_of(run, unit=money.unit, reckoner=reckoner) for run in mixtures)
    console.print(f"{len(mixtures)} mixtures cost {spent:.4g} of {money}")
    if spent > money.amount:
        rule = f"does not pay for the {len(mixtures)} mixtures, which cost {spent:.4g} {money.unit}"
        remedy = "raise it, or take fewer seeds or sizes of them"
        raise ConfigError(key="--screen", value=budget, rule=rule, remedy=remedy)
    if plan and (missing := sum(not run.finished for run in mixtures)):
        rest = f"the rest of the budget, {money.amount - spent:.4g} {money.unit}, is given out when"
        console.print(f"{missing} of them are not trained: {rest} they are; nothing was trained")
        return None
    if not plan:
        train_sweeps(mixtures, jobs=jobs, retries=retries, console=console)
    frontiers = fit_frontiers(mixtures)
    candidates = single_cells(singles, frontiers, unit=money.unit, reckoner=reckoner)
    choice = choose_cells(candidates, budget=money, spent=spent)
    _show(frontiers, choice, money, console)
    chosen = [run for cell in choice.chosen for run in cell.runs]
    for sweep in sweeps:
        own = [run for run in chosen if run.folder.parent == out / sweep.name]
        if own:
            path = write_chosen(sweep, own, out, overrides=overrides)
            say(console, f"{path}: {len(own)} runs")
    if plan:
        console.print("nothing was trained")
    elif chosen:
        train_sweeps(chosen, jobs=jobs, retries=retries, console=console)
        console.print(f"all done: olmo-ext report {out}")
    return choice


def _show(
    frontiers: Mapping[Kind, RateFrontier], choice: CellChoice, budget: Budget, console: Console
) -> None:
    numbers = ("learned in mixtures from", "between", "on the wrong side")
    table = new_table("rung", "family", numbers=numbers)
    where = {"all": "all learned: below", "none": "none learned: above", "between": ""}
    rungs = [(kind.rung, kind.family) for kind in frontiers]
    for kind, found in frontiers.items():
        rate = f"{where[found.side]} {number(found.rate)} a token".strip()
        span = f"{number(found.low)} and {number(found.high)}" if found.side == "between" else "-"
        several = rungs.count((kind.rung, kind.family)) > 1
        family = f"{kind.family} ({kind.setting})" if several else kind.family
        table.add_row(kind.rung, family, rate, span, f"{found.wrong} of {found.num_rates}")
    print_table(table, console)
    console.print("alone a task is often learned later than in a mixture of its like")
    numbers = ("runs", "doublings off", budget.unit)
    cells_ = new_table("single-task cell", numbers=numbers, beside=("",))
    for cell in choice.chosen:
        row = (cell.name, str(len(cell.runs)), f"{cell.distance:.2f}", f"{cell.price:.4g}")
        cells_.add_row(*row, "chosen")
    for cell, why in choice.left_out:
        row = (cell.name, str(len(cell.runs)), f"{cell.distance:.2f}", f"{cell.price:.4g}")
        cells_.add_row(*row, f"left out: {why}")
    print_table(cells_, console)
    console.print(f"{choice.spent:.4g} of {budget} spent, mixtures included")
