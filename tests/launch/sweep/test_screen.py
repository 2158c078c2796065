"""Screening: planted mixtures, whose frontier is known, choose the single-task runs beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses
from rich.console import Console

import launch.sweep.screen as screen
from eval.records import RecordWriter, task_fields
from eval.text import number
from launch.grid import Sweep, load_sweep
from launch.runs import Run, plan_sweeps
from launch.sweep.frontier import Kind, fit_frontier
from launch.sweep.screen import (
    Budget,
    SingleCell,
    choose_cells,
    parse_budget,
    screen_sweeps,
    write_chosen,
)
from olmo_ext.prepare import prepare

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("learned", "low", "high", "side", "wrong"),
    [
        ([0, 0, 1, 1], 2.0, 4.0, "between", 0),
        ([0, 1, 0, 1], 1.0, 8.0, "between", 1),  # two steps as good: what lies between them
        ([1, 1, 1, 1], 1.0, 1.0, "all", 0),
        ([0, 0, 0, 0], 8.0, 8.0, "none", 0),
        ([1, 0, 0, 0], 8.0, 8.0, "none", 1),
        ([0, 0, 1, 0], 2.0, 4.0, "between", 1),
    ],
)
def test_the_frontier_is_the_step_with_the_fewest_rates_on_its_wrong_side(
    learned: list[int], low: float, high: float, side: str, wrong: int
) -> None:
    found = fit_frontier([1.0, 2.0, 4.0, 8.0], [bool(flag) for flag in learned])
    assert (found.wrong, found.num_rates) == (wrong, 4)
    if learned == [0, 0, 1, 0]:  # as good as "none"
        assert (found.low, found.high) == (2.0, 8.0)
        return
    assert (found.low, found.high, found.side) == (low, high, side)
    assert found.rate == pytest.approx((low * high) ** 0.5)


@given(
    st.lists(st.integers(-30, 0), min_size=2, max_size=9, unique=True),
    st.integers(0, 9),
    st.randoms(),
)
@settings(deadline=None, max_examples=60)
def test_a_clean_step_is_found_wherever_it_is_and_in_whatever_order(
    exponents: list[int], num_learned: int, random: object
) -> None:
    rates = [2.0**exponent for exponent in exponents]
    top = sorted(rates, reverse=True)[:num_learned]
    found = fit_frontier(rates, [rate in top for rate in rates])
    assert found.wrong == 0
    assert all(rate >= found.rate for rate in top)
    assert all(rate <= found.rate for rate in rates if rate not in top)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("3e18flops", Budget(3e18, "flops")),
        ("2.5E11 tokens", Budget(2.5e11, "tokens")),
        ("120GPUh", Budget(120.0, "gpuh")),
    ],
)
def test_a_budget_is_a_number_and_a_unit(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    "text", ["3e18", "flops", "-1flops", "0tokens", "1..2flops", "3 dollars", "1e999flops"]
)
def test_another_budget_is_refused(text: str) -> None:
    with refuses(key="--screen", value=text, rule="a positive number", remedy="3e18flops"):
        parse_budget(text)


def cell(name: str, *, price: float, distance: float) -> SingleCell:
    return SingleCell(Kind(name, "comparison", 0.01, 60, 8), 1e-4, (), price, distance)


def test_the_nearest_cells_are_taken_while_they_can_be_paid_and_the_rest_is_told() -> None:
    given_ = [
        cell("far", price=10, distance=3.0),
        cell("near", price=40, distance=0.5),
        cell("near and dear", price=41, distance=0.5),
        cell("middle", price=30, distance=1.0),
        cell("not screened", price=1, distance=float("inf")),
    ]
    choice = choose_cells(given_, budget=Budget(100.0, "gpuh"), spent=20.0)
    assert [c.kind.rung for c in choice.chosen] == ["near", "middle", "far"]
    assert choice.spent == 100.0
    assert {c.kind.rung: why for c, why in choice.left_out} == {
        "near and dear": "costs 41, 40 gpuh are left",
        "not screened": "no mixture of this rung and family, learning rate 0.01, "
        "60 steps of 8, was screened",
    }


MIXTURE = """
name: mixture
experiments: [experiment.yaml]
set:
  injection.tasks:
    - {name: c1, num_symbols: 10, schedule: {rate: 1}}
    - {name: c2, num_symbols: 10, schedule: {rate: 1/2}}
    - {name: c4, num_symbols: 10, schedule: {rate: 1/4}}
    - {name: c8, num_symbols: 10, schedule: {rate: 1/8}}
axes:
  width: {w16: {rung: w16}, w32: {rung: w32, train.model.d_model: 32}}
  seed: {s1: {train.seed: 1}, s2: {train.seed: 2}}
"""
SINGLE = """
name: single
experiments: [experiment.yaml]
axes:
  width: {w16: {rung: w16}, w32: {rung: w32, train.model.d_model: 32}, w64: {rung: w64}}
  rate:
    r1: {injection.tasks: [{name: c, num_symbols: 10, schedule: {rate: 1}}]}
    r2: {injection.tasks: [{name: c, num_symbols: 10, schedule: {rate: 1/2}}]}
    r4: {injection.tasks: [{name: c, num_symbols: 10, schedule: {rate: 1/4}}]}
    r8: {injection.tasks: [{name: c, num_symbols: 10, schedule: {rate: 1/8}}]}
  seed: {s1: {train.seed: 1}, s2: {train.seed: 2}}
"""


@pytest.fixture
def sweeps(write_experiment: Write, tmp_path: Path) -> list[Sweep]:
    write_experiment(lambda config: config.update(callbacks={}))
    found = []
    for name, text in (("mixture", MIXTURE), ("single", SINGLE)):
        (tmp_path / f"{name}.yaml").write_text(text)
        found.append(load_sweep(tmp_path / f"{name}.yaml"))
    return found


def plant(run: Run, learned: dict[str, float]) -> None:
    """Finished, with a test score for each task."""
    checkpoint = run.folder / f"step{run.num_steps}-unsharded"
    checkpoint.mkdir(parents=True)
    for name in ("model.pt", "optim.pt", "train.pt", "config.yaml", "olmo_ext.json"):
        (checkpoint / name).touch()
    assert run.experiment is not None
    assert run.stream is not None
    fields = prepare(run.experiment).fields
    with RecordWriter(run.folder / "records.jsonl") as writer:
        for task, value in learned.items():
            row = fields | {"step": run.num_steps, "tokens": run.num_tokens, "split": "test"}
            row |= task_fields(run.stream.plan, task, step=run.num_steps)
            writer.write([row | {"metric": "score", "value": value}])


def test_planted_mixtures_choose_the_cells_beside_their_frontier(
    sweeps: list[Sweep],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """w16 learns a task at 1 a step and w32 at 1/4: cells on both sides of each step, whole (both
    seeds), for as far as the budget goes; and the file that is written plans to just those."""
    out = tmp_path / "out"
    runs = plan_sweeps(sweeps, out)
    mixtures = [run for run in runs if run.name.startswith("mixture")]
    for run in mixtures:
        least = 1 if "w16" in run.name else 4
        rates = {"c1": 1, "c2": 2, "c4": 4, "c8": 8}
        plant(run, {task: 0.9 if part <= least else 0.1 for task, part in rates.items()})
    trained: list[str] = []

    def train_sweeps(given_: list[Run], **options: object) -> None:
        trained.extend(run.name for run in given_)

    monkeypatch.setattr(screen, "train_sweeps", train_sweeps)
    one = mixtures[0].num_tokens  # all runs are of one length
    options = {"out": out, "jobs": 1, "retries": 0, "peak_tflops": 989.0, "mfu": 0.4}
    console = Console(width=200)
    choice = screen_sweeps(
        sweeps, runs, budget=f"{(4 + 8) * one}tokens", plan=False, console=console, **options
    )
    assert choice is not None
    beside = {("w16", "r1"), ("w16", "r2"), ("w32", "r4"), ("w32", "r8")}
    wanted = {f"single-{width}-{rate}-{s}" for width, rate in beside for s in ("s1", "s2")}
    assert set(trained) == wanted | {run.name for run in mixtures}
    assert choice.spent == 12 * one
    reasons = {(c.kind.rung, why.split()[0]) for c, why in choice.left_out}
    assert reasons == {("w16", "costs"), ("w32", "costs"), ("w64", "no")}
    assert len(choice.left_out) == 12 - 4
    again = plan_sweeps([load_sweep(out / "single.chosen.yaml")], out)
    assert {run.name for run in again} == wanted
    assert {run.folder for run in again} == {run.folder for run in runs if run.name in wanted}
    said = capsys.readouterr().out
    assert "left out: costs" in said
    # The same command again chooses the same, though the chosen ones have been paid.
    for run in again:
        run.folder.mkdir(parents=True, exist_ok=True)
    second = screen_sweeps(
        sweeps, runs, budget=f"{12 * one}tokens", plan=True, console=console, **options
    )
    assert second == choice


def test_a_budget_that_does_not_pay_for_the_mixtures_is_refused(
    sweeps: list[Sweep], tmp_path: Path
) -> None:
    runs = plan_sweeps(sweeps, tmp_path / "out")
    options = {"out": tmp_path, "jobs": 1, "retries": 0, "peak_tflops": 989.0, "mfu": 0.4}
    for budget in ("10tokens", "1flops", "1e-12gpuh"):
        with refuses(key="--screen", value=budget, rule="the 4 mixtures"):
            screen_sweeps(
                sweeps, runs, budget=budget, plan=True, console=Console(quiet=True), **options
            )
    with refuses(key="--screen", rule="0 runs of mixtures and 24 of single"):
        screen_sweeps(
            sweeps[1:], runs[4:], budget="1e9tokens", plan=True, console=Console(), **options
        )


def test_before_the_mixtures_are_trained_a_plan_says_what_is_left(
    sweeps: list[Sweep], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = plan_sweeps(sweeps, tmp_path / "out")
    options = {"out": tmp_path, "jobs": 1, "retries": 0, "peak_tflops": 989.0, "mfu": 0.4}
    assert (
        screen_sweeps(
            sweeps, runs, budget="1e6tokens", plan=True, console=Console(width=200), **options
        )
        is None
    )
    left = 1e6 - 4 * runs[0].num_tokens
    assert f"{left:.4g} tokens, is given out when they are" in capsys.readouterr().out


OPTIONS = {"jobs": 1, "retries": 0, "peak_tflops": 989.0, "mfu": 0.4}


def write_sweeps(folder: Path, mixture: str, single: str) -> list[Sweep]:
    for name, text in (("mixture", mixture), ("single", single)):
        (folder / f"{name}.yaml").write_text(text)
    return [load_sweep(folder / f"{name}.yaml") for name in ("mixture", "single")]


RATES = """
  lr:
    l1: {train.optimizer.learning_rate: 0.01}
    l2: {train.optimizer.learning_rate: 0.02}
"""


def test_two_learning_rates_have_two_frontiers_and_two_cells(
    sweeps: list[Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At .01 the mixtures learn a task at 1 a step, at .02 at 1/4; a task that never comes is on
    no side."""
    both = [text.rstrip() + RATES for text in (MIXTURE, SINGLE)]
    never = "    - {name: c8, num_symbols: 10, schedule: {rate: 1/8}}\n"
    both[0] = both[0].replace(never, never + never.replace("c8", "c0").replace("1/8", "0"))
    both[1] = both[1].replace("schedule: {rate: 1/8}", "schedule: {rate: 0}")
    both[1] = both[1].replace(", w64: {rung: w64}", "")
    out = tmp_path / "out"
    sweeps = write_sweeps(tmp_path, *both)
    overrides = ["train.max_duration=40"]
    runs = plan_sweeps(sweeps, out, overrides=overrides)
    mixtures = [run for run in runs if run.name.startswith("mixture")]
    for run in mixtures:
        least = 1 if run.name.endswith("l1") else 4
        parts = {"c1": 1, "c2": 2, "c4": 4, "c8": 8, "c0": 99}
        plant(run, {task: 0.9 if part <= least else 0.1 for task, part in parts.items()})
    monkeypatch.setattr(screen, "train_sweeps", lambda *_, **__: None)
    choice = screen_sweeps(
        sweeps, runs, budget="1e12tokens", out=out, plan=False, console=Console(quiet=True),
        overrides=overrides, **OPTIONS,
    )  # fmt: skip
    assert choice is not None
    again = plan_sweeps([load_sweep(out / "single.chosen.yaml")], out)
    assert {run.num_steps for run in again} == {40}
    for cell in [*choice.chosen, *(cell for cell, _ in choice.left_out)]:
        assert len(cell.runs) == 2, "the seeds of one learning rate, no more"
    near = {
        (cell.kind.learning_rate, cell.name.rsplit(" at ")[1])
        for cell in choice.chosen
        if cell.distance == pytest.approx(0.5)
    }
    at = {part: f"{number(1 / part / 128)} a token" for part in (1, 2, 4)}
    assert near == {(0.01, at[1]), (0.01, at[2]), (0.02, at[4])}
    assert {why for _, why in choice.left_out} == {"a rate of 0 lies on no side of a frontier"}
    assert len(choice.left_out) == 4


def test_mixtures_unlike_every_single_cell_are_refused_before_they_are_trained(
    sweeps: list[Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(screen, "train_sweeps", never)
    for change in ("set: {train.optimizer.learning_rate: 0.5}", "set: {train.max_duration: 7}"):
        text = SINGLE.replace("axes:", f"{change}\naxes:")
        unlike = write_sweeps(tmp_path, MIXTURE, text)
        runs = plan_sweeps(unlike, tmp_path / "out")
        with refuses(key="--screen", rule="a mixture that screens", remedy="the mixtures have"):
            screen_sweeps(
                unlike, runs, budget="1e12tokens", out=tmp_path / "out", plan=False,
                console=Console(quiet=True), **OPTIONS,
            )  # fmt: skip


def test_a_chosen_sweep_keeps_the_command_lines_overrides(
    sweeps: list[Sweep], tmp_path: Path
) -> None:
    """Over the sweep's own `set` and over its axes, whole sections and single keys alike."""
    out = tmp_path / "out"
    overrides = ["train.max_duration=40", "rung=mine", "train.optimizer.learning_rate=2e-3"]
    text = SINGLE.replace("axes:", "set: {train.max_duration: 60}\naxes:").replace(
        "w16: {rung: w16}", "w16: {rung: w16, train.optimizer: {learning_rate: 0.1}}"
    )
    (single,) = write_sweeps(tmp_path, MIXTURE, text)[1:]
    runs = plan_sweeps([single], out, overrides=overrides)
    chosen = [run for run in runs if "r2" in run.name]
    again = plan_sweeps([load_sweep(write_chosen(single, chosen, out, overrides=overrides))], out)
    assert {run.num_steps for run in again} == {40}
    assert [run.settings for run in again] == [run.settings for run in chosen]
    assert [run.experiment for run in again] == [run.experiment for run in chosen]
