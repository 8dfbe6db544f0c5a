"""Calibration of the fusion weight: which share of the dense channel serves this pool best.

Leave-one-out over a sample of the pool: each sampled example asks for its neighbours, itself and exact copies of its
key text left out, and a weight is as good as the outputs it retrieves match the held-out one (share of equal labels
where the pool has labels, else the best token-set overlap of the outputs). No language model is called. With the
theoretical min-max normalisation this was not below the better channel on any data set tried; no fixed weight is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.channels import Fusion, Query
from indexes.hybrid import HybridIndex
from retriever.errors import InvalidInput
from retriever.evaluation.metrics import TokenSet, best_overlap, output_tokens, precision
from retriever.example import Example, Json
from retriever.listening import Steps, silent
from retriever.ranking.seeding import permutation

Utility: TypeAlias = Callable[[TokenSet, Sequence[TokenSet]], float]

GRID = tuple(round(0.1 * step, 1) for step in range(11))
SAMPLE = 500
DEMONSTRATIONS = 8
UNCALIBRATED = 0.5
_BLOCK = 32


@dataclass(frozen=True)
class Objective:
    """How a selection is judged without a language model.

    Attributes:
        name: `labels` or `outputs`.
        tokens: From an example to what it is compared by.
        utility: From the held-out example's tokens and those of the chosen ones to a number, more is better.
    """

    name: str
    tokens: Callable[[Example], TokenSet]
    utility: Utility


@dataclass(frozen=True)
class Calibration:
    """A fusion weight and what it rests on.

    Attributes:
        weight: Share of the dense channel.
        objective: `given`, `labels`, `outputs`, or `none` when the pool has neither and the weight is the default.
        sample: How many examples were held out.
        utilities: The mean utility at each weight of `GRID`; empty without an objective.

    Raises:
        InvalidInput: The weight is not from 0 to 1.
    """

    weight: float
    objective: str
    sample: int = 0
    utilities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight <= 1.0:
            raise InvalidInput(f"fusion weight {self.weight}", expected="a share of the dense channel, from 0 to 1")

    def if_given(self) -> Calibration | None:
        """Itself where the user gave the weight; None for any other, so that it is calibrated again."""
        return self if self.objective == "given" else None

    def to_dict(self) -> dict[str, Json]:
        """For the manifest."""
        return {**asdict(self), "utilities": list(self.utilities)}

    @classmethod
    def from_dict(cls, stored: object) -> Calibration:
        """From what `to_dict` gave.

        Raises:
            InvalidInput: It is not that.
        """
        if not isinstance(stored, dict) or set(stored) != {f.name for f in fields(cls)}:
            raise InvalidInput(f"a stored calibration {stored!r}", expected="weight, objective, sample and utilities")
        return cls(**{**stored, "utilities": tuple(stored["utilities"])})


def objective(sample: Sequence[Example]) -> Objective | None:
    """What selections are judged by: labels when they repeat and differ, else outputs, else nothing."""
    labels = Counter(label for example in sample for label in example.labels)
    if len(labels) > 1 and max(labels.values()) > 1:
        return Objective("labels", lambda example: example.labels, precision)
    if sum(bool(output_tokens(example.output_text)) for example in sample) > 1:
        return Objective("outputs", lambda example: output_tokens(example.output_text), best_overlap)
    return None


def calibrate(
    index: HybridIndex,
    *,
    examples: Callable[[Sequence[int]], Sequence[Example]],
    queries: Callable[[Sequence[int]], Sequence[Query]],
    copies: NDArray[np.int64],
    progress: Steps = silent,
) -> Calibration:
    """Chooses the weight.

    Args:
        index: The index over the pool, none of it removed.
        examples: From rows to their examples.
        queries: From rows to their keys as queries.
        copies: For each row a number that it shares with the rows of the same key text, shape (rows,).
        progress: Told how many of the sampled examples are done, and how many there are.
    """
    rows = permutation(len(index), 0, "", "calibration")[:SAMPLE].tolist()
    judged = objective(examples(rows))
    if judged is None:
        return Calibration(UNCALIBRATED, "none")
    rows, gained = utilities(index, rows, judged, examples=examples, queries=queries, copies=copies, progress=progress)
    return calibrated(gained, judged.name)


def calibrated(gained: NDArray[np.float64], name: str) -> Calibration:
    """The calibration that utilities lead to.

    Args:
        gained: The utility of each sampled example at each weight of `GRID`, shape (sample, weights).
        name: Of the objective.
    """
    return Calibration(best_weight(gained), name, len(gained), tuple(np.round(gained.mean(axis=0), 6).tolist()))


def utilities(
    index: HybridIndex,
    rows: Sequence[int],
    judged: Objective,
    *,
    examples: Callable[[Sequence[int]], Sequence[Example]],
    queries: Callable[[Sequence[int]], Sequence[Query]],
    copies: NDArray[np.int64],
    progress: Steps = silent,
    weights: Sequence[float] = GRID,
) -> tuple[list[int], NDArray[np.float64]]:
    """How well the neighbours of held-out rows match them.

    Args:
        index: The index over the pool.
        rows: The rows to hold out, one at a time.
        judged: What a match is; at least one row has something to compare, or there would be no objective.
        examples: As for `calibrate`.
        queries: As for `calibrate`.
        copies: As for `calibrate`.
        progress: As for `calibrate`.
        weights: The fusion weights to try.

    Returns:
        The rows that have something to compare, and their utility at each weight, shape (rows, weights).
    """
    tokens = _Tokens(examples, judged.tokens)
    rows = [row for row, own in zip(rows, tokens(rows), strict=True) if own]
    gained = np.zeros((len(rows), len(weights)))
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        for i, (row, scores) in enumerate(zip(block, index.score(queries(block)), strict=True), start=start):
            others = scores.restricted(copies != copies[row])
            [own] = tokens([row])
            for j, weight in enumerate(weights):
                hits = index.rank(others, DEMONSTRATIONS, Fusion(weight=weight))
                gained[i, j] = judged.utility(own, tokens(hits.rows.tolist()))
        progress(start + len(block), len(rows))
    return rows, gained


class _Tokens:
    """The token sets of rows, each worked out once."""

    def __init__(
        self, examples: Callable[[Sequence[int]], Sequence[Example]], tokens: Callable[[Example], TokenSet]
    ) -> None:
        self._examples = examples
        self._tokens = tokens
        self._known: dict[int, TokenSet] = {}

    def __call__(self, rows: Sequence[int]) -> list[TokenSet]:
        new = [row for row in rows if row not in self._known]
        self._known.update(zip(new, map(self._tokens, self._examples(new)), strict=True))
        return [self._known[row] for row in rows]


def best_weight(gained: NDArray[np.float64], allowed: NDArray[np.bool_] | None = None) -> float:
    """The middle of the weights that the sample cannot tell from the best one.

    A mean within one standard error of the best mean, paired by example, is no evidence against its weight (the
    one-standard-error rule; Breiman et al. 1984). The best of a flat stretch is chance, its middle is not.

    Args:
        gained: The utility of each sampled example at each weight of `GRID`, shape (sample, weights).
        allowed: The weights to choose from, bool, shape (weights,); at least one. None for all.
    """
    means = gained.mean(axis=0)
    usable = np.flatnonzero(np.ones(len(means), dtype=np.bool_) if allowed is None else allowed)
    best = int(usable[means[usable].argmax()])
    errors = (gained[:, [best]] - gained).std(axis=0, ddof=1) / np.sqrt(len(gained))
    alike = usable[means[usable] >= (means[best] - errors - 1e-12)[usable]]
    middle = (GRID[alike[0]] + GRID[alike[-1]]) / 2
    choice = [GRID[place] for place in usable]
    return min(choice, key=lambda weight: (round(abs(weight - middle), 6), abs(weight - UNCALIBRATED)))
