"""Plans worked out by hand, and what every plan must satisfy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses

from launch.yaml_file import from_mapping
from theory.advice.mixture_plan import HostText, MixturePlan, PlannedTask, Rung
from theory.advice.mixture_planner import (
    Way,
    calibrated,
    learned_by_rung,
    required_widths,
    ways_in,
)

RUNGS = (Rung("small", 4, 1e5), Rung("middle", 8, 4e5), Rung("large", 64, 2e7))


def flat(name: str, frequency: float, features: int, **change) -> PlannedTask:
    """Of one token an instance: frequencies here are large, and 4 would fill the stream."""
    return PlannedTask(
        name, frequency, spectrum=(1.0,) * features, **({"tokens_per_instance": 1} | change)
    )


def plan(**change) -> MixturePlan:
    """Four tasks of two equal features each: utilities .2, .15, .1, .05, no ties across tasks."""
    tasks = [flat(name, f, 2) for name, f in zip("abcd", (0.4, 0.3, 0.2, 0.1), strict=True)]
    values = {"tasks": tuple(tasks), "rungs": RUNGS, "features_per_d_model": 1.0, "tokens": 1e6}
    return MixturePlan(**(values | change))


def test_tasks_take_room_in_order_of_utility() -> None:
    assert required_widths(plan()) == {"a": 2, "b": 4, "c": 6, "d": 8}
    table = learned_by_rung(plan()).set_index(["rung", "task"]).learned
    assert table["small"].tolist() == [True, True, False, False]
    assert table["middle"].all()


def test_a_complex_task_needs_more_room_at_equal_frequency() -> None:
    mixed = plan(tasks=(flat("simple", 0.5, 2), flat("complex", 0.5, 8)))
    # .25 twice, then eight of .0625, of which half are enough; ties count against it.
    assert required_widths(mixed) == {"simple": 2, "complex": 10}


def test_the_least_frequency_just_outranks_and_says_whom_it_pushes_out() -> None:
    """One feature of room: the rare task is in as soon as it outranks the common one."""
    tasks = (flat("common", 0.3, 1), flat("rare", 0.1, 1))
    host = HostText(exponent=0.0, features=100)
    one = plan(tasks=tasks, host=host, rungs=(Rung("one", 1, 1e5), Rung("two", 2, 1e6)))
    by_kind = {way.kind: way for way in ways_in(one, target="rare", rung="one")}
    more = by_kind["frequency"]
    assert more.possible
    assert more.value == pytest.approx(0.3, rel=1e-4)
    assert more.pushed_out == ("common",)
    assert more.extra_tokens == pytest.approx(1e6 * 0.2 / 0.7, rel=1e-3)
    assert more.extra_flops == pytest.approx(6 * 1e5 * more.extra_tokens)
    assert by_kind["width"].value == 1e6
    assert by_kind["width"].extra_flops == pytest.approx(6 * 9e5 * 1e6)
    assert not by_kind["gap"].possible


def test_an_instance_costs_all_its_tokens_and_the_text_must_have_them() -> None:
    """One label in four tokens is predicted; the stream holds a quarter as many instances."""
    host, rungs = HostText(exponent=0.0, features=100), (Rung("one", 1, 1e5),)

    def raised(target: float, **change) -> Way:
        tasks = (flat("common", target, 1), flat("rare", 0.02, 1, **change))
        one = plan(tasks=tasks, host=host, rungs=rungs)
        (way,) = (w for w in ways_in(one, target="rare", rung="one") if w.kind == "frequency")
        return way

    four, one = raised(0.1, tokens_per_instance=4), raised(0.1, tokens_per_instance=1)
    assert four.value == pytest.approx(0.1, rel=1e-4)
    assert one.value == pytest.approx(0.1, rel=1e-4)
    # x instances more: (.02 + x) / (1 + 4 x) = .1
    assert four.extra_tokens == pytest.approx(1e6 * 4 * 0.08 / 0.6, rel=1e-3)
    assert four.extra_flops == pytest.approx(6 * 1e5 * four.extra_tokens)
    assert PlannedTask("said nowhere", 0.1, bits=1.0).tokens_per_instance == 4
    # .3 x 4 of all tokens would be more than there are; what the common task leaves is .7.
    assert raised(0.3, tokens_per_instance=1).possible
    full = raised(0.3, tokens_per_instance=4)
    assert not full.possible
    assert f"up to {0.02 + (1 - 0.3 - 0.08) / 4:.3g}, where no text is left" in full.said
    # A share of the tokens given as a frequency, without its tokens an instance.
    crowd = flat("common", 0.3, 1, tokens_per_instance=4), flat("rare", 0.0, 1)
    first = ways_in(plan(tasks=crowd, host=host, rungs=rungs), target="rare", rung="one")[0]
    assert first.said == "the tasks take 1.2 of the stream: give their tokens_per_instance"


def test_ways_come_cheapest_first_and_impossible_ones_last() -> None:
    tasks = (flat("common", 0.3, 1), flat("rare", 0.1, 1))
    one = plan(
        tasks=tasks, host=HostText(0.0, 100), rungs=(Rung("one", 1, 1e5), Rung("two", 2, 1e6))
    )
    ways = ways_in(one, target="rare", rung="one")
    assert [way.kind for way in ways] == ["frequency", "width", "gap"]
    assert [way.possible for way in ways] == [True, True, False]


def test_a_shorter_gap_brings_a_task_in_at_no_cost() -> None:
    """Host features just below the rare task's utility outgrow it once bursts saturate."""
    host = HostText(exponent=0.0, features=50)
    tasks = (flat("rare", 0.03, 1, gap=33),)
    rungs = (Rung("small", 8, 1e5), Rung("large", 64, 1e7))
    gapped = plan(tasks=tasks, host=host, rungs=rungs, eta=5.0)
    without = replace(gapped, tasks=(flat("rare", 0.03, 1),))
    assert required_widths(without)["rare"] == 1
    assert required_widths(gapped)["rare"] > 8
    way = ways_in(gapped, target="rare", rung="small")[0]
    assert (way.kind, way.possible, way.extra_flops) == ("gap", True, 0.0)
    shorter = replace(gapped, tasks=(flat("rare", 0.03, 1, gap=int(way.value)),))
    assert required_widths(shorter)["rare"] <= 8


def test_a_learned_target_needs_nothing() -> None:
    assert ways_in(plan(), target="a", rung="small") == []


def test_what_no_change_can_do_is_said() -> None:
    """Ten equal features, half of which must fit into a room of one."""
    tasks = (flat("wide", 0.1, 10),)
    narrow = plan(tasks=tasks, host=HostText(1.0, 100), rungs=(Rung("one", 1, 1e5),))
    ways = ways_in(narrow, target="wide", rung="one")
    assert [way.possible for way in ways] == [False, False, False]
    assert "no frequency" in " ".join(way.said for way in ways)


def test_calibration_gives_the_factor_back() -> None:
    stated = plan(features_per_d_model=2.5)
    needed = required_widths(stated)["c"]
    assert calibrated(needed, needed / 2.5) == pytest.approx(2.5)
    with pytest.raises(ValueError, match="above 0"):
        calibrated(0, 4)


frequencies = st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=6).map(
    lambda parts: [0.9 * part / sum(parts) for part in parts]
)


def drawn(shares: list[float]) -> MixturePlan:
    tasks = tuple(
        PlannedTask(f"t{i}", share, exponent=0.5 + 0.2 * i, features=6, tokens_per_instance=1)
        for i, share in enumerate(shares)
    )
    return plan(tasks=tasks, host=HostText(1.3, 200))


@settings(deadline=None, max_examples=25)
@given(shares=frequencies, order=st.randoms(use_true_random=False))
def test_the_order_of_tasks_and_rungs_changes_nothing(shares, order) -> None:
    first = drawn(shares)
    tasks, rungs = list(first.tasks), list(first.rungs)
    order.shuffle(tasks)
    order.shuffle(rungs)
    second = replace(first, tasks=tuple(tasks), rungs=tuple(rungs))
    assert required_widths(second) == required_widths(first)
    key = ["task", "rung"]
    one, two = (learned_by_rung(p).sort_values(key).learned.tolist() for p in (first, second))
    assert one == two


@settings(deadline=None, max_examples=25)
@given(shares=frequencies, times=st.floats(1.01, 1.1))
def test_a_task_that_comes_more_often_never_needs_more_room(shares, times: float) -> None:
    first = drawn(shares)
    more = replace(first.tasks[0], frequency=first.tasks[0].frequency * times)
    second = replace(first, tasks=(more, *first.tasks[1:]))
    assert required_widths(second)["t0"] <= required_widths(first)["t0"]


@settings(deadline=None, max_examples=25)
@given(shares=frequencies, scale=st.floats(0.1, 10.0))
def test_the_unit_of_loss_changes_nothing(shares, scale: float) -> None:
    first = drawn(shares)
    tasks = tuple(replace(task, loss=scale) for task in first.tasks)
    assert first.host is not None
    second = replace(first, tasks=tasks, host=replace(first.host, loss=scale))
    assert required_widths(second) == required_widths(first)


@settings(deadline=None, max_examples=15)
@given(shares=frequencies)
def test_a_raised_frequency_is_enough_and_a_little_less_is_not(shares) -> None:
    one = drawn(shares)
    target = min(one.tasks, key=lambda task: task.frequency).name
    for way in ways_in(one, target=target, rung="middle"):
        if way.kind != "frequency" or not way.possible:
            continue
        for share, enough in ((way.value, True), (way.value * (1 - 1e-3), False)):
            if share < one.task(target).frequency:
                continue
            tasks = tuple(replace(t, frequency=share) if t.name == target else t for t in one.tasks)
            assert (required_widths(replace(one, tasks=tasks))[target] <= 8) == enough


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tasks": (flat("a", 0.7, 2), flat("b", 0.7, 2))}, "sum to 1 or less, got 1.4"),
        ({"tasks": (flat("a", 0.7, 2),)}, "add `host`"),
        ({"tasks": (flat("a", -0.1, 2),)}, r"tasks\[0\] \(a\).frequency"),
        ({"tasks": (flat("a", 0.5, 2), flat("a", 0.5, 2))}, "comes twice"),
        ({"tasks": (PlannedTask("a", 1.0),)}, "one of exponent"),
        ({"tasks": (flat("a", 1.0, 2, bits=3.0),)}, "one of exponent"),
        ({"tasks": (PlannedTask("a", 1.0, bits=3.0),)}, "bits_per_feature"),
        ({"tasks": (PlannedTask("a", 1.0, exponent=1.0),)}, "belong together"),
        ({"tasks": (PlannedTask("a", 1.0, spectrum=(1.0, 2.0)),)}, "from the largest down"),
        ({"tasks": (flat("a", 1.0, 2, gap=5),)}, "gaps need eta"),
        ({"tasks": (flat("a", 1.0, 2, tokens_per_instance=0),)}, "tokens_per_instance must be"),
        ({"tasks": ()}, "at least one each"),
        ({"rungs": (Rung("x", 0, 1e5),)}, "d_model must be above 0"),
        ({"host": HostText(1.0, 0)}, "features must be above 0"),
        ({"host": HostText(1.0, 10**9)}, "keep it to"),
        ({"learned_share": 1.5}, "learned_share"),
        ({"tokens": -1.0}, "tokens must be above 0"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan(**change)


def test_room_for_features_is_never_assumed_in_silence() -> None:
    with pytest.raises(ValueError, match="features_per_d_model must be given"):
        learned_by_rung(plan(features_per_d_model=None))


def test_unknown_targets_rungs_and_keys_are_named() -> None:
    with pytest.raises(ValueError, match="target 'x' is no task"):
        ways_in(plan(), target="x", rung="small")
    with pytest.raises(ValueError, match="rung 'x' is not in rungs"):
        ways_in(plan(), target="d", rung="x")
    with refuses(key="tasks[0].frequencey", rule="no setting", remedy="frequency?"):
        from_mapping(MixturePlan, {"tasks": [{"name": "a", "frequencey": 1.0}], "rungs": []})
    with refuses(key="tasks[0]", rule="lacks frequency", remedy="no default"):
        from_mapping(MixturePlan, {"tasks": [{"name": "a", "bits": 3}], "rungs": []})
    with refuses(key="the settings", rule="lacks rungs"):
        from_mapping(MixturePlan, {"tasks": [{"name": "a", "frequency": 0.1, "bits": 3}]})


def test_bits_are_features_of_equal_weight() -> None:
    by_bits = plan(tasks=(PlannedTask("a", 1.0, bits=21.4),), bits_per_feature=10.0)
    assert np.allclose(by_bits.mixture.spectra, 1 / 3)
