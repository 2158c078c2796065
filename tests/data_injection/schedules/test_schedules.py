"""Schedules: exact counts of known cases, one frequency in three units, no idle setting.

The counts of any schedule at any step are in test_properties.py.
"""

from __future__ import annotations

import math
import tracemalloc
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses

from data_injection.config import InjectionConfig, ScheduleConfig, TaskConfig
from data_injection.errors import ConfigError
from data_injection.philox import raw_words
from data_injection.plan import compile_plan
from data_injection.schedules import random as random_module
from data_injection.schedules.base import (
    UNITS,
    Geometry,
    Schedule,
    parse_rate,
    rate_in_all_units,
)
from data_injection.schedules.build import SCHEDULES, build_schedule
from data_injection.schedules.random import Bernoulli

BATCH = 16
KEY = "injection.tasks[0].schedule"


def many(num_examples: int) -> settings:
    """The same `num_examples` cases in every run of the suite."""
    return settings(max_examples=num_examples, deadline=None, derandomize=True, database=None)


def schedule(
    *, seed: int = 0, batch_size: int = BATCH, seq_len: int = 32, **fields: Any
) -> Schedule:
    geometry = Geometry(batch_size=batch_size, seq_len=seq_len)
    return build_schedule(ScheduleConfig(**fields), geometry, seed=seed, task="a", key=KEY)


def refusal(name: str = "", /, **fields: Any) -> ConfigError:
    """The error of a schedule that is refused for its field `name`, or as a whole."""
    with pytest.raises(ConfigError) as error:
        schedule(**fields)
    assert error.value.key == (f"{KEY}.{name}" if name else KEY)
    return error.value


def counts(built: Schedule, num_steps: int) -> list[int]:
    return [built.count(step) for step in range(num_steps)]


# -- exact ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "num_wrong"), [("0.7", 2332), ("2.3", 5003)])
def test_float64_floors_would_be_wrong_where_fractions_are_right(rate: str, num_wrong: int):
    number, built = float(rate), schedule(kind="even", rate=rate)
    floats = [math.floor((s + 1) * number) - math.floor(s * number) for s in range(50_000)]
    exact = counts(built, 50_000)
    assert sum(a != b for a, b in zip(floats, exact, strict=True)) == num_wrong
    assert all(sum(exact[s : s + 10]) == 10 * Fraction(rate) for s in range(0, 50_000, 10))


def test_a_tenth_of_an_instance_comes_every_tenth_step():
    assert counts(schedule(rate="1/10"), 40) == [int(s % 10 == 9) for s in range(40)]
    assert schedule(rate=0.1).before(50_000) == 5000


# -- kinds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 10, 20, 50, 100])
def test_the_studys_bursts_put_n_instances_every_n_steps(every: int):
    built = schedule(kind="burst", rate=1, every=every, batch_size=2048)
    assert counts(built, 200) == [every * (s % every == 0) for s in range(200)]
    assert built.before(1000) == 1000
    assert built.peak == every


def test_a_burst_starts_at_its_phase():
    built = schedule(kind="burst", rate="3/4", every=4, phase=2)
    assert counts(built, 12) == [0, 0, 3, 0] * 3


def test_a_window_is_even_inside_and_nothing_outside():
    built = schedule(kind="window", rate="1/2", start=3, stop=8)
    assert counts(built, 12) == [0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0]
    assert schedule(kind="window", rate=2, start=3).before(1000) == 2 * 997


def test_a_trace_has_one_instance_at_every_listed_step():
    built = schedule(kind="trace", steps=[0, 2, 2, 5])
    assert counts(built, 7) == [1, 0, 2, 0, 0, 1, 0]
    assert built.peak == 2
    assert schedule(kind="trace", steps=[]).before(100) == 0


def distinct_in_memory(num: int, span: int, *, seed: int, purpose: str) -> np.ndarray:
    """The definition of a random schedule's rows, as first written: all words at once."""
    if 2 * num > span:
        out = distinct_in_memory(span - num, span, seed=seed, purpose=purpose)
        keep = np.ones(span, dtype=bool)
        keep[out] = False
        return np.flatnonzero(keep)
    chosen = np.zeros(0, dtype=np.int64)
    counter = 0
    while len(chosen) < num:
        words = raw_words(num + 64, seed=seed, purpose=purpose, counter=counter)
        fresh = np.concatenate([chosen, (words % np.uint64(span)).astype(np.int64)])
        _, first = np.unique(fresh, return_index=True)
        chosen = fresh[np.sort(first)]
        counter += 1
    return chosen[:num]


@many(200)
@given(data=st.data(), span=st.integers(1, 3000), seed=st.integers(0, 3))
def test_the_random_rows_read_in_pieces_are_those_of_the_whole_stream(
    data: st.DataObject, span: int, seed: int
):
    num = data.draw(st.one_of(st.integers(0, span), st.just(span // 2), st.just(span)))
    mask = random_module._distinct(num, span, seed=seed, purpose="p")
    assert mask.shape == (span,)
    wanted = distinct_in_memory(num, span, seed=seed, purpose="p")
    assert np.flatnonzero(mask).tolist() == sorted(wanted.tolist())
    assert mask.sum() == num


def test_random_rows_beyond_one_piece_of_words_are_those_of_the_whole_stream():
    num, span = 1_500_000, 3_000_000  # three pieces, the last of them of a second block
    mask = random_module._distinct(num, span, seed=1, purpose="p")
    wanted = distinct_in_memory(num, span, seed=1, purpose="p")
    np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(wanted))


@pytest.mark.parametrize("size", [1, 3, 4, 1000])
def test_words_read_in_pieces_are_the_words_of_the_plan(size: int):
    stream = random_module.word_stream(seed=5, purpose="p", counter=7)
    read = np.concatenate([stream.random_raw(size) for _ in range(4)])
    assert read.tolist() == raw_words(4 * size, seed=5, purpose="p", counter=7).tolist()


def test_the_studys_largest_random_schedule_takes_little_memory():
    tracemalloc.start()
    built = schedule(kind="random", rate=512, stop=5000, batch_size=2048)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert built.before(5000) == 512 * 5000
    # A byte a row and pieces of the words; all words at once took 30 bytes a row.
    assert peak < 5000 * 2048 + 40 * 2**20


def test_another_seed_lays_a_random_schedule_elsewhere():
    fields: dict[str, Any] = {"kind": "random", "rate": "1/2", "stop": 100}
    assert counts(schedule(seed=0, **fields), 100) != counts(schedule(seed=1, **fields), 100)
    assert counts(schedule(seed=0, **fields), 100) == counts(schedule(seed=0, **fields), 100)


def test_random_rows_are_uniform_over_the_span():
    built = schedule(kind="random", rate=4, stop=2000)
    halves = [built.before(1000), built.before(2000) - built.before(1000)]
    # Hypergeometric, a little narrower than binomial(8000, 1/2).
    assert abs(halves[0] - 4000) < 5 * math.sqrt(8000 / 4)
    # Binomial(16, 1/4): variance 3, and one even step is as likely as the next.
    assert abs(np.var(counts(built, 2000)) - 3) < 0.5


def test_the_mean_of_bernoulli_is_its_rate_within_five_sigma():
    steps, rate = 4000, 2
    for seed in range(3):
        counted = counts(schedule(kind="bernoulli", rate=rate, seed=seed), steps)
        sigma = math.sqrt(steps * rate * (1 - rate / BATCH))
        assert abs(sum(counted) - steps * rate) < 5 * sigma
        assert abs(np.var(counted) - rate * (1 - rate / BATCH)) < 0.3, "binomial, not even"


def test_bernoulli_at_the_extremes_is_none_or_all_rows():
    assert counts(schedule(kind="bernoulli", rate=0), 50) == [0] * 50
    assert counts(schedule(kind="bernoulli", rate=BATCH), 50) == [BATCH] * 50


def test_bernoulli_stays_right_when_a_second_thread_extends_it_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
):
    built = schedule(kind="bernoulli", rate=1)
    expected = [schedule(kind="bernoulli", rate=1).before(s) for s in range(0, 2000, 50)]
    raw_words = random_module.raw_words
    questions = [3 * Bernoulli.BLOCK]

    def interrupted(num: int, **arguments: Any) -> np.ndarray:
        if questions:
            built.before(questions.pop())  # what the other thread asks
        return raw_words(num, **arguments)

    monkeypatch.setattr(random_module, "raw_words", interrupted)
    assert built.before(1) == schedule(kind="bernoulli", rate=1).before(1)
    assert [built.before(s) for s in range(0, 2000, 50)] == expected


# -- units -------------------------------------------------------------------------------------


def plan_hash(rate: Any, unit: str, *, batch_size: int, seq_len: int) -> str:
    config = ScheduleConfig(rate=rate, unit=unit)
    return compile_plan(
        InjectionConfig(tasks=[TaskConfig(name="a", num_symbols=4, schedule=config)]),
        batch_size=batch_size,
        seq_len=seq_len,
        epoch_rows=10 * batch_size,
        vocab_size=100,
        eos_token_id=0,
    ).hash


@many(60)
@given(
    batch_size=st.sampled_from([3, 8, 32]),
    seq_len=st.sampled_from([7, 16, 2048]),
    rate=st.fractions(0, 3, max_denominator=1000),
)
def test_one_frequency_in_three_units_is_one_plan(batch_size: int, seq_len: int, rate: Fraction):
    divisors = {"per_step": 1, "per_sequence": batch_size, "per_token": batch_size * seq_len}
    assert set(divisors) == set(UNITS)
    hashes = {
        plan_hash(str(rate / divisor), unit, batch_size=batch_size, seq_len=seq_len)
        for unit, divisor in divisors.items()
    }
    assert len(hashes) == 1


@pytest.mark.parametrize("rate", [0.25, "0.25", "1/4", Decimal("0.25"), Fraction(1, 4), " 2.5e-1 "])
def test_every_way_to_write_a_rate_is_the_same_rate(rate: Any):
    assert parse_rate(rate, key=KEY) == Fraction(1, 4)


def test_a_tenth_of_an_instance_a_step_is_the_studys_rarest_frequency():
    geometry = Geometry(batch_size=2048, seq_len=2048)
    units = rate_in_all_units(Fraction(1, 10), geometry, tokens_per_instance=4)
    assert units["per_step"] == 0.1
    assert units["per_sequence"] == pytest.approx(0.1 / 2048)
    assert f"{units['per_token']:.1e}" == "2.4e-08"
    assert units["task_tokens_per_token"] == pytest.approx(4 * units["per_token"])


def test_1024_instances_a_step_are_the_studys_most_frequent():
    geometry = Geometry(batch_size=2048, seq_len=256)
    assert geometry.batch_size * geometry.seq_len == 524_288
    units = rate_in_all_units(Fraction(1024), geometry, tokens_per_instance=4)
    assert units["task_tokens_per_token"] == 0.0078125
    assert f"{units['task_tokens_per_token']:.1e}" == "7.8e-03"


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate",
    [
        *("nan", "inf", "-inf", "snan", "often", "", "0x10", "1/0", "nan/1", "1/2/3"),
        *(float("nan"), float("inf"), None, True, [1], {}),
    ],
    ids=repr,
)
def test_a_rate_that_is_no_finite_number_is_refused(rate: Any):
    error = refusal("rate", rate=rate)
    assert "a number, a decimal or a fraction" in error.rule
    assert error.value is rate


@pytest.mark.parametrize("rate", [-1, -0.1, "-1/10"])
def test_a_negative_rate_is_refused(rate: Any):
    error = refusal("rate", rate=rate)
    assert (error.rule, error.value) == ("must not be negative", rate)
    assert "0 for none" in error.remedy


@pytest.mark.parametrize("kind", SCHEDULES)
def test_an_unknown_unit_is_refused_with_those_there_are(kind: str):
    fields = {"trace": {"steps": [1]}, "burst": {"rate": 1, "every": 2}}.get(kind, {"rate": 1})
    error = refusal("unit", kind=kind, unit="per_epoch", **fields)
    assert error.value == "per_epoch"
    assert kind == "trace" or "per_sequence" in error.rule


def test_an_unknown_kind_is_refused_with_those_there_are():
    error = refusal("kind", kind="poisson", rate=1)
    assert error.value == "poisson"
    assert all(kind in error.rule for kind in SCHEDULES)


VALUES = {
    "rate": 1, "unit": "per_token", "every": 2, "phase": 1, "start": 1, "stop": 4, "steps": [1],
    "total": 3, "per_batch": 3,
}  # fmt: skip
ALTERNATIVES = ("unit", "total", "per_batch")
"""Fields that exclude the rate, or stand beside it: they have tests of their own below."""


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_field_either_has_an_effect_on_the_kind_or_is_refused(kind: str):
    valid = {name: VALUES[name] for name in SCHEDULES[kind] if name not in ALTERNATIVES}
    plain = schedule(kind=kind, **valid).canonical()
    for name, value in VALUES.items():
        if name not in SCHEDULES[kind]:
            error = refusal(name, kind=kind, **valid, **{name: value})
            assert f"no effect on a '{kind}' schedule" in error.rule
            assert (error.value, error.remedy) == (value, "remove it")
        elif name in ALTERNATIVES:
            assert "rate" in SCHEDULES[kind]
        else:
            other = {"rate": 2, "every": 4, "phase": 0, "start": 0, "stop": 8, "steps": [2]}[name]
            assert schedule(kind=kind, **valid | {name: other}).canonical() != plain


@pytest.mark.parametrize("every", [None, 0, -3])
def test_a_burst_without_an_interval_is_refused(every: int | None):
    error = refusal("every", kind="burst", rate=1, every=every)
    assert (error.rule, error.value) == ("must be at least 1 for a burst schedule", every)


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        ("start", {"kind": "window", "rate": 1, "start": None, "stop": 5}),
        ("start", {"kind": "random", "rate": 1, "start": None, "stop": 5}),
        ("every", {"kind": "burst", "rate": 1, "every": "5"}),
        ("every", {"kind": "burst", "rate": 1, "every": 2.5}),
        ("phase", {"kind": "burst", "rate": 1, "every": 5, "phase": "1"}),
        ("phase", {"kind": "burst", "rate": 1, "every": 5, "phase": None}),
        ("steps", {"kind": "trace", "steps": [1, "2"]}),
    ],
)
def test_values_of_another_type_are_refused(key: str, fields: dict[str, Any]):
    """As plain values bring them, which no OmegaConf has checked."""
    refusal(key, **fields)


def test_bursts_that_stop_are_those_of_the_endless_schedule_until_there():
    endless = schedule(kind="burst", rate=2, every=5, phase=1, batch_size=16)
    for stop in (2, 11, 12):
        cut = schedule(kind="burst", rate=2, every=5, phase=1, stop=stop, batch_size=16)
        counts = [cut.count(step) for step in range(40)]
        assert counts == [endless.count(step) * (step < stop) for step in range(40)]
        assert (cut.gap, endless.gap) == (None, 5)
        assert cut.canonical() == endless.canonical() | {"stop": stop}
        assert cut.label == f"burst every 5 from 1 until {stop}"


@pytest.mark.parametrize("stop", [-1, 0, 1])
def test_bursts_that_stop_before_the_first_are_refused(stop: int):
    error = refusal("stop", kind="burst", rate=1, every=4, phase=1, stop=stop)
    assert (error.rule, error.value) == ("must be after the first burst at step 1", stop)


@pytest.mark.parametrize(
    ("fields", "gap"),
    [
        ({"kind": "even", "rate": 8}, 1),
        ({"kind": "even", "rate": "1/10"}, 10),
        ({"kind": "even", "rate": "2/5"}, None),
        ({"kind": "burst", "rate": 2, "every": 5}, 5),
        ({"kind": "window", "rate": 2, "stop": 5}, None),
        ({"kind": "trace", "steps": [1, 5]}, None),
    ],
)
def test_the_gap_is_told_where_it_is_one_number_all_through(fields: dict, gap: int | None):
    assert schedule(**fields).gap == gap


@pytest.mark.parametrize("phase", [-1, 4, 5])
def test_a_phase_beyond_the_interval_is_refused(phase: int):
    error = refusal("phase", kind="burst", rate=1, every=4, phase=phase)
    assert (error.rule, error.value) == ("must be in [0, 4)", phase)


def test_a_burst_of_a_broken_number_of_instances_is_refused():
    error = refusal(kind="burst", rate="1/2", every=3)
    assert error.value == 1.5
    assert "rate 1/2 x every 3" in error.rule
    assert "choose rate and every" in error.remedy


def test_a_random_total_that_is_not_whole_is_refused():
    error = refusal(kind="random", rate="1/2", start=2, stop=5)
    assert error.value == 1.5
    assert "3 steps at rate 1/2" in error.rule
    assert "choose start and stop" in error.remedy


def test_a_random_schedule_without_an_end_is_refused():
    assert "must be given" in refusal("stop", kind="random", rate=1).rule


@pytest.mark.parametrize("kind", ["random", "bernoulli", "window"])
@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 5), (5, 4)])
def test_an_empty_or_negative_span_is_refused(kind: str, start: int, stop: int):
    error = refusal(kind=kind, rate=1, start=start, stop=stop)
    assert error.value == {"start": start, "stop": stop}
    assert error.rule == "needs 0 <= start < stop"


@pytest.mark.parametrize(("steps", "got", "after"), [([3, 5, 4], 4, 5), ([-1, 4], -1, 0)])
def test_a_trace_that_does_not_ascend_from_zero_is_refused(steps: list[int], got: int, after: int):
    error = refusal("steps", kind="trace", steps=steps)
    assert (error.rule, error.value) == ("must be ascending and not negative", got)
    assert f"after {after}: sort them" in error.remedy


def test_a_trace_without_steps_is_refused_as_a_task_that_never_comes():
    assert refusal("steps", kind="trace").remedy == "give [] for none"


@pytest.mark.parametrize("kind", ["random", "bernoulli"])
def test_a_random_rate_beyond_the_batch_is_refused_with_the_largest_that_fits(kind: str):
    error = refusal("rate", kind=kind, rate=BATCH + 1, stop=10)
    assert error.value == BATCH + 1
    assert error.remedy == f"the largest rate is {BATCH} per_step"


# -- totals and windows ------------------------------------------------------------------------


def timed(num_steps: int | None, **fields: Any) -> Schedule:
    geometry = Geometry(batch_size=BATCH, seq_len=32)
    config = ScheduleConfig(**fields)
    return build_schedule(config, geometry, seed=0, task="a", key=KEY, num_steps=num_steps)


@many(200)
@given(
    total=st.integers(0, 190),
    num_steps=st.integers(30, 300),
    kind=st.sampled_from(["even", "window", "random"]),
    share=st.sampled_from(["0%", "12.5%", "33%", "50%"]),
)
def test_a_total_is_exact_whatever_the_length_and_the_window(
    total: int, num_steps: int, kind: str, share: str
):
    window = {} if kind == "even" else {"start": share, "stop": "90%"}
    built = timed(num_steps, kind=kind, total=total, **window)
    start = 0 if kind == "even" else math.floor(Fraction(share[:-1]) / 100 * num_steps)
    stop = num_steps if kind == "even" else math.floor(Fraction(9, 10) * num_steps)
    assert built.before(num_steps) == built.before(10 * num_steps) == built.promised == total
    assert built.before(start) == 0
    assert built.before(stop) == total
    if kind != "random" and total:
        per_step = [built.count(step) for step in range(start, stop)]
        assert max(per_step) - min(per_step) <= 1, "as evenly as whole numbers allow"
    assert built.rate == Fraction(total, stop - start)


def test_windows_by_step_and_by_share_are_one_schedule():
    by_share = timed(200, kind="window", rate="1/3", start="25%", stop="75%")
    by_step = timed(None, kind="window", rate="1/3", start=50, stop=150)
    assert by_share.canonical() == by_step.canonical()
    assert counts(by_share, 250) == counts(by_step, 250)


def test_so_many_per_batch_every_so_many_steps_until_a_total():
    built = timed(None, kind="burst", per_batch=4, every=10, phase=2, total=10)
    assert {s: n for s, n in enumerate(counts(built, 60)) if n} == {2: 4, 12: 4, 22: 2}
    endless = timed(None, kind="burst", per_batch=4, every=10, phase=2)
    assert (
        endless.canonical() == timed(None, kind="burst", rate="2/5", every=10, phase=2).canonical()
    )
    assert (built.peak, built.gap, built.label) == (4, None, "burst every 10 from 2, 10 in all")


@pytest.mark.parametrize(
    ("name", "fields", "rule"),
    [
        ("rate", {"total": 3, "rate": 1}, "excludes total"),
        ("rate", {"kind": "burst", "every": 3, "per_batch": 3, "rate": 1}, "excludes per_batch"),
        ("total", {"total": -1}, "at least 0"),
        ("total", {"total": True}, "whole number of instances"),
        ("per_batch", {"kind": "burst", "every": 2, "per_batch": 1.5}, "whole number of instances"),
        ("start", {"kind": "window", "rate": 1, "start": "101%"}, '"0%" to "100%"'),
        ("start", {"kind": "window", "rate": 1, "start": "many%"}, '"0%" to "100%"'),
        ("stop", {"kind": "window", "rate": 1, "stop": 1.5}, "counted from 0"),
        ("stop", {"kind": "window", "rate": 1, "stop": "ten"}, "counted from 0"),
    ],
)
def test_totals_and_windows_that_cannot_be_are_refused(name: str, fields: dict, rule: str):
    with refuses(key=f"{KEY}.{name}", value=fields[name], rule=rule):
        timed(100, **fields)


def test_a_total_or_a_window_that_does_not_fit_is_refused():
    with refuses(key=f"{KEY}.total", value=1601, rule="16 rows", remedy="total is 1600"):
        timed(100, kind="random", total=1601)
    window = {"start": "50%", "stop": "50%"}
    with refuses(key=KEY, value=window, rule="0 <= start < stop"):
        timed(100, kind="window", total=1, **window)


@pytest.mark.parametrize(
    ("name", "fields"), [("stop", {"total": 3}), ("start", {"kind": "window", "start": "5%"})]
)
def test_what_depends_on_the_length_is_refused_where_that_is_not_known(name: str, fields: dict):
    with refuses(key=f"{KEY}.{name}", rule="length", remedy="num_steps"):
        timed(None, **{"rate": 1} | fields if "start" in fields else fields)
