"""Successive halving: many candidates are measured on few examples, the better ones on more.

After Jamieson and Talwalkar (2016). Round after round the examples double and the candidates halve. All of a round are
measured on the same examples and compared in pairs. Where measuring is cheap, what the examples do not tell from the
best stays as well, however many there are; where it is dear, a search costs what it was said to cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retriever.evaluation.comparison import Values

Measure: TypeAlias = Callable[[Sequence[int], slice], Values]
"""From candidates and the place of examples to what each is worth, more is better, shape (candidates, examples).

NaN where it cannot be told."""

ROUNDS = 4
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Round:
    """One round of a search.

    Attributes:
        candidates: How many are measured.
        start: The first of the examples that they are measured on.
        stop: The end of these.
    """

    candidates: int
    start: int
    stop: int


def schedule(count: int, examples: int, rounds: int = ROUNDS) -> list[Round]:
    """The rounds of `halve` where it is strict.

    Args:
        count: How many candidates; the first one stays, of the others the better half does.
        examples: How many examples.
        rounds: How many; the first one has one in 2^(rounds − 1) of the examples.
    """
    found, done = [], 0
    for number in range(rounds):
        until = -(-examples // 2 ** (rounds - 1 - number))
        found.append(Round(count, done, until))
        count, done = _fewer(count), until
    return found


def _fewer(count: int) -> int:
    """The first one and half of the others, at least one of them."""
    return 1 + count // 2


def halve(count: int, examples: int, measure: Measure, rounds: int = ROUNDS, *, strict: bool = False) -> list[int]:
    """Measures candidates on as many examples as it takes to tell the good ones from the others.

    Args:
        count: How many candidates; the first one is measured on every example.
        examples: How many examples.
        measure: Measures some of the candidates on some of the examples.
        rounds: How many; see `schedule`.
        strict: Whether no more than half stay, even if the examples do not tell which half.

    Returns:
        Those that were measured on every example, the best first; of equals the first.
    """
    values = np.full((count, examples), np.nan)
    staying = list(range(count))
    for number, one in enumerate(schedule(count, examples, rounds)):
        if number:
            staying = _staying(values[:, : one.start], staying, strict)
        if one.stop > one.start:
            values[staying, one.start : one.stop] = measure(staying, slice(one.start, one.stop))
    return [staying[place] for place in ranked(values[staying])]


def _staying(values: Values, candidates: Sequence[int], strict: bool) -> list[int]:
    """The first one and the better ones, in their order."""
    rows = values[candidates]
    keep = {0, *[place for place in ranked(rows) if place != 0][: _fewer(len(rows)) - 1]}
    if not strict:
        told = _told(rows)
        keep.update(told[_alike(_shared(rows[told]))].tolist())
    return [candidates[place] for place in sorted(keep)]


def _told(rows: Values) -> NDArray[np.int64]:
    """The rows of which enough is known to be compared: half of what is known of the best known one."""
    known = (~np.isnan(rows)).sum(axis=1)
    return np.flatnonzero(2 * known >= known.max(initial=0))


def _shared(rows: Values) -> Values:
    """The columns that are known of all rows."""
    return rows[:, ~np.isnan(rows).any(axis=0)]


def _alike(rows: Values) -> NDArray[np.bool_]:
    """Which rows have a mean that is within one standard error of the best one, paired."""
    if rows.shape[1] < 2:
        return np.ones(len(rows), dtype=np.bool_)
    apart = rows[int(rows.mean(axis=1).argmax())] - rows
    errors = apart.std(axis=1, ddof=1) / np.sqrt(rows.shape[1])
    result: NDArray[np.bool_] = apart.mean(axis=1) <= errors + _ROUNDING
    return result


def ranked(rows: Values) -> list[int]:
    """The rows by their means over the columns that all of them have, the best first; of equals the first.

    Rows of which less than half as much is known as of the best known one come last, for they would leave the others
    few columns, or none, to be told apart by.

    Args:
        rows: Shape (candidates, examples), NaN where something is not known.
    """
    told = _told(rows)
    sums = np.round(_shared(rows[told]).sum(axis=1), 9)  # equal sums may differ by the rounding of their parts
    best = told[np.argsort(-sums, kind="stable")].tolist()
    return [*best, *np.setdiff1d(np.arange(len(rows)), told).tolist()]
