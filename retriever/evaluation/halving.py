"""Successive halving: many candidates are measured on few examples, the better ones on more.

After Jamieson and Talwalkar (2016). Round after round the examples double and the candidates halve. All of a round are
measured on the same examples, so that they are compared in pairs; what the examples do not tell from the leader stays,
however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.float64]
Measure: TypeAlias = Callable[[Sequence[int], slice], Values]
"""From candidates and the place of examples to what each is worth, more is better, shape (candidates, examples)."""

ROUNDS = 4
_ROUNDING = 1e-12


def halve(count: int, examples: int, measure: Measure, rounds: int = ROUNDS) -> Values:
    """Measures candidates on as many examples as it takes to tell the good ones from the others.

    Args:
        count: How many candidates; the first one is measured on every example.
        examples: How many examples.
        measure: Measures some of the candidates on some of the examples.
        rounds: How many; the first one has one in 2^(rounds − 1) of the examples.

    Returns:
        Shape (count, examples), NaN where a candidate was not measured.
    """
    values = np.full((count, examples), np.nan)
    staying, done = list(range(count)), 0
    for number in range(rounds):
        until = -(-examples // 2 ** (rounds - 1 - number))
        if until > done:
            values[staying, done:until] = measure(staying, slice(done, until))
            done = until
        if number < rounds - 1:
            staying = _staying(values[:, :done], staying)
    return values


def _staying(values: Values, candidates: Sequence[int]) -> list[int]:
    """The first one, the better half, and whatever is within one standard error of the best, paired."""
    rows = values[candidates]
    means = rows.mean(axis=1)
    ranks = np.empty(len(means), dtype=np.int64)
    ranks[np.argsort(-means, kind="stable")] = np.arange(len(means))
    keep = (ranks < (len(means) + 1) // 2) | _alike(rows)
    return [candidate for place, candidate in enumerate(candidates) if keep[place] or candidate == 0]


def _alike(rows: Values) -> NDArray[np.bool_]:
    """Which rows have a mean that is within one standard error of the best one, paired."""
    means = rows.mean(axis=1)
    apart = rows[int(means.argmax())] - rows
    errors = apart.std(axis=1, ddof=1) / np.sqrt(rows.shape[1]) if rows.shape[1] > 1 else np.full(len(rows), np.inf)
    result: NDArray[np.bool_] = apart.mean(axis=1) <= errors + _ROUNDING
    return result


def simplest(values: Values) -> int:
    """The first of the candidates that the examples do not tell from the best (Breiman et al. 1984).

    A mean that is within one standard error of the best one, paired by example, is no evidence against a candidate.

    Args:
        values: Shape (candidates, examples), NaN where a candidate was not measured; one at least is whole.
    """
    whole = np.flatnonzero(~np.isnan(values).any(axis=1))
    return int(whole[np.flatnonzero(_alike(values[whole]))[0]])
