"""Probes of states whose content is known: planted, absent, or given away by other rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from refusals import refuses

from data_injection.errors import DivergedError
from data_injection.tasks.base import Task
from data_injection.tasks.comparison import Comparison
from data_injection.tasks.group_composition import GroupComposition
from data_injection.tasks.modular_addition import ModularAddition
from eval.features.activations import SymbolStates, average_by_symbol, symbol_states
from eval.features.presence import score_features
from eval.features.probes import Probe, planted_r2, probe

S = 100
RANK = np.arange(S, dtype=float)[:, None]


def states_of(*layers: NDArray) -> SymbolStates:
    return SymbolStates(np.stack(layers), np.arange(len(layers[0])))


def noise(width: int, *, seed: int = 0, num: int = S) -> NDArray:
    return np.random.default_rng(seed).normal(size=(num, width))


def planted(values: NDArray, width: int, *, scale: float = 1.0, seed: int = 0) -> NDArray:
    """Noise of unit variance with the standardised columns of `values` along random directions."""
    columns = (values - values.mean(axis=0)) / values.std(axis=0)
    directions = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(width, width)))[0]
    return (
        noise(width, seed=seed, num=len(values)) + scale * columns @ directions[: columns.shape[1]]
    )


def comparison(num: int = 20) -> Comparison:
    return Comparison("cmp", symbols=50 + np.arange(num)[::-1], labels=np.array([1, 2, 3]), seed=0)


@pytest.mark.parametrize("width", [16, 64, 512])
def test_a_planted_order_is_found_where_it_stands_and_nowhere_else(width: int) -> None:
    scale = 10.0 if width > S else 3.0
    found = probe(states_of(noise(width), planted(RANK, width, scale=scale)), RANK, seed=0)
    assert found.r2[1, 0] > 0.75
    assert found.present.tolist() == [[False], [True]]
    assert found.r2[1, 0] > 5 * found.null99[1]


def test_a_noiseless_order_scores_1() -> None:
    exact = RANK @ np.ones((1, 8)) + 3.0
    assert probe(states_of(exact), RANK, seed=0).r2[0, 0] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("width", [16, 32, 64, 128, 256, 512])
def test_noise_holds_no_order_at_any_width(width: int) -> None:
    found = probe(
        states_of(noise(width, seed=width), noise(width, seed=1000 + width)), RANK, seed=0
    )
    assert not found.present.any()
    assert (np.abs(found.r2) < 0.15).all()
    assert (np.abs(found.null_mean) < 0.06).all()


def test_as_many_components_as_symbols_do_not_interpolate() -> None:
    """40 symbols at width 32: 31 components of 32 training symbols, where leave-one-out fails."""
    rank = RANK[:40]
    empty = [probe(states_of(noise(32, seed=i, num=40)), rank, seed=i).r2 for i in range(50)]
    assert np.min(empty) > -0.7
    assert np.mean(empty) > -0.15
    full = [probe(states_of(planted(rank, 32, scale=2.5, seed=i)), rank, seed=i) for i in range(20)]
    assert all(found.present.all() for found in full)
    assert np.min([found.r2 for found in full]) > 0.5


def test_noise_is_called_present_about_once_in_a_hundred() -> None:
    calls = [probe(states_of(noise(16, seed=i, num=20)), RANK[:20], seed=i) for i in range(300)]
    assert sum(bool(found.present.any()) for found in calls) <= 8


def test_states_that_are_all_alike_score_the_mean_and_no_more() -> None:
    found = probe(states_of(np.ones((S, 8))), RANK, seed=0)
    assert -0.1 < found.r2[0, 0] < 0
    assert not found.present.any()


def test_the_scale_and_place_of_the_states_and_the_target_do_not_matter() -> None:
    hidden = planted(RANK, 24)
    one = probe(states_of(hidden), RANK, seed=0)
    other = probe(states_of(1e3 * hidden - 7e3), 5 - 0.01 * RANK, seed=0)
    np.testing.assert_allclose(one.r2, other.r2, atol=1e-4)
    np.testing.assert_allclose(one.null99, other.null99, atol=1e-4)


def test_the_same_seed_gives_the_same_numbers_and_another_other_folds() -> None:
    states = states_of(planted(RANK, 24))
    one, same, other = (probe(states, RANK, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one.r2, same.r2)
    assert one.threshold == same.threshold
    assert one.r2 != other.r2


def naive_r2(hidden_LSD: NDArray, target_S: NDArray, *, seed: int, folds: int = 5) -> float:
    """The same probe written out: scikit-learn, a loop over penalties, no batching."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge

    from data_injection.philox import permutation
    from eval.features.probes import PENALTIES

    hidden_SD, error = hidden_LSD[0], 0.0
    fold_S = permutation(len(hidden_SD), seed=seed, purpose="probe/folds") % folds
    for fold in range(folds):
        train, test = fold_S != fold, fold_S == fold
        num = min(50, hidden_SD.shape[1], train.sum() - 1)
        pca = PCA(num, svd_solver="full").fit(hidden_SD[train])
        scores = pca.transform(hidden_SD[train])
        best = (np.inf, 0.0)
        for penalty in PENALTIES * (scores**2).sum(axis=0).mean():
            ridge = Ridge(alpha=penalty).fit(scores, target_S[train])
            covariance = np.eye(train.sum()) + scores @ scores.T / penalty
            centred = target_S[train] - target_S[train].mean()
            misfit = centred @ np.linalg.solve(covariance, centred)
            unlikely = (train.sum() - 1) * np.log(misfit) + np.linalg.slogdet(covariance)[1]
            held = ((target_S[test] - ridge.predict(pca.transform(hidden_SD[test]))) ** 2).sum()
            best = min(best, (unlikely, held))
        error += best[1]
    return 1 - error / ((target_S - target_S.mean()) ** 2).sum()


@pytest.mark.parametrize("width", [16, 64, 200])
def test_the_batched_closed_form_is_the_probe_written_out(width: int) -> None:
    for hidden in (planted(RANK, width), noise(width, seed=5)):
        states = states_of(hidden)
        expected = naive_r2(states.hidden_LSD, RANK[:, 0], seed=3)
        assert probe(states, RANK, seed=3).r2[0, 0] == pytest.approx(expected, abs=2e-3)


# -- leakage ---------------------------------------------------------------------------------------


def pairs(num: int, width: int) -> tuple[NDArray, NDArray]:
    """States of all ordered pairs from random embeddings of both symbols; (1, num^2, width)."""
    first, second = np.divmod(np.arange(num * num), num)
    hidden = noise(width)[first] + 0.3 * noise(width, seed=1)[second]
    return (hidden + 0.1 * noise(width, seed=2, num=num * num))[None], first


def test_rows_of_one_symbol_cannot_stand_on_both_sides_of_a_split() -> None:
    hidden_LBD, first = pairs(S, 64)
    with pytest.raises(ValueError, match="10000 rows are of 100 symbols: a symbol's other rows"):
        SymbolStates(hidden_LBD, first)
    # What the refusal is for: with the rows split at random, random embeddings tell the order.
    leaked = probe(SymbolStates(hidden_LBD[:, ::10], np.arange(1000)), RANK[first[::10]], seed=0)
    assert leaked.r2[0, 0] > 0.3
    fair = probe(average_by_symbol(hidden_LBD, first), RANK, seed=0)
    assert not fair.present.any()


def test_averages_are_by_symbol_in_order_of_appearance() -> None:
    hidden_LBD = np.arange(10.0).reshape(1, 5, 2)
    states = average_by_symbol(hidden_LBD, np.array([7, 3, 7, 9, 3]))
    assert states.symbols_S.tolist() == [7, 3, 9]
    assert states.hidden_LSD.tolist() == [[[2, 3], [5, 6], [6, 7]]]


def test_states_that_diverged_are_refused() -> None:
    with refuses(key="states", rule="finite", remedy="--step", kind=DivergedError):
        states_of(np.full((S, 4), np.nan))


# -- collecting ------------------------------------------------------------------------------------


def reader(calls: list) -> Callable:
    """A model whose state is its last token, and the token before it."""

    def read(ids_BT):  # type: ignore[no-untyped-def]
        import torch

        calls.append(tuple(ids_BT.shape))
        before = ids_BT[:, -2] if ids_BT.shape[1] > 1 else torch.zeros(len(ids_BT))
        return torch.stack([ids_BT[:, -1].float(), before.float()], dim=1)[None]

    return read


def test_at_position_0_a_symbol_stands_alone() -> None:
    task, calls = comparison(), []
    states = symbol_states(reader(calls), task)
    assert calls == [(20, 1)]
    assert states.symbols_S.tolist() == task.symbols.tolist()
    assert states.hidden_LSD[0, :, 0].tolist() == task.symbols.tolist()


def test_further_on_all_symbols_are_averaged_over_the_same_contexts() -> None:
    task, calls = comparison(), []
    states = symbol_states(reader(calls), task, position=1, contexts=5, seed=3)
    assert calls == [(100, 2)]
    assert states.hidden_LSD[0, :, 0].tolist() == task.symbols.tolist()
    before = states.hidden_LSD[0, :, 1]
    assert (before == before[0]).all()
    other = symbol_states(reader([]), task, position=1, contexts=5, seed=4)
    assert other.hidden_LSD[0, 0, 1] != before[0]


def test_a_position_beyond_the_operands_is_refused() -> None:
    with pytest.raises(ValueError, match=r"position must be in \[0, 2\) for 'cmp', got 2"):
        symbol_states(reader([]), comparison(), position=2)


# -- targets and records ---------------------------------------------------------------------------


def group(num: int, name: str) -> GroupComposition:
    size = 2 if name == "C2" else 5
    labels, symbols = np.arange(1, 1 + size), 50 + np.arange(num)
    return GroupComposition("grp", symbols=symbols, labels=labels, seed=0, params={"group": name})


def test_families_declare_what_their_symbols_hide() -> None:
    addition = ModularAddition("add", symbols=np.arange(100), labels=np.array([]), seed=0)
    assert {k: v.shape for k, v in comparison().targets().items()} == {"order": (20, 1)}
    assert {k: v.shape for k, v in addition.targets().items()} == {"fourier": (100, 50, 2)}
    element = group(20, "C5").targets()["element"]
    assert element.argmax(axis=1).tolist() == [i % 5 for i in range(20)]
    assert element.sum() == 20


def test_the_probe_count_is_the_number_of_planted_elements() -> None:
    element = group(60, "C5").targets()["element"]
    # Two of five elements have a direction of their own.
    states = states_of(noise(32, num=60), planted(element[:, :2], 32, scale=4.0))
    found = probe(states, element, seed=0)
    assert found.units.tolist() == [0, 1]
    assert found.present.sum(axis=1).tolist() == [0, 2]


def rows_of(task: Task, found_layers: list[int]) -> list[dict]:
    import torch

    hidden = np.stack([noise(16, num=20), planted(RANK[:20], 16, scale=5.0), noise(16, num=20)])

    def read(ids_BT: torch.Tensor) -> torch.Tensor:
        place = {token: i for i, token in enumerate(task.symbols.tolist())}
        return torch.from_numpy(hidden[:, [place[t] for t in ids_BT[:, -1].tolist()]])

    return score_features(read, task, layers=found_layers, seed=0)


def test_records_say_layer_target_and_null_of_every_number() -> None:
    rows = rows_of(comparison(), [1, 2])
    by_key = {(row["metric"], row.get("layer")): row for row in rows}
    names = ["order_r2", "order_r2_null_mean", "order_r2_null99", "probe_count"]
    assert set(by_key) == {(n, layer) for n in names for layer in (1, 2)} | {("probe_count", None)}
    assert all(row["group"] == "order" and row["position"] == 0 for row in rows)
    assert by_key["order_r2", 1]["value"] > 0.7 > 0.5 > by_key["order_r2_null99", 1]["value"]
    assert by_key["order_r2", 2]["value"] < by_key["order_r2_null99", 2]["value"]
    assert [by_key["probe_count", layer]["value"] for layer in (1, 2, None)] == [1, 0, 1]
    assert by_key["probe_count", None]["present"] == [1]
    assert by_key["probe_count", None]["units"] == 1


def test_a_negative_r2_is_recorded_as_it_is() -> None:
    rows = rows_of(comparison(), [0, 2])
    values = [row["value"] for row in rows if row["metric"] == "order_r2"]
    assert min(values) < 0


@pytest.mark.parametrize(
    ("target", "options", "said"),
    [
        (RANK[:50], {}, r"for 100 symbols, got \(50, 1\)"),
        (RANK[:, 0], {}, r"shape \(symbols, units\)"),
        (np.ones((S, 2)), {}, r"units \[0, 1\] are not"),
        (RANK * np.nan, {}, "must be finite"),
        (RANK, {"permutations": 199}, "permutations must be at least 200, got 199"),
        (RANK, {"folds": 51}, "51 folds need at least two symbols each, got 100"),
    ],
)
def test_what_cannot_be_probed_is_refused(target: NDArray, options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        probe(states_of(noise(8)), target, seed=0, **options)


def test_best_is_the_unit_the_null_is_of() -> None:
    found = Probe(np.array([[0.1, 0.4], [-0.2, 0.3]]), np.zeros(2), np.zeros(2), 0.35)
    assert found.best.tolist() == [0.4, 0.3]
    assert found.units.tolist() == [1]


def test_the_same_signal_gives_less_in_a_wider_state_and_the_planted_line_says_how_much() -> None:
    line = [planted_r2(width) for width in (16, 64, 512)]
    assert line[0] == pytest.approx(0.75, abs=0.05)
    assert line[2] == pytest.approx(0.37, abs=0.08)
    assert line[0] > line[1] > line[2]
    assert planted_r2(64, amplitude=30.0) > 0.98
    assert planted_r2(64, amplitude=0.0) < 0.05
