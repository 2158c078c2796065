"""Tables of runs drawn from known laws: what a design of runs can identify, before it is paid for.

    runs = draw("chinchilla, isoflop", seed=0)
    fit_law(runs).interval("alpha")                # how sure such runs would make us

The tests of the fits and the measured coverage in docs/scaling.md are made of these.
"""

from __future__ import annotations

import numpy as np

from theory.scaling.law import FLOPS, Array, Law
from theory.scaling.runs import Runs

CHINCHILLA = Law.of(L0=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)
"""Hoffmann et al. 2022, approach 3."""

PAPER = Law.of(L0=1.8, A=2000.0, alpha=0.46, B=8000.0, beta=0.51)
"""The paper's exponents; floor and amplitudes are ours, for losses of 1.9 to 4.3 nats."""


def optimal_params(law: Law, compute: Array) -> Array:
    """The size N at which 6 N optimal_tokens(N) is this compute, in FLOPs."""
    log_ratio = np.log(law.beta) + law.log_B - np.log(law.alpha) - law.log_A
    return np.exp((law.beta * np.log(compute / FLOPS) - log_ratio) / (law.alpha + law.beta))


def grid(sizes: Array, tokens: Array) -> tuple[Array, Array]:
    """N and D of every pair."""
    params, read = np.meshgrid(sizes, tokens)
    return params.ravel(), read.ravel()


def isoflop(law: Law, *, num_sizes: int = 27, span: float = 8.0) -> tuple[Array, Array]:
    """N and D of sizes about the optimum of each of Hoffmann's nine budgets, `span` times both
    ways."""
    budgets = np.array([6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21])[:, None]
    params = optimal_params(law, budgets) * np.geomspace(1 / span, span, num_sizes)
    return params.ravel(), (budgets / FLOPS / params).ravel()


DESIGNS: dict[str, tuple[Law, tuple[Array, Array]]] = {
    "chinchilla, grid": (
        CHINCHILLA,
        grid(np.geomspace(4e7, 1.6e10, 16), np.geomspace(5e8, 5e11, 15)),
    ),
    "chinchilla, isoflop": (CHINCHILLA, isoflop(CHINCHILLA)),
    "paper, grid": (PAPER, grid(np.geomspace(4e6, 4e9, 15), np.geomspace(1e8, 2e11, 16))),
}
"""Law and the (N, D) of its 240 to 243 runs."""


def draw(design: str, *, seed: int, noise: float = 0.01) -> Runs:
    """The runs of a design, log-normal noise on each loss."""
    law, (params, tokens) = DESIGNS[design]
    errors = np.random.default_rng(seed).standard_normal(len(params))
    return Runs.of(params, tokens, law.loss(params, tokens) * np.exp(noise * errors))
