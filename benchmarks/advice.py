"""How wide and how honest the advisor's intervals are, by the sweep's design, on planted surfaces.

    python benchmarks/advice.py            # half a minute of CPU time on one core

Beside the interval that is used (leave-one-run-out jackknife, Student's t, Fieller) stands the
percentile bootstrap over runs, which was tried first: it covers too little with few seeds.
"""

from __future__ import annotations

import sys
from itertools import product

import numpy as np
import pandas as pd

from theory.advice.firth import firth
from theory.advice.surface import fit_surface
from theory.advice.thresholds import threshold

DESIGNS = {
    "3 sizes x 3 seeds x 5 rates": ((1e4, 4e4, 1.6e5), 3, (0.5, 1, 2, 4, 8)),
    "4 sizes x 3 seeds x 4 rates": ((1e4, 4e4, 1.6e5, 6.4e5), 3, (1, 2, 4, 8)),
    "4 sizes x 5 seeds x 6 rates": ((1e4, 4e4, 1.6e5, 6.4e5), 5, (0.25, 0.5, 1, 2, 4, 8)),
}
SLOPES = (1.0, 3.0, 10.0)
"""Of the log odds per octave of frequency: gentle, a staircase, a cliff."""

OF_RUN = (0.0, 1.0)
"""Spread of a run's own effect, in units of the slope."""

TRUTH = 2.0
RESAMPLES = 200


def main(draws: int = 100) -> None:
    print("| design | slope | run's effect | answered | covered | octaves | bootstrap covered |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for (name, design), slope, of_run in product(DESIGNS.items(), SLOPES, OF_RUN):
        answered, covered, octaves, boot = 0, 0, [], 0
        for seed in range(draws):
            table = planted(seed, *design, slope=slope, of_run=of_run * min(slope, 3.0))
            found = threshold(fit_surface(table), of="frequency", at={"params": 4e4})
            boot += bootstrap_covers(table, np.random.default_rng(seed))
            if found.status == "inside":
                answered += 1
                covered += found.low <= TRUTH <= found.high
                octaves.append(np.log2(found.high / found.low))
        print(
            f"| {name} | {slope:g} | {of_run:g} | {answered} of {draws} | {covered / answered:.2f} "
            f"| {np.median(octaves):.2f} | {boot / draws:.2f} |",
            flush=True,
        )


def planted(
    seed: int, sizes: tuple, num_seeds: int, rates: tuple, *, slope: float, of_run: float
) -> pd.DataFrame:
    """Runs whose chance to learn is one half at rate 2 for 40K parameters."""
    rng = np.random.default_rng(10_000 + seed)
    rows = []
    for size, model_seed in product(sizes, range(num_seeds)):
        own = rng.normal(0, of_run) if of_run else 0.0
        for rate in rates:
            odds = slope * (np.log2(rate / TRUTH) + 0.6 * np.log2(size / 4e4)) + own
            learned = float(rng.random() < 1 / (1 + np.exp(-odds)))
            rows.append((size, rate, f"{size} {model_seed}", model_seed, learned))
    return pd.DataFrame(rows, columns=["params", "frequency", "run", "seed", "learned"])


def bootstrap_covers(table: pd.DataFrame, rng: np.random.Generator) -> bool:
    """Whether the percentile interval over runs, resampled within each size, holds the truth."""
    logs = np.log2(table[["params", "frequency"]].to_numpy())
    design = np.column_stack([np.ones(len(table)), logs - logs.mean(axis=0)])
    run = pd.factorize(table.run)[0]
    size_of_run = table.groupby(run).params.first().to_numpy()
    weights = np.zeros((RESAMPLES, run.max() + 1))
    for size in np.unique(size_of_run):
        of_size = np.flatnonzero(size_of_run == size)
        equal = np.full(len(of_size), 1 / len(of_size))
        weights[:, of_size] = rng.multinomial(len(of_size), equal, size=RESAMPLES)
    beta = firth(design, table.learned.to_numpy(), weights[:, run])
    at = np.log2(4e4) - logs[:, 0].mean()
    with np.errstate(divide="ignore"):
        octaves = -(beta[:, 0] + beta[:, 1] * at) / beta[:, 2] + logs[:, 1].mean()
    low, high = np.quantile(octaves[beta[:, 2] > 0], [0.025, 0.975])
    return bool(low <= np.log2(TRUTH) <= high)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
