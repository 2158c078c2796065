"""The figures of a report: name, how it is drawn from records, and what a reader must know.

    for figure in draw_figures(frame): (out / figure.name).write_bytes(figure.png)

To add one: a function from records to a Figure that raises ConfigError where they do not hold what
it needs, a line in FIGURES, a test.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from data_injection.errors import ConfigError
from eval.figures.alignment import alignment, causal_map
from eval.figures.budget import budget
from eval.figures.curves import curves
from eval.figures.features import features, presence
from eval.figures.heatmap import heatmap
from eval.figures.interference import interference
from eval.figures.memorization import memorization
from eval.figures.ordering import ordering, ordering_table
from eval.figures.reference import beside_natural
from eval.figures.retention import forgetting, gaps
from eval.figures.style import png, span, svg
from eval.figures.training import SHOWN, training
from eval.interference.budget import budgets
from eval.interference.table import interference_table
from eval.retention.matched_frequency import GROUP, matched_frequency
from eval.retention.retained import retention
from eval.scores.cells import cells
from eval.scores.memorization import METRICS
from eval.scores.rows import run_names
from eval.text import plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

BAND = (
    "Band: 95% over seeds (Student's t), from three seeds on; of two each is drawn, and one has "
    "no interval."
)


@dataclass(frozen=True)
class Drawing:
    """A figure that a report can have."""

    name: str
    """File beside report.html."""

    title: str
    draw: Callable[[pd.DataFrame], Figure]
    """Raises ConfigError where the records do not hold what the figure shows."""

    caption: str
    """Which figure of the study it is, what its symbols mean, and how to read its nulls."""

    metrics: tuple[str, ...] = ()
    """Those that it is drawn from, or their beginning with an underscore last: n counts them."""

    interval: str = BAND
    hidden: str = ""
    """What it does not show."""

    table: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    """Its numbers, for a CSV file; where None the records of `metrics`."""


@dataclass(frozen=True)
class Drawn(Drawing):
    """A figure of one set of records."""

    png: bytes = b""
    svg: str = ""
    data: pd.DataFrame = field(default_factory=pd.DataFrame)
    num: str = ""
    """How much was measured for it: runs, seeds, tasks, numbers."""

    @property
    def csv(self) -> str:
        """The file of `data` beside it; that of the cells has a name of its own, being more."""
        return "cells.csv" if self.name == "heatmap.png" else self.name.replace(".png", ".csv")


def _gaps(frame: pd.DataFrame) -> Figure:
    """A task at a rate of 1 a step or more also has a gap, 1: one gap alone compares nothing."""
    if matched_frequency(frame).groupby(list(GROUP)).gap.nunique().max() < 2:
        rule = "hold one gap only"
        raise ConfigError(key="records", rule=rule, remedy="train a sweep over bursts")
    return gaps(frame)


FIGURES = (
    Drawing(
        "heatmap.png",
        "Size by frequency",
        lambda frame: heatmap(cells(frame)),
        "The study's Fig. 5. A cell is one size (larger on top) at one frequency (frequent left); "
        "left the test score, right the loss on what was trained on. Outlined: learned, that is a "
        "mean score of 0.5 or more and, from three seeds on, its lower bound too; dashed: too few "
        "seeds to say.",
        ("score", "choice_loss", "label_loss"),
        "± in a cell: half the 95% interval over seeds (Student's t). One seed has none here.",
        "When a cell was learned, nor why one was not: a cell that saw each example less than once "
        "was starved.",
        cells,
    ),
    Drawing(
        "curves.png",
        "Learning curves",
        curves,
        "After the study's Fig. 6a: the test score over training, a panel per size, a line per "
        "frequency. Dashed: what counts as learned. 0 is guessing the commonest label.",
        ("score",),
        hidden="Steps between two measurements, and train examples.",
    ),
    Drawing(
        "training.png",
        "The training itself",
        training,
        "Ordinary loss, of the text and the injected rows together, and speed: a line per run. "
        "Speed is by the wall clock, with measurements, saving and whatever else the machine did.",
        (*SHOWN,),
        "No interval: every run is drawn.",
        "How well text is predicted that was held out; and it is no benchmark.",
    ),
    Drawing(
        "train_test.png",
        "Train against test",
        partial(curves, metric="label_loss", dashed=("label_loss", "train")),
        "The loss of the label on pairs that were trained on (dashed) and on pairs that never were "
        "(solid). Apart: learned by heart; down together: a rule was learned. Grey: the loss of a "
        "model that knows how often each label comes and no more.",
        ("label_loss",),
        hidden="Which pairs: a test pair whose mirror image was trained on can be answered by "
        "symmetry alone (records.csv, subset).",
    ),
    Drawing(
        "choice_format.png",
        "Which label, or a label at all",
        partial(curves, metric="choice_loss", dashed=("format_loss", "test")),
        "The two parts of the test label loss, which add up to it: choice (solid) is which of the "
        "task's labels, format (dashed) that it is one of them. Format falls first and says "
        "nothing of the task. Grey: the choice loss of guessing by label frequency.",
        ("choice_loss", "format_loss"),
        hidden="The train split.",
    ),
    Drawing(
        "budget.png",
        "Who moved the task's loss",
        budget,
        "The loss budget: the change of the choice loss since the last record, in nats, by the "
        "data that asked for it; above 0 harms. What the host text does is forgotten, what the "
        "task's own rows do gained. Nothing is read from a cell whose closure (what the parts "
        "leave unexplained, as a share of all that moved) is above .05.",
        ("budget", "budget_actual"),
        hidden="Means over cells, the ratio of forgotten to gained, nulls and closure: they stand "
        "in budget.csv.",
        table=budgets,
    ),
    Drawing(
        "interference.png",
        "Does the rest of the batch push against the task?",
        interference,
        "The study's Fig. 9 (and the cosines of Fig. 8). g_r is the gradient of the rare task's "
        "mean label loss over its examples: against it the loss falls. g_nt is the gradient "
        "of the step's batch without the injected rows, g_t that of the injected rows alone. Drawn "
        "is the cosine of each with g_r: above 0 a step of gradient descent along it serves the "
        "task, below 0 it hurts. Null: red, the same with the task's labels permuted; where blue "
        "follows red it is about how often each label comes, not about the task. perp: green, the "
        "cosine with what is left of g_r when its projection on the permuted one is taken out; "
        "claims use its sign and its excess over the null, not its size, which tells no task from "
        "a list of pairs (docs/findings.md, chapter 2), and only where it is no small part of g_r "
        "(its share stands in the panel). Grey: a random direction, too narrow a null for "
        "gradients, which share few directions. Lower row: the mean of the last half of each run, "
        "by size.",
        ("cos_g_nt", "cos_g_t_label", "cos_update", "norm_g_r"),
        "Bars and bands: 95% over seeds (Student's t), from three seeds on.",
        "Nats: a cosine has no size; the loss budget has.",
        interference_table,
    ),
    Drawing(
        "features.png",
        "What the task's symbols hide",
        features,
        "The study's Fig. 7: how well a linear probe reads a task's hidden structure off its "
        "symbols, on symbols that the probe did not see, over training and against the test score. "
        "R² is 1 for a perfect reading and 0 for none. Null: dashed, the 99th percentile of the "
        "largest R² that permuted symbols reach at any unit and layer; below it nothing was found. "
        "Dotted: what the probe reads of an order planted in states of this width. R² is clipped "
        "at 0 here, not in the records.",
        ("probe_count", "order_r2"),
        hidden="Whether the model uses what the probe reads: `olmo-ext features --das` asks that.",
        table=presence,
    ),
    Drawing(
        "alignment.png",
        "Where the task's variables are",
        alignment,
        "Interchange accuracy by layer: how often swapping one learnt subspace of the state at a "
        "token from another example gives the label that the swapped variable asks for, on symbols "
        "that the search never saw. Nulls: the same search in a model with random weights, random "
        "subspaces of the same rank, and, dashed, naming the commonest label. Ceiling: dotted, the "
        "whole state swapped (at a token that holds several variables it brings them all). Of the "
        "pairs that the model answers rightly, so that doing nothing gives 0.",
        ("interchange_accuracy",),
        "None drawn: means over runs.",
        "Tasks other than the most frequent of each size, and earlier steps.",
    ),
    Drawing(
        "causal.png",
        "Which layer does it",
        causal_map,
        "Share of the difference in logit(target's label) - logit(base's label) that is brought by "
        "giving one part of the model, at one token, what it computes for the target, which "
        "differs from the base in one symbol. Residual at layer l: the stream after block l, 0 the "
        "embedding. Attention and MLP: what they add in block l. Null: 0; shares of parts do not "
        "add up to 1, since later parts read earlier ones.",
        ("causal_",),
        "None drawn: means over runs.",
        "Tasks other than the most frequent of each size, and earlier steps.",
    ),
    Drawing(
        "gaps.png",
        "Equal frequency, unequal gaps",
        _gaps,
        "The study's Fig. 6b: N instances every N steps, so that only the gap differs. Null: "
        "dotted, a model that knows how often each label comes and no more. A run ends just before "
        "a burst; hollow marks, right after one, also show what a larger burst lifts for some "
        "steps.",
        ("score", "label_loss", "choice_loss"),
        "Bars: 95% over seeds, from three seeds on.",
        "The course between two bursts.",
        matched_frequency,
    ),
    Drawing(
        "forgetting.png",
        "What a burst leaves (retention)",
        forgetting,
        "The study's Fig. 8: the loss after a burst against the loss before it, and the share of "
        "the gain that is kept. Lag: steps since the burst's end. Null: dashed, the control run "
        "that leaves this burst out; drift moves the loss too, so shares net of it count. Where "
        "the gain is within its spread over seeds the share is undefined, not 0.",
        ("label_loss_", "choice_loss_", "score_lag", "score_before"),
        hidden="Bursts of tasks and rates with a shorter course.",
        table=retention,
    ),
    Drawing(
        "memorization.png",
        "What was learned by heart",
        memorization,
        "Injected sequences by the number of their copies, at each run's last step, of which steps "
        "are shares. Nulls, dashed: in a size's colour the loss and extraction of its own held-out "
        "twins; in grey the exposure that a sequence like its twins has in the mean, an AUC of .5. "
        "Exposure, AUC: against the group's twins (eval/scores/memorization.py has the formulas).",
        METRICS,
        "Bars: 95% over sequences where a size has one seed; band: over seeds, from three on.",
        "When in training a copy was seen.",
    ),
    Drawing(
        "reference.png",
        "Beside natural tasks",
        beside_natural,
        "After the study's Fig. 6a: the final test score by frequency. Dashed: how often the "
        "corpus itself makes a true comparison (R_cmp) or addition (R_add) in a form that the scan "
        "knows, which is a lower bound.",
        ("score", "natural_count"),
        "Band: 95% interval of that rate; bars: 95% over seeds.",
        "Difficulty: a natural statement shares its words and numbers with the rest of the text, "
        "an injected one shares nothing.",
    ),
    Drawing(
        "ordering.png",
        "Does the theory order the cells?",
        ordering,
        "Test score of every run and task against the theory's margin log N / N_crit (N: the "
        "width; N_crit: the width at which the theory has the task learned, from the frequencies "
        "and sizes of all tasks of the run), and against width x rate, which anything that rises "
        "with both resembles. Null: how far the two rank correlations differ when the predictors "
        "change places at random, run by run. The theory says more than size and frequency do only "
        "where its lead is above that; of forty such sets one is, by "
        "chance. Nothing in the prediction is fitted (theory/advice/ordering.py).",
        ("score",),
        "None drawn: a mark per run and task; the null's 95% stands in the title.",
        "Why a cell is where it is.",
        ordering_table,
    ),
)
"""In the order of the page; the first two stand in every report."""


def draw_figures(frame: pd.DataFrame) -> list[Drawn]:
    """All figures that the records can give; what they do not hold is left out, and logged."""
    drawn = []
    for one in FIGURES:
        try:
            figure = one.draw(frame)
        except ConfigError as error:
            log.info("%s is left out: %s", one.name, error)
            continue
        begin = tuple(name for name in one.metrics if name.endswith("_"))
        rows = frame[frame.metric.isin(one.metrics) | frame.metric.str.startswith(begin)]
        drawn.append(
            Drawn(
                **vars(one),
                png=png(figure),
                svg=svg(figure, one.name),
                data=one.table(frame) if one.table is not None else rows.dropna(axis=1, how="all"),
                num=_num(rows),
            )
        )
    return drawn


def _num(rows: pd.DataFrame) -> str:
    """ "9 runs, 1 seed, 5 tasks, 45 numbers"."""
    if rows.empty:
        return ""
    tasks = rows.task[rows.task != ""].nunique()
    parts = [plural(run_names(rows).nunique(), "run"), span(pd.Series([rows.seed.nunique()]))]
    parts += [plural(tasks, "task")] if tasks else []
    return ", ".join([*parts, plural(len(rows), "number")])
