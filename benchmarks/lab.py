"""What closed-form gradients and the ensemble dimension save: the lab's students beside autograd.

    OMP_NUM_THREADS=1 python benchmarks/lab.py --out theory.md

Status 1 if a promise is broken. One thread; ours and the loop in turns, both warm and on the same
draws of tasks and inputs; CPU seconds of the process, medians over the rounds, of ratios too.
"ours" is JointStudents.run, drawing included. "loop" is what one would write first: seed after
seed, loss.backward(), a step of SGD; in exact mode of sum_k f_k ||W_k - V_k U^T||^2 written out.
That forms a matrix as large as all tasks' weights; "gram" is a cleverer loop, of the same loss
multiplied out so that only U^T U is formed. The promise is held to the faster of the two.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from theory.lab.student import JointStudents, initial_weights
from theory.mixture import Mixture, power_law
from theory.stream import steady

MIXTURE = power_law(32, 8, a=1.25, b=0.9, num_inputs=512)
EXACT_TIMES = 3.0
SAMPLED_TIMES = 1.0


@dataclass(frozen=True)
class Cell:
    """One mode, width and number of seeds: ms a step of all seeds, and ratios loop / ours."""

    mode: str
    width: int
    num_seeds: int
    ours: float
    loop: float
    ratios: tuple[float, ...]
    gram: float
    """Median ratio of the loop with the loss multiplied out; sampled: the same loop."""

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def least(self) -> float:
        """The promised ratio; 0 where nothing is promised."""
        if self.mode == "sampled":
            return SAMPLED_TIMES
        return EXACT_TIMES if self.width <= 64 else 0.0

    @property
    def kept(self) -> bool:
        return min(self.ratio, self.gram) >= self.least


class AutogradLoop:
    """Students one after the other, traced; fed from the draws of a JointStudents."""

    def __init__(self, mixture: Mixture, fed: JointStudents, *, gram: bool = False) -> None:
        self.fed, self.mixture, self.gram = fed, mixture, gram
        amplitude = fed.amplitude_F1[:, 0]
        self.target = torch.zeros(mixture.num_features, mixture.num_inputs)
        self.target[:, : mixture.num_features] = torch.diag(amplitude)
        self.students = []
        for seed in fed.seeds:
            U, V = initial_weights(mixture, fed.width, seed=seed, init=0.01)
            weights = [U.requires_grad_(True), V.requires_grad_(True)]
            self.students.append((weights, torch.optim.SGD(weights, lr=fed.rate)))

    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            if self.fed.mode == "exact":
                self._exact_step(self.fed._tasks.shares())
            else:
                self._sampled_step(self.fed._tasks.masks(), self.fed._inputs.next())

    def _exact_step(self, share_EF1: Tensor) -> None:
        for ((U, V), optimizer), share in zip(self.students, share_EF1, strict=True):
            optimizer.zero_grad()
            if self.gram:
                amplitude, own = self.fed.amplitude_F1, U[: len(V)]
                loss = (share * V * (V @ (U.T @ U) - 2 * amplitude * own)).sum()
            else:
                loss = (share * (self.target - V @ U.T).square()).sum()
            loss.backward()
            optimizer.step()

    def _sampled_step(self, mask_EBF: Tensor, X_EBD: Tensor) -> None:
        for ((U, V), optimizer), mask, X in zip(self.students, mask_EBF, X_EBD, strict=True):
            optimizer.zero_grad()
            target = X[:, : self.mixture.num_features] * self.fed.amplitude_F1[:, 0]
            error = (X @ U @ V.T - target) * mask
            (error.square().sum() / len(X)).backward()
            optimizer.step()


def seconds(run: Callable[[int], None], num_steps: int) -> float:
    # For both sides: without it the loop is another 5 to 20 times slower once features have decayed
    # to denormal numbers, which would say nothing of gradients or ensembles.
    torch.set_flush_denormal(True)
    start = time.process_time()
    run(num_steps)
    return time.process_time() - start


def measure(mode: Any, width: int, num_seeds: int, *, rounds: int, steps: int) -> Cell:
    """Warm-up, then rounds of ours and the loops, in turns of reversed order."""
    phases = steady(MIXTURE, (rounds + 1) * steps + 64)

    def students() -> JointStudents:
        return JointStudents(
            MIXTURE, width, seeds=range(num_seeds), phases=phases, mode=mode,
            rate=1.0 if mode == "exact" else 0.05,
        )  # fmt: skip

    runs: dict[str, Callable[[int], None]] = {
        "ours": students().run,
        "loop": AutogradLoop(MIXTURE, students()).run,
    }
    if mode == "exact":
        runs["gram"] = AutogradLoop(MIXTURE, students(), gram=True).run
    for run in runs.values():
        seconds(run, steps)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        order = list(runs) if turn % 2 else list(reversed(runs))
        for name in order:
            times[name].append(seconds(runs[name], steps) / steps * 1e3)
    ratios = tuple(b / a for a, b in zip(times["ours"], times["loop"], strict=True))
    beside = times.get("gram", times["loop"])
    gram = median(b / a for a, b in zip(times["ours"], beside, strict=True))
    medians = median(times["ours"]), median(times["loop"])
    return Cell(mode, width, num_seeds, *medians, ratios, gram)


def row(cell: Cell) -> tuple[str, ...]:
    return (
        cell.mode, str(cell.width), str(cell.num_seeds), f"{cell.ours:.2f}", f"{cell.loop:.2f}",
        f"{cell.ratio:.2f}", f"{min(cell.ratios):.2f} to {max(cell.ratios):.2f}",
        f"{cell.gram:.2f}", f"at least {cell.least:g}" if cell.least else "-",
    )  # fmt: skip


COLUMNS = (
    *("mode", "width", "seeds", "ours, ms a step", "loop, ms a step", "faster by", "span"),
    *("than gram", "promise"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="about so long a round of ours")
    parser.add_argument("--out", type=Path, help="write the cells to a .md file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cells = []
    for mode, widths, ensembles in (
        ("exact", (8, 16, 32, 64, 128, 256), (5, 10)),
        ("sampled", (8, 16, 32, 64, 128, 256), (5,)),
    ):
        for width in widths:
            for num_seeds in ensembles:
                probe = measure(mode, width, num_seeds, rounds=1, steps=20)
                steps = max(10, int(args.seconds * 1e3 / probe.ours))
                cell = measure(mode, width, num_seeds, rounds=args.rounds, steps=min(steps, 200))
                cells.append(cell)
    table = Table(*COLUMNS)
    for cell in cells:
        table.add_row(*row(cell), style="" if cell.kept else "bold red")
    Console().print(table)
    if args.out is not None:
        lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *map(row, cells)]
        args.out.write_text("".join("| " + " | ".join(line) + " |\n" for line in lines))
    sys.exit(0 if all(cell.kept for cell in cells) else 1)


if __name__ == "__main__":
    main()
