"""The figures of a report: name, how it is drawn from records, and what a reader must know.

    for figure in draw_figures(frame): (out / figure.name).write_bytes(figure.png)

To add one: a function from records to a Figure that raises ConfigError where they do not hold what
it needs, a line in FIGURES, a test.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from data_injection.errors import ConfigError
from eval.figures.alignment import alignment, causal_map
from eval.figures.budget import budget
from eval.figures.curves import curves
from eval.figures.features import features
from eval.figures.heatmap import heatmap
from eval.figures.interference import interference
from eval.figures.memorization import memorization
from eval.figures.ordering import ordering
from eval.figures.reference import beside_natural
from eval.figures.retention import forgetting, gaps
from eval.figures.style import png
from eval.retention.matched_frequency import GROUP, matched_frequency
from eval.scores.cells import cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawing:
    """A figure that a report can have."""

    name: str
    """File beside report.html."""

    title: str
    draw: Callable[[pd.DataFrame], Figure]
    """Raises ConfigError where the records do not hold what the figure shows."""

    caption: str
    """Which figure of the study it is, and how to read its nulls."""


@dataclass(frozen=True)
class Drawn(Drawing):
    """A figure of one set of records."""

    png: bytes


def _grid(frame: pd.DataFrame) -> Figure:
    return heatmap(cells(frame))


def _gaps(frame: pd.DataFrame) -> Figure:
    """A task at a rate of 1 a step or more also has a gap, 1: one gap alone compares nothing."""
    if matched_frequency(frame).groupby(list(GROUP)).gap.nunique().max() < 2:
        raise ConfigError("records hold one gap only; train a sweep over bursts")
    return gaps(frame)


FIGURES = (
    Drawing(
        "heatmap.png",
        "Size by frequency",
        _grid,
        "Size by frequency: larger rungs on top, frequent left.",
    ),
    Drawing(
        "curves.png",
        "Learning curves",
        curves,
        "Test score over training: a panel per size, a line per rate.",
    ),
    Drawing(
        "reference.png",
        "Beside natural tasks",
        beside_natural,
        "After the study's Fig. 6a: the final test score by frequency. Dashed: how often the "
        "corpus itself makes a true comparison (R_cmp) or addition (R_add) in a form that the scan "
        "knows, which is a lower bound; band: 95% interval of that rate. A natural statement "
        "shares its words and numbers with the rest of the text, an injected one shares nothing: "
        "an equal frequency is not an equal difficulty.",
    ),
    Drawing(
        "features.png",
        "What the task's symbols hide",
        features,
        "The study's Fig. 7: how well a linear probe reads a task's hidden structure off its "
        "symbols on held-out symbols, over training and against the test score. Null: dashed, the "
        "99th percentile of the largest R² that permuted symbols reach at any unit and layer; "
        "below it nothing was found. R² is clipped at 0 here, not in the records.",
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
    ),
    Drawing(
        "interference.png",
        "Does the rest of the batch push against the task?",
        interference,
        "The study's Fig. 9 (and the cosines of Fig. 8). Above 0 a step of gradient descent along "
        "this part serves the task, below 0 it hurts. Null: dashed, the same cosine with the "
        "task's labels permuted. Where the cosine follows it, it is about how often each label "
        "comes, not about the task. Claims use perp, the cosine with what the permuted labels do "
        "not say, and only where |perp part| / |g_r| is not small. Grey: a random direction, which "
        "is too narrow a null for gradients, since they share few directions. By size: the mean of "
        "the last half of each run. Bars and bands: 95% over seeds, from three seeds on.",
    ),
    Drawing(
        "budget.png",
        "Who moved the task's loss",
        budget,
        "The loss budget: the change of the choice loss since the last record, in nats, by the "
        "data that asked for it; above 0 harms. What the host does is forgotten, what the task's "
        "own rows do gained. Means over cells, their ratio, nulls and closure: budget.csv. Nothing "
        "is read from a cell whose closure is above .05.",
    ),
    Drawing(
        "gaps.png",
        "Equal frequency, unequal gaps",
        _gaps,
        "The study's Fig. 6b: N instances every N steps, so that only the gap differs. Null: "
        "dotted, a model that knows how often each label comes and no more. A run ends just before "
        "a burst; hollow marks, right after one, also show what a larger burst lifts for some "
        "steps.",
    ),
    Drawing(
        "forgetting.png",
        "What a burst leaves",
        forgetting,
        "The study's Fig. 8: the loss after a burst against the loss before it, and the share of "
        "the gain that is kept. Null: dashed, the control run that leaves this burst out; drift "
        "moves the loss too, so shares net of it count. Where the gain is within its spread over "
        "seeds the share is undefined, not 0.",
    ),
    Drawing(
        "memorization.png",
        "What was learned by heart",
        memorization,
        "Injected sequences by the number of their copies, at each run's last step. Nulls, dashed: "
        "the held-out twins' own loss and extraction; the exposure that a sequence like its twins "
        "has in the mean; an AUC of .5. Loss, extraction: of the sequences alone. Exposure, AUC: "
        "against the twins of the sequence's group (eval/scores/memorization.py has the formulas).",
    ),
    Drawing(
        "ordering.png",
        "Does the theory order the cells?",
        ordering,
        "Test score of every run and task against the theory's margin log N / N_crit, and against "
        "width x rate, which anything that rises with both resembles. Null: how far the two rank "
        "correlations differ when the predictors change places at random, run by run. The theory "
        "says more than size and frequency do only where its lead is above that; of twenty such "
        "sets one is, by chance. Nothing in the prediction is fitted (theory/advice/ordering.py).",
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
        drawn.append(Drawn(**vars(one), png=png(figure)))
    return drawn
