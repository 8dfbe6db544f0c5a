"""Evidence: what a log says of demonstrations, query by query, in numbers that can be learned from.

An outcome is worth what it differs from the expected one. For a demonstration that was scored by itself that is the
mean over the query's candidates; for one in a prompt it is the query's mean outcome, drawn toward the mean of the log
by one more observation, so that a query which never succeeds blames its demonstrations less than one which mostly
does. Both are divided by the log's own standard deviation: no unit of the scores matters, only their differences.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from retriever.adaptation.feedback import Feedback, Scored
from retriever.example import Example

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Asked:
    """A logged query, and how demonstrations did for it.

    Attributes:
        text: Its key text.
        rows: The demonstrations that the log says something of, ascending, int64, shape (m,).
        credit: How much better than expected each did, in standard deviations of the log, float64, shape (m,).
        closed: Whether they were scored by themselves, so that they are compared with each other alone.
    """

    text: str
    rows: Rows
    credit: NDArray[np.float64]
    closed: bool

    @property
    def tells_apart(self) -> bool:
        """Whether the log prefers some of its demonstrations to others."""
        return bool(len(self.rows) > 1 and np.ptp(self.credit) > 0)

    @property
    def gains(self) -> NDArray[np.float64]:
        """From the worst at 0 to the best at 1."""
        gains: NDArray[np.float64] = (self.credit - self.credit.min()) / np.ptp(self.credit)
        return gains


@dataclass(frozen=True)
class Shown:
    """A prompt of the log.

    Attributes:
        query: Its place among the queries.
        rows: The demonstrations it showed, ascending.
        score: How it did.
    """

    query: int
    rows: Rows
    score: float


@dataclass(frozen=True)
class Evidence:
    """What a log says.

    Attributes:
        queries: One for each distinct key text, in the order of the log.
        prompts: Those whose outcome was logged.
    """

    queries: tuple[Asked, ...]
    prompts: tuple[Shown, ...]


def evidence_of(feedback: Feedback, rows: Mapping[str, int], text: Callable[[Example], str]) -> Evidence:
    """Gathers what a log says, by query.

    Args:
        feedback: The log.
        rows: The row of each demonstration that is in the pool; the others are left out, and a line without any too.
        text: From a query to its key text.
    """
    scored: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    prompts: dict[str, list[tuple[Rows, float]]] = defaultdict(list)
    texts: dict[str, None] = {}
    for line in feedback.lines:
        here = text(line.query)
        if isinstance(line, Scored):
            for identity, score in line.scores.items():
                if identity in rows:
                    scored[here][rows[identity]].append(score)
        elif kept := sorted(rows[identity] for identity in line.ids if identity in rows):
            prompts[here].append((np.array(kept, dtype=np.int64), line.score))
        if here in scored or here in prompts:
            texts[here] = None
    by_score = _by_score({name: {row: fmean(all_) for row, all_ in found.items()} for name, found in scored.items()})
    by_outcome = _by_outcome(prompts)
    numbers = {name: number for number, name in enumerate(texts)}
    return Evidence(
        tuple((by_score if name in by_score else by_outcome)[name] for name in texts),
        tuple(Shown(numbers[name], *one) for name, shown in prompts.items() for one in shown),
    )


def _by_score(scored: Mapping[str, Mapping[int, float]]) -> dict[str, Asked]:
    found = {}
    for text, scores in scored.items():
        order = np.array(sorted(scores), dtype=np.int64)
        values = np.array([scores[row] for row in order.tolist()])
        found[text] = (order, values - values.mean())
    spread = _deviation([differences for _, differences in found.values()])
    return {text: Asked(text, order, differences / spread, True) for text, (order, differences) in found.items()}


def _by_outcome(prompts: Mapping[str, Sequence[tuple[Rows, float]]]) -> dict[str, Asked]:
    every = np.array([score for shown in prompts.values() for _, score in shown])
    mean = float(every.mean()) if len(every) else 0.0
    spread = _deviation([every - mean])
    found = {}
    for text, shown in prompts.items():
        expected = (sum(score for _, score in shown) + mean) / (len(shown) + 1)
        scores: dict[int, list[float]] = defaultdict(list)
        for rows, score in shown:
            for row in rows.tolist():
                scores[row].append(score)
        order = np.array(sorted(scores), dtype=np.int64)
        outcome = np.array([fmean(scores[row]) for row in order.tolist()])
        found[text] = Asked(text, order, (outcome - expected) / spread, False)
    return found


def _deviation(differences: Sequence[NDArray[np.float64]]) -> float:
    """Their standard deviation around 0; 1 where all are 0."""
    squares = np.square(np.concatenate([np.zeros(0), *differences]))
    return float(np.sqrt(squares.mean())) if squares.any() else 1.0
