"""Theorem 4 and Corollary 5: acceptance check 10."""

from __future__ import annotations

import numpy as np
import pytest

from theory.bounds import (
    GradientBounds,
    covariance,
    gradient_bounds,
    residual_at_optimum,
    weakest_common_utility,
)
from theory.mixture import Mixture, power_law
from theory.utility import order_by_utility


def random_basis(rng: np.random.Generator, inputs: int, width: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((inputs, width)))[0]


def limits(bounds: GradientBounds) -> list[float]:
    return [bounds.split, bounds.operator, bounds.trace, bounds.residual_norm]


def test_the_gradient_never_exceeds_a_bound() -> None:
    """Check 10: 2000 random encoders and sets of tasks; the worst ratio is at most 1 + 1e-9."""
    rng = np.random.default_rng(41)
    worst = 0.0
    for _ in range(2000):
        num_tasks, rank = int(rng.integers(1, 6)), int(rng.integers(1, 4))
        spectra = -np.sort(-rng.lognormal(sigma=1.0, size=(num_tasks, rank)), axis=1)
        inputs = num_tasks * rank + int(rng.integers(1, 5))
        mixture = Mixture(rng.dirichlet(np.ones(num_tasks)), spectra, inputs)
        basis = random_basis(rng, inputs, int(rng.integers(1, inputs)))
        tasks = rng.choice(num_tasks, size=int(rng.integers(1, num_tasks + 1)), replace=False)
        bounds = gradient_bounds(basis, mixture, tasks=tasks.tolist())
        worst = max(worst, *[bounds.norm / limit for limit in limits(bounds)])
    assert worst <= 1 + 1e-9
    assert worst > 0.99  # and the bound is tight somewhere, or this would not be much of a test


def test_the_split_bound_is_an_equality_at_rank_one() -> None:
    """Check 10, to 1e-12."""
    rng = np.random.default_rng(42)
    for _ in range(200):
        mixture = power_law(5, 1, a=1.0, b=1.0, num_inputs=9)
        basis = random_basis(rng, 9, int(rng.integers(1, 9)))
        bounds = gradient_bounds(basis, mixture, tasks=[int(rng.integers(5))])
        assert bounds.norm == pytest.approx(bounds.split, abs=1e-12)


def test_the_norm_is_that_of_the_formula_written_out() -> None:
    rng = np.random.default_rng(43)
    mixture = power_law(4, 3, a=1.0, b=0.8, num_inputs=15)
    basis = random_basis(rng, 15, 6)
    moment = np.diag(np.concatenate([covariance(mixture, [0, 2]), np.zeros(3)]))
    outside = np.eye(15) - basis @ basis.T
    bounds = gradient_bounds(basis, mixture, tasks=[0, 2])
    assert bounds.norm == pytest.approx(2 * np.linalg.norm(outside @ moment @ basis), abs=1e-12)
    assert bounds.residual == pytest.approx(np.trace(outside @ moment), abs=1e-12)
    assert bounds.residual_norm == pytest.approx(2 * np.linalg.norm(outside @ moment), abs=1e-12)


def test_the_residual_falls_strictly_with_width() -> None:
    """Check 10, over the widths 8 to 256 and every task set that matters."""
    for mixture, common in (
        (power_law(32, 8, a=1.0, b=1.0), 8),
        (power_law(32, 8, a=1.25, b=0.9), 31),
    ):
        widths = (8, 16, 32, 64, 128, 256)
        residuals = [residual_at_optimum(mixture, w, tasks=range(common)) for w in widths]
        assert (np.diff(residuals) < 0).all()
        assert residuals[-1] == 0.0


def test_the_gradient_vanishes_at_the_optimum_of_every_width() -> None:
    """The reason why Corollary 5 speaks of the bound, and not of the norm at the optimum."""
    mixture = power_law(6, 4, a=1.1, b=0.8, num_inputs=30)
    for width in (2, 8, 20):
        basis = np.eye(30)[:, order_by_utility(mixture)[:width]]
        bounds = gradient_bounds(basis, mixture, tasks=range(6))
        assert bounds.norm == pytest.approx(0.0, abs=1e-12)
        assert bounds.operator > 0


@pytest.mark.parametrize("width", [2, 5, 12])
def test_the_response_to_a_tilt_is_the_weakest_common_utility(width: int) -> None:
    """Cor. 5: ||G_F|| = mu_N sin 2t, pointing exactly against the rare task's gradient."""
    mixture = power_law(5, 4, a=1.3, b=0.7, num_inputs=24)
    rare, angle = 4, 0.3
    common = [flat for flat in order_by_utility(mixture) if flat // 4 != rare]
    basis = np.eye(24)[:, common[:width]]
    tilted = basis.copy()
    tilted[:, -1] = np.cos(angle) * basis[:, -1] + np.sin(angle) * np.eye(24)[rare * 4]
    outside = np.eye(24) - tilted @ tilted.T

    def gradient(tasks: list[int]) -> np.ndarray:
        moment = np.concatenate([covariance(mixture, tasks), np.zeros(4)])
        return -2 * outside @ (moment[:, None] * tilted)

    common_gradient, rare_gradient = gradient([0, 1, 2, 3]), gradient([rare])
    expected = weakest_common_utility(mixture, width, task=rare) * np.sin(2 * angle)
    assert np.linalg.norm(common_gradient) == pytest.approx(expected, abs=1e-12)
    cosine = (common_gradient * rare_gradient).sum()
    cosine /= np.linalg.norm(common_gradient) * np.linalg.norm(rare_gradient)
    assert cosine == pytest.approx(-1.0, abs=1e-9)


def test_the_weakest_common_utility_falls_with_width_to_zero() -> None:
    mixture = power_law(32, 8, a=1.25, b=0.9)
    found = [weakest_common_utility(mixture, width, task=31) for width in range(1, 260)]
    assert (np.diff(found) <= 0).all()
    assert found[247] > 0
    assert found[248] == 0


def test_a_basis_that_is_not_orthonormal_is_refused() -> None:
    with pytest.raises(ValueError, match="orthonormal columns"):
        gradient_bounds(2 * np.eye(4), power_law(2, 2, a=1.0, b=1.0), tasks=[0])
