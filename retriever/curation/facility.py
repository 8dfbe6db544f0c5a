"""Facility location: rows that stand for all others (Cornuéjols, Fisher and Nemhauser 1977).

    f(S) = Σ over rows i of  max over s in S of  max(0, cosine(i, s))

f is monotone and submodular, so the greedy choice reaches at least 1 − 1/e of the best set (Nemhauser, Wolsey and
Fisher 1978). What a row j would add is kept for all rows. A choice changes it only through the rows i that it covers
better than before, from aᵢ to bᵢ:

    gainⱼ −= Σ over these i of  min(max(cosine(i, j), aᵢ), bᵢ) − aᵢ

Cosines are rounded to multiples of 2⁻³², so that sums over up to two million rows, and these differences, are exact:
the gains are to the bit those that would be worked out anew at every step.

It prefers what is common: a block that suits most queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retriever.curation.chosen import Chosen, block_rows, chosen, free_rows
from retriever.listening import Progress, Steps, silent
from retriever.ranking.strategies.exact import exact_vectors
from retriever.ranking.strategies.picks import Integers, Reals, first_best

_UNIT = 2.0**32
"""One, in the unit of cosines, covers and gains within this module."""


def facility(
    vectors: NDArray[np.float32], budget: int, *, held: Sequence[int] = (), progress: Progress = silent
) -> Chosen:
    """Rows, each the one that adds most to how well all rows are covered.

    Time O(n² · d) for the first choice and O(r · n · d) for each further one, where r rows were covered better by the
    one before; memory O(n · d).

    Args:
        vectors: Unit or zero vectors, shape (n, d).
        budget: How many, at most.
        held: Rows that are chosen already.
        progress: Told how far the work is.

    Returns:
        The rows. A gain is how much f grew; gains closer than 1e-6 are ties.

    Raises:
        InvalidInput: A shape, vector, budget or held row that cannot be used.
    """
    grid, _ = exact_vectors(vectors)
    free = free_rows(len(grid), budget, held)
    scaled = grid * np.sqrt(_UNIT)
    count = min(budget, int(free.sum()))
    if not count:
        return chosen([], [])
    covered = _cover(scaled, held)
    everything = np.arange(len(grid))
    worth = _added(scaled, everything, covered, np.full(len(grid), np.inf), lambda *told: progress("comparing", *told))
    places: list[int] = []
    gains: list[float] = []
    while True:
        places.append(first_best(np.where(free, worth / _UNIT, -np.inf)))
        gains.append(float(worth[places[-1]] / _UNIT))
        free[places[-1]] = False
        progress("choosing", len(places), count)
        if len(places) == count:
            return chosen(places, gains)
        raised = np.maximum(covered, _cover(scaled, places[-1:]))
        rows = np.flatnonzero(raised > covered)
        worth -= _added(scaled, rows, covered[rows], raised[rows], lambda *told: progress("covering", *told))
        covered = raised


def _cover(scaled: Reals, members: Sequence[int]) -> Reals:
    """How well these cover each row: the largest cosine, 0 at least; shape (n,)."""
    covered = np.zeros(len(scaled))
    mine = scaled[list(members)]
    size = block_rows(len(mine))
    for start in range(0, len(scaled), size):
        here = slice(start, start + size)
        covered[here] = np.rint(scaled[here] @ mine.T).max(axis=1, initial=0.0)
    return covered


def _added(scaled: Reals, rows: Integers, low: Reals, high: Reals, told: Steps) -> Reals:
    """For every row j, Σ over `rows` of how far j lifts their cover from `low`, counted up to `high`; shape (n,)."""
    total = np.zeros(len(scaled))
    size = block_rows(len(scaled))
    for start in range(0, len(rows), size):
        here = slice(start, start + size)
        lifted = scaled[rows[here]] @ scaled.T
        np.rint(lifted, out=lifted)
        np.clip(lifted, low[here, None], high[here, None], out=lifted)
        lifted -= low[here, None]
        total += lifted.sum(axis=0)
        told(min(start + size, len(rows)), len(rows))
    return total
