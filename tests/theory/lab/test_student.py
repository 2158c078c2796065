"""The jointly trained student: acceptance checks 1 and 5, its gradients, and what seeds mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from theory.lab.measures import feature_losses, leverage, population_loss, r_squared, retained
from theory.lab.student import JointStudents, compress_nuisance, encoder_gradient, initial_weights
from theory.mixture import Mixture, power_law
from theory.stream import bursts, steady
from theory.utility import critical_widths, optimal_loss, retained_signal

SMALL = power_law(4, 3, a=1.1, b=0.7, num_inputs=16)


def random_problem(seed: int) -> tuple[Mixture, list[Tensor], Tensor]:
    """A mixture in a random basis of d = 14 inputs: its tasks W_k (m, d), and M (d, d). fp64."""
    rng = np.random.default_rng(seed)
    mixture = power_law(4, 3, a=1.1, b=0.7, num_inputs=14)
    blocks = np.linalg.qr(rng.standard_normal((14, 14)))[0][:, :12].reshape(14, 4, 3)
    weights = []
    for task in range(4):
        rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        scaled = np.sqrt(mixture.spectra[task])[:, None] * blocks[:, task].T
        weights.append(torch.from_numpy(rotation @ scaled))
    moment = sum(pi * w.T @ w for pi, w in zip(mixture.frequencies, weights, strict=True))
    assert isinstance(moment, Tensor)
    return mixture, weights, moment


def loss_at_best_decoders(U: Tensor, mixture: Mixture, weights: list[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=U.dtype)
    for pi, task in zip(mixture.frequencies, weights, strict=True):
        decoder = task @ U @ torch.linalg.inv(U.T @ U)
        total = total + pi * (task - decoder @ U.T).square().sum()
    return total


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_is_what_the_projector_leaves_and_its_gradient_the_closed_form(seed: int) -> None:
    """Check 1: |L(U) - (Tr M - Tr P M)| < 1e-9, autograd = -2 (I-P) M U (U^T U)^-1 within 1e-9."""
    mixture, weights, moment = random_problem(seed)
    U = torch.from_numpy(np.random.default_rng(seed + 50).standard_normal((14, 5)))
    U.requires_grad_(True)
    loss = loss_at_best_decoders(U, mixture, weights)
    (traced,) = torch.autograd.grad(loss, U)
    gram = torch.linalg.inv(U.T @ U)
    projector = U @ gram @ U.T
    assert abs(loss - (moment.trace() - (projector @ moment).trace())) < 1e-9
    closed = -2 * (torch.eye(14).double() - projector) @ moment @ U @ gram
    assert (traced - closed).abs().max() < 1e-9


def test_inputs_of_a_tasks_own_block_alone_would_make_the_theory_false() -> None:
    """The pitfall: with x = B_k z one block's width serves every task, and nothing competes."""
    mixture = power_law(4, 3, a=1.0, b=0.5)
    blocks = np.eye(12).reshape(12, 4, 3)
    shared = blocks.sum(axis=1) / np.sqrt(4)  # U = sum_k B_k / sqrt(K), width m = 3
    own_loss = shared_loss = 0.0
    for task in range(4):
        block = blocks[:, task]
        target = np.diag(np.sqrt(mixture.spectra[task])) @ block.T
        decoder = target @ block @ np.linalg.pinv(shared.T @ block)
        # E|y - V U^T x|^2 over x = B_k z, and over x ~ N(0, I) with the best decoder.
        own_loss += mixture.frequencies[task] * np.sum(((target - decoder @ shared.T) @ block) ** 2)
        best = target @ shared @ np.linalg.inv(shared.T @ shared)
        shared_loss += mixture.frequencies[task] * np.sum((target - best @ shared.T) ** 2)
    assert own_loss < 1e-12 < float(optimal_loss(mixture, 3))
    assert shared_loss >= float(optimal_loss(mixture, 3))  # with shared inputs it is a poor encoder


def traced_losses(students: JointStudents, share_EF: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of sum_f share_f ||sqrt(lambda_f) e_f - V_f U^T||^2 by autograd, in fp64."""
    U = students.U_EDN.double().requires_grad_(True)
    V = students.V_EFN.double().requires_grad_(True)
    target = torch.zeros(V.shape[1], U.shape[1], dtype=torch.float64)
    target[:, : V.shape[1]] = torch.diag(students.amplitude_F1[:, 0].double())
    error = target - V @ U.mT
    (share_EF[..., None] * error.square()).sum().backward()
    assert U.grad is not None
    assert V.grad is not None
    return U.grad, V.grad


@pytest.mark.parametrize("width", [5, 70])  # batched, and one seed after the other
def test_an_exact_step_is_the_gradient_of_the_population_loss(width: int) -> None:
    mixture = power_law(8, 10, a=1.1, b=0.7, num_inputs=90)
    students = JointStudents(
        mixture, width, seeds=(3, 4), phases=steady(mixture, 100), rate=0.1, init=0.3
    )
    share = students._tasks.shares(peek=True)[..., 0].double()
    U, V = students.U_EDN.double(), students.V_EFN.double()
    traced_U, traced_V = traced_losses(students, share)
    peeked = students.batch_gradient()
    torch.testing.assert_close(peeked.double(), traced_U, rtol=1e-4, atol=1e-5)
    students.run(1)
    torch.testing.assert_close(students.U_EDN.double(), U - 0.1 * traced_U, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(students.V_EFN.double(), V - 0.1 * traced_V, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [5, 70])
def test_a_sampled_step_is_the_gradient_on_its_batch(width: int) -> None:
    mixture = power_law(8, 10, a=1.1, b=0.7, num_inputs=90)
    students = JointStudents(
        mixture, width, seeds=(3, 4), phases=steady(mixture, 100), rate=0.01, mode="sampled",
        init=0.3, batch_size=32,
    )  # fmt: skip
    mask, X = students._tasks.masks(peek=True).double(), students._inputs.next(peek=True).double()
    U = students.U_EDN.double().requires_grad_(True)
    V = students.V_EFN.double().requires_grad_(True)
    target = X[..., :80] * students.amplitude_F1[:, 0].double()
    (((X @ U @ V.mT - target) * mask).square().sum() / 32).backward()
    assert U.grad is not None
    assert V.grad is not None
    peeked = students.batch_gradient()
    torch.testing.assert_close(peeked.double(), U.grad, rtol=1e-4, atol=1e-5)
    students.run(1)
    new_U, new_V = U - 0.01 * U.grad, V - 0.01 * V.grad
    torch.testing.assert_close(students.U_EDN.double(), new_U.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(students.V_EFN.double(), new_V.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["exact", "sampled"])
@pytest.mark.parametrize("width", [6, 12])
def test_a_seed_is_the_same_student_alone_and_among_others(mode: str, width: int) -> None:
    settings = {"phases": steady(SMALL, 150), "rate": 0.05, "mode": mode, "init": 0.1}
    together = JointStudents(SMALL, width, seeds=(1, 2, 3), **settings)
    alone = JointStudents(SMALL, width, seeds=(2,), **settings)
    together.run(100)
    for _ in range(10):  # in pieces, looking ahead in between
        alone.batch_gradient()
        alone.run(10)
    torch.testing.assert_close(together.U_EDN[1], alone.U_EDN[0], rtol=1e-3, atol=1e-5)
    assert (together.U_EDN[0] - together.U_EDN[1]).abs().max() > 0.01


def test_a_task_gradient_is_that_of_its_own_loss() -> None:
    students = JointStudents(SMALL, 5, seeds=(7,), phases=steady(SMALL, 50), rate=0.1, init=0.2)
    students.run(20)
    share = torch.zeros(1, 12, dtype=torch.float64)
    share[:, 6:9] = 1.0
    traced, _ = traced_losses(students, share)
    found = students.task_gradient(np.array([0.0, 0.0, 1.0, 0.0]))
    torch.testing.assert_close(found.double(), traced, rtol=1e-4, atol=1e-6)


def test_fewer_nuisance_rows_give_the_same_trajectory_in_exact_mode() -> None:
    """In exact mode only the Gram matrix of the nuisance rows matters: a rotation is a symmetry."""
    mixture = power_law(4, 3, a=1.1, b=0.7, num_inputs=60)
    U, V = initial_weights(mixture, 5, seed=9, init=0.2)
    small = compress_nuisance(U, 12)
    assert small.shape == (17, 5)
    amplitude = torch.tensor(np.sqrt(mixture.spectra).reshape(-1, 1)).float()
    share = torch.full((12, 1), 0.25)
    for _ in range(30):
        pull = encoder_gradient(U, V, share, amplitude)
        U_small = small - 0.1 * encoder_gradient(small, V, share, amplitude)
        back = 2 * share * (V @ (U.T @ U) - amplitude * U[:12])
        U, small, V = U - 0.1 * pull, U_small, V - 0.1 * back
    torch.testing.assert_close(U.T @ U, small.T @ small, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(U[:12], small[:12], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(leverage(U, 12), leverage(small, 12), atol=1e-5)


def test_measures_of_the_best_student_are_those_of_the_theory() -> None:
    width = 7
    kept = critical_widths(SMALL).ravel() <= width
    amplitude = torch.tensor(np.sqrt(SMALL.spectra).ravel())
    U = torch.eye(16, dtype=torch.float64)[:, np.flatnonzero(kept)]
    V = amplitude[:, None] * U[:12]
    assert population_loss(U, V, SMALL) == pytest.approx(float(optimal_loss(SMALL, width)))
    spanned = leverage(U, 12)
    assert (spanned == kept).all()
    np.testing.assert_allclose(retained(spanned, SMALL)[0], retained_signal(SMALL, width))
    np.testing.assert_allclose(r_squared(U, V, SMALL), kept.astype(float), atol=1e-12)


def test_r_squared_is_at_most_the_leverage() -> None:
    """No decoder can say more of a feature than the encoder spans."""
    students = JointStudents(SMALL, 5, seeds=(1, 2), phases=steady(SMALL, 300), rate=0.3)
    students.run(200)
    U, V = students.U_EDN, students.V_EFN
    assert (r_squared(U, V, SMALL) <= leverage(U, 12) + 1e-6).all()
    assert (feature_losses(U, V, SMALL) >= 0).all()


def test_leverage_of_a_deficient_encoder_counts_its_span() -> None:
    U = torch.zeros(6, 3, dtype=torch.float64)
    U[0, 0] = U[0, 1] = 1.0  # rank one, one column zero
    np.testing.assert_allclose(leverage(U, 4), [1.0, 0.0, 0.0, 0.0], atol=1e-12)


def test_a_burst_brings_the_task_alone_at_its_long_run_frequency() -> None:
    mixture = power_law(32, 8, a=1.0, b=1.0)
    phases = bursts(mixture, 31, gap=2000, cycles=3)
    assert phases.num_steps == 6000
    per_step = phases.distributions[phases.of_step][:, 31]
    assert per_step.reshape(3, 2000)[:, -15:].min() == 1.0
    assert per_step.mean() == pytest.approx(mixture.frequencies[31], rel=0.03)
    with pytest.raises(ValueError, match="gap must be longer than its burst"):
        bursts(mixture, 0, gap=1, cycles=1)


def test_a_rate_that_diverges_is_said() -> None:
    students = JointStudents(SMALL, 4, seeds=(1,), phases=steady(SMALL, 500), rate=30.0, init=0.3)
    with pytest.raises(FloatingPointError, match="lower the learning rate, 30"):
        students.run(400)


def agreement(width: int, steps: int, seeds: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Share of tasks on the predicted side, and loss over optimum, per seed: config A, eta = 1."""
    mixture = power_law(32, 8, a=1.25, b=0.9, num_inputs=512)
    students = JointStudents(mixture, width, seeds=seeds, phases=steady(mixture, steps), rate=1.0)
    students.run(steps)
    spanned = leverage(students.U_EDN, 256).reshape(len(seeds), 32, 8)[:, :, 0]
    right = (spanned > 0.5) == (critical_widths(mixture)[:, 0] <= width)
    loss = population_loss(students.U_EDN, students.V_EFN, mixture)
    return right.mean(axis=1), loss / float(optimal_loss(mixture, width))


FRESH = (7001, 7002, 7003)
"""Seeds that nothing was tuned on."""


@pytest.mark.parametrize("width", [8, 16, 32])
def test_joint_training_learns_exactly_the_predicted_tasks(width: int) -> None:
    """Check 5: config A, eta = 1, 6000 steps: agreement 1.0, loss within .2 % of the optimum."""
    right, ratio = agreement(width, 6000, FRESH)
    assert (right == 1.0).all()
    assert (ratio <= 1.002).all()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "steps", "least"), [(64, 6000, 0.90), (128, 4000, 0.96)])
def test_joint_training_learns_nearly_the_predicted_tasks_at_large_widths(
    width: int, steps: int, least: float
) -> None:
    """Check 5, at N = 64 and 128: what is missing is not swapped in yet."""
    right, _ = agreement(width, steps, FRESH)
    assert right.mean() >= least
