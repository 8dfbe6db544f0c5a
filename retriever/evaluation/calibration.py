"""Calibration of the fusion weight: which share of the dense channel serves this pool best.

Leave-one-out over a sample of the pool: each sampled example asks for its neighbours, itself and exact copies of its
key text left out, and a weight is as good as the outputs it retrieves match the held-out one (share of equal labels
where the pool has labels, else the best token-set overlap of the outputs). No language model is called. With the
theoretical min-max normalisation this was not below the better channel on any data set tried; no fixed weight is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.hybrid import Fusion, HybridIndex, Query
from retriever.evaluation.metrics import best_overlap, output_tokens, precision
from retriever.example import Example, Json
from retriever.ranking.seeding import permutation

Utility: TypeAlias = Callable[[frozenset[str], Sequence[frozenset[str]]], float]

GRID = tuple(round(0.1 * step, 1) for step in range(11))
SAMPLE = 500
DEMONSTRATIONS = 8
UNCALIBRATED = 0.5
_BLOCK = 32


@dataclass(frozen=True)
class Calibration:
    """A fusion weight and what it rests on.

    Attributes:
        weight: Share of the dense channel.
        objective: `labels`, `outputs`, or `none` when the pool has neither and the weight is the default.
        sample: How many examples were held out.
        utilities: The mean utility at each weight of `GRID`; empty without an objective.
    """

    weight: float
    objective: str
    sample: int = 0
    utilities: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Json]:
        """For the manifest."""
        return {
            "weight": self.weight,
            "objective": self.objective,
            "sample": self.sample,
            "utilities": [round(utility, 6) for utility in self.utilities],
        }


def objective(examples: Sequence[Example]) -> tuple[str, list[frozenset[str]], Utility]:
    """What examples are compared by: its name, the token set of each, and the utility of a selection.

    Labels serve when at least two examples share one; else outputs, when at least two examples have one.
    """
    labels = [example.labels for example in examples]
    counts = Counter(label for one in labels for label in one)
    if any(count > 1 for count in counts.values()) and len(counts) > 1:
        return "labels", labels, precision
    outputs = [output_tokens(example.output_text) for example in examples]
    if sum(map(bool, outputs)) > 1:
        return "outputs", outputs, best_overlap
    return "none", labels, precision


def calibrate(
    index: HybridIndex, examples: Sequence[Example], queries: Callable[[int], Query], copies: NDArray[np.int64]
) -> Calibration:
    """Chooses the weight.

    Args:
        index: The index over the examples, row by row.
        examples: The examples.
        queries: From a row to its key as a query.
        copies: For each row a number that it shares with the rows of the same key text, shape (rows,).
    """
    name, tokens, utility = objective(examples)
    rows = [int(row) for row in permutation(len(examples), 0, "", "calibration") if tokens[row]][:SAMPLE]
    if name == "none" or len(rows) < 2:
        return Calibration(UNCALIBRATED, "none")
    gained = np.zeros((len(rows), len(GRID)))
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        for i, (row, scores) in enumerate(zip(block, index.score([queries(row) for row in block]), strict=True)):
            others = scores.restricted(copies != copies[row])
            for j, weight in enumerate(GRID):
                hits = index.rank(others, DEMONSTRATIONS, Fusion(weight=weight))
                gained[start + i, j] = utility(tokens[row], [tokens[hit] for hit in hits.rows])
    means = gained.mean(axis=0)
    return Calibration(_best_weight(means), name, len(rows), tuple(means.tolist()))


def _best_weight(means: NDArray[np.float64]) -> float:
    """The weight of the largest mean; among equals the one nearest the middle."""
    best = np.flatnonzero(means >= means.max() - 1e-12)
    return min((GRID[i] for i in best), key=lambda weight: (abs(weight - UNCALIBRATED), weight))
