"""The frontier of the runs: it finds the compute-optimal points without being told the law."""

import numpy as np
import pytest
from designs import CHINCHILLA, DESIGNS, draw, grid, optimal_params

from theory.scaling.frontier import fit_frontier
from theory.scaling.runs import Runs


@pytest.mark.parametrize("design", DESIGNS)
def test_points_and_exponents_of_runs_without_noise_are_the_laws(design: str) -> None:
    law, _ = DESIGNS[design]
    found = fit_frontier(draw(design, seed=0, noise=0.0), resamples=10)
    assert len(found.compute) >= 5
    best = optimal_params(law, found.compute)
    assert found.loss == pytest.approx(law.compute_optimal_loss(best), rel=0.004)
    assert found.params == pytest.approx(best, rel=0.1)
    # A cubic in log N is an approximation: what it costs is far below the intervals at 1% noise.
    assert found.with_floor["compute"].exponent == pytest.approx(law.compute_exponent, rel=0.03)
    assert found.with_floor["params"].exponent == pytest.approx(law.alpha, rel=0.15)
    assert found.size_exponent == pytest.approx(law.size_exponent, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS)
def test_the_frontiers_exponents_cover_the_truth_in_44_of_50_draws(design: str) -> None:
    law, _ = DESIGNS[design]
    covered = {"compute": 0, "params": 0}
    for seed in range(50):
        found = fit_frontier(draw(design, seed=seed), resamples=300, seed=seed)
        for name, truth in (("compute", law.compute_exponent), ("params", law.alpha)):
            low, high = found.with_floor[name].exponent_interval
            covered[name] += low <= truth <= high
    print(design, covered)
    assert min(covered.values()) >= 44, covered


def test_a_failed_run_does_not_bend_the_frontier() -> None:
    clean = draw("chinchilla, isoflop", seed=0)
    loss = clean.loss.copy()
    loss[np.random.default_rng(0).choice(len(clean), 12, replace=False)] *= 1.3
    one, two = (
        fit_frontier(runs, resamples=100)
        for runs in (clean, Runs.of(clean.params, clean.tokens, loss))
    )
    low, high = one.with_floor["compute"].exponent_interval
    moved = two.with_floor["compute"].exponent - one.with_floor["compute"].exponent
    assert abs(moved) < 0.5 * (high - low)


def test_a_line_without_a_floor_is_flatter_than_the_excess() -> None:
    found = fit_frontier(draw("chinchilla, grid", seed=0), resamples=100)
    for name in ("params", "compute"):
        assert found.without_floor[name].exponent < found.with_floor[name].exponent
        assert found.without_floor[name].floor == 0


def test_the_same_seed_gives_the_same_intervals() -> None:
    runs = draw("paper, grid", seed=0)
    one, two, three = (fit_frontier(runs, resamples=50, seed=seed) for seed in (1, 1, 2))
    assert one.with_floor == two.with_floor
    assert one.with_floor != three.with_floor


def test_runs_without_a_frontier_are_refused_with_the_remedy() -> None:
    few = grid(np.geomspace(1e8, 1e9, 4), np.geomspace(1e9, 1e10, 4))
    with pytest.raises(ValueError, match="train more sizes at equal compute"):
        fit_frontier(Runs.of(*few, CHINCHILLA.loss(*few)), resamples=10)
    # All far too small for their data: the least loss is at the largest size everywhere.
    small = grid(np.geomspace(1e5, 1e6, 16), np.geomspace(1e12, 1e13, 15))
    with pytest.raises(ValueError, match="train smaller or larger models"):
        fit_frontier(Runs.of(*small, CHINCHILLA.loss(*small)), resamples=10)
