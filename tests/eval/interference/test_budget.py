"""The loss budget: an AdamW step split by source adds up, and quadratics have it in closed form."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
import torch
from refusals import refuses

from eval.figures.budget import budget
from eval.interference.budget import (
    DECAY,
    HOST,
    LOBATTO,
    AdamStep,
    budgets,
    closure,
    products,
    update_parts,
)

BETAS, EPS, DECAY_RATE = (0.9, 0.95), 1e-8, 0.1


def trained(
    targets: dict[str, torch.Tensor], *, steps: int, lr: float = 0.01, injected: bool = True
) -> dict[str, float]:
    """Train w on the sum of |w - target|^2 / 2 over sources; the budget of source "task"'s loss.

    Quadratic, so that the trapezoid is exact: the budget must close to rounding.
    """
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(40, dtype=torch.float64))
    optimizer = torch.optim.AdamW([w], lr=lr, betas=BETAS, eps=EPS, weight_decay=DECAY_RATE)
    firsts = {name: [torch.zeros_like(w.data)] for name in targets if name != HOST}
    sums: dict[str, float] = dict.fromkeys((HOST, DECAY, *firsts), 0.0)
    start = loss_of(w, targets["task"])
    for step in range(steps):
        before = w.detach().clone()
        optimizer.zero_grad()
        parts = {name: before - target for name, target in targets.items()}
        if not injected:
            parts["task"] = torch.zeros_like(before)
        w.grad = torch.stack(list(parts.values())).sum(0)
        norm = float(w.grad.norm())
        torch.nn.utils.clip_grad_norm_([w], 1.0)
        for name, first in firsts.items():
            clipped = parts[name] * (float(w.grad.norm()) / norm)
            first[0].lerp_(clipped, 1 - BETAS[0])
        optimizer.step()
        how = AdamStep(lr, DECAY_RATE, BETAS, EPS, step + 1)
        second = [optimizer.state[w]["exp_avg_sq"]]
        found = update_parts([before], [w.detach()], firsts, second, [how])
        gradient = (before + w.detach()) / 2 - targets["task"]
        values = products({"task": [gradient]}, found, [-1])[0, 0]
        for name, value in zip(found, values.tolist(), strict=True):
            sums[name] += value
    return sums | {"actual": loss_of(w, targets["task"]) - start}


def loss_of(w: torch.Tensor, target: torch.Tensor) -> float:
    return float((w.detach() - target).square().sum() / 2)


def targets(*names: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(40, generator=generator, dtype=torch.float64) for name in names}


def test_the_budget_of_a_quadratic_closes_to_rounding() -> None:
    found = trained(targets("task", HOST, "other"), steps=150)
    actual = found.pop("actual")
    assert sum(found.values()) == pytest.approx(actual, rel=1e-9)
    assert found["task"] < 0 < found[HOST]  # the one pulls to its target, the other away from it
    assert closure(list(found.values()), actual) < 1e-9


@pytest.mark.parametrize("points", LOBATTO)
def test_points_along_a_step_average_polynomials_exactly_and_no_further(points: int) -> None:
    """A loss of degree n along the step has a slope of degree n - 1."""
    most = 2 * points - 3
    for degree in range(most + 2):
        mean = sum(weight * place**degree for place, weight in LOBATTO[points])
        assert (mean == pytest.approx(1 / (degree + 1), abs=1e-12)) == (degree <= most)


def test_without_a_host_nothing_is_forgotten() -> None:
    found = trained(targets("task"), steps=150)
    assert abs(found[HOST]) < 1e-9 * abs(found["task"])
    assert found["task"] + found[DECAY] == pytest.approx(found["actual"], rel=1e-9)


def test_without_injection_nothing_is_gained() -> None:
    """What the host's data teach of the task is the host's."""
    where = targets("task", HOST)
    found = trained(where | {"task": where[HOST]}, steps=150, injected=False)
    assert found["task"] == 0 > found[HOST]
    assert found[HOST] + found[DECAY] == pytest.approx(found["actual"], rel=1e-9)


def test_one_step_of_sign_descent_has_its_closed_form() -> None:
    """At its first step Adam moves by lr a coordinate: lr |g_k| / |g| of it is source k's."""
    w, lr = torch.tensor([1.0, 1.0], dtype=torch.float64), 1e-3
    host, task = torch.tensor([3.0, 1.0]).double(), torch.tensor([1.0, -3.0]).double()
    g = host + task
    how = AdamStep(lr, 0.0, BETAS, 0.0, 1)
    firsts = {"task": [task * (1 - BETAS[0])]}
    second = [g.square() * (1 - BETAS[1])]
    found = update_parts([w], [w - lr * g.sign()], firsts, second, [how])
    assert found["task"][0].tolist() == pytest.approx((-lr * task / g.abs()).tolist())
    assert found[HOST][0].tolist() == pytest.approx((-lr * host / g.abs()).tolist())


def test_layers_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(2)
    vectors = [[torch.randn(n, generator=generator) for n in (3, 5, 7)] for _ in range(3)]
    rows = products({"task": vectors[0]}, {HOST: vectors[1], DECAY: vectors[2]}, [-1, 0, 0])
    assert rows.shape == (3, 1, 2)
    assert rows[1:].sum(0) == pytest.approx(rows[0].numpy())
    assert rows[1, 0, 0] == pytest.approx(float(vectors[0][0] @ vectors[1][0]))


def test_closure_is_of_the_turnover() -> None:
    assert closure([0.87, -0.85], 0.03) == pytest.approx(0.01 / 1.72)
    assert closure([0.0, 0.0], 0.0) != closure([0.0, 0.0], 0.0)  # NaN: nothing moved


# -- the table -----------------------------------------------------------------------------------


def records(
    *, forgotten: dict[int, float], gained: dict[int, float], **said: object
) -> pd.DataFrame:
    rows = []
    for seed, step in itertools.product(forgotten, (100, 200)):
        shared = {
            **{"run": f"s{seed}", "rung": "w16", "params": 9, "seed": seed, "protocol": "single"},
            **{"family": "comparison", "rate_per_step": 1.0, "split": "test", "step": step},
            **{"task": "cmp", "closure": 0.01 * seed, "metric": "budget", "tokens": 64.0 * step},
            **said,
        }
        host = {"value": forgotten[seed], "null_labels": 0.5, "null_signs": 0.0}
        rows += [
            shared | {"source": "host"} | host,
            shared | {"source": "host", "layer": 0} | host,
            shared | {"source": "task", "value": gained[seed]},
            shared | {"source": "decay", "value": 0.0},
            shared | {"metric": "budget_actual", "value": forgotten[seed] + gained[seed]},
        ]
    return pd.DataFrame(rows)


def test_the_table_counts_the_late_half_and_no_layer_twice() -> None:
    frame = records(forgotten={1: 0.8, 2: 0.9, 3: 1.0}, gained={1: -1.0, 2: -1.0, 3: -1.2})
    (row,) = budgets(frame).to_dict("records")
    assert row["forgotten"] == pytest.approx(0.9)
    assert row["forgotten_low"] < 0.9 < row["forgotten_high"]
    assert row["ratio"] == pytest.approx(0.9 / (3.2 / 3))
    assert row["ratio_low"] < row["ratio"] < row["ratio_high"]
    assert (row["null_labels"], row["closure"], row["n_seeds"]) == (0.5, 0.03, 3)
    assert budgets(frame, since=0.0).forgotten.tolist() == pytest.approx([1.8])


def test_like_tasks_of_a_cell_are_averaged_and_unlike_schedules_apart() -> None:
    one = records(forgotten={1: 0.8, 2: 0.9}, gained={1: -1.0, 2: -1.0})
    two = records(forgotten={1: 1.0, 2: 1.1}, gained={1: -1.0, 2: -1.0}, task="cmp_b")
    (row,) = budgets(pd.concat([one, two])).to_dict("records")
    assert (row["forgotten"], row["gained"]) == pytest.approx((0.95, -1.0))
    assert (row["null_labels"], row["n_seeds"]) == (0.5, 2)
    burst = {"variant": "burst every 20", "schedule": "burst every 20", "run": "burst"}
    apart = records(forgotten={1: 3.0, 2: 3.0}, gained={1: -4.0, 2: -4.0}, **burst)
    table = budgets(pd.concat([one, apart])).set_index("family")
    assert table.forgotten.to_dict() == pytest.approx(
        {"comparison": 0.85, "comparison, burst every 20": 3.0}
    )


def test_steps_that_not_all_runs_have_do_not_enter_the_mean() -> None:
    frame = records(forgotten={1: 1.0, 2: 1.0, 3: 1.0}, gained={1: -1.0, 2: -1.0, 3: -1.2})
    later = frame[frame.step == 200].assign(step=300)
    unfinished = pd.concat([frame, later[later.seed < 3]])
    undefined = pd.concat([frame, later.assign(value=later.value.where(later.seed < 3))])
    # One record of a run is of both intervals.
    both = frame.seed.eq(3) & frame.step.eq(200) & frame.source.eq("host")
    rarer = frame[~(frame.seed.eq(3) & frame.step.eq(100))].assign(
        value=frame.value.where(~both, 2.0)
    )
    for one in (unfinished, undefined, rarer):
        (row,) = budgets(one, since=0.0).to_dict("records")
        assert (row["forgotten"], row["n_seeds"]) == (pytest.approx(2.0), 3)


def test_a_ratio_to_a_gain_that_is_not_clear_is_undefined() -> None:
    frame = records(forgotten={1: 0.8, 2: 0.9, 3: 1.0}, gained={1: -1.0, 2: 1.0, 3: -0.2})
    assert budgets(frame).ratio.isna().all()


def test_without_measurements_the_remedy_is_named() -> None:
    frame = records(forgotten={1: 1.0}, gained={1: -1.0})
    with refuses(key="records", rule="no loss budget", remedy="`loss_budget: {}`"):
        budgets(frame[frame.metric == "none"])


def test_the_figure_has_a_line_a_source_and_the_change_itself() -> None:
    frame = records(forgotten={1: 0.8, 2: 0.9, 3: 1.0}, gained={1: -1.0, 2: -1.0, 3: -1.2})
    (axis,) = budget(frame).axes
    assert len(axis.lines) >= len({*frame.source.dropna()})
    with refuses(key="records", rule="no loss budget", remedy="`loss_budget: {}`"):
        budget(frame[frame.metric == "none"])
