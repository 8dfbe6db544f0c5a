"""Facility location: rows that stand for all others (Cornuéjols, Fisher and Nemhauser 1977).

    f(S) = Σ over rows i of  max over s in S of  max(0, cosine(i, s))

f is monotone and submodular, so the greedy choice reaches at least 1 − 1/e of the best set (Nemhauser, Wolsey and
Fisher 1978). It is made lazily (Minoux 1978): a gain never rises, so only rows whose last known gain may still be the
best are looked at again. Cosines are rounded to multiples of 2⁻³², so that sums over up to a million rows are exact:
gains never rise in the computer either, and lazy and eager choice agree to the bit.

It prefers what is common: a block that suits most queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retriever.curation.chosen import Chosen, block_rows, chosen, free_rows
from retriever.ranking.strategies.exact import exact_vectors
from retriever.ranking.strategies.picks import TIE, Integers, Reals, first_best

_STEP = 2.0**32
_FEW = 16


def facility(vectors: NDArray[np.float32], budget: int, *, held: Sequence[int] = ()) -> Chosen:
    """Rows, each the one that adds most to how well all rows are covered.

    Time O(n² · d) for the first choice and a small multiple of O(n · d) for each further one; memory O(n · d).

    Args:
        vectors: Unit or zero vectors, shape (n, d).
        budget: How many, at most.
        held: Rows that are chosen already.

    Returns:
        The rows. A gain is how much f grew; gains closer than 1e-6 are ties.

    Raises:
        InvalidInput: A shape, vector, budget or held row that cannot be used.
    """
    grid, _ = exact_vectors(vectors)
    free = free_rows(len(grid), budget, held)
    covered = np.zeros(len(grid))
    for place in held:
        np.maximum(covered, _cosines(grid, np.array([place]))[:, 0], out=covered)
    bounds = np.full(len(grid), -np.inf)
    _refresh(bounds, np.flatnonzero(free), grid, covered)
    places: list[int] = []
    gains: list[float] = []
    for step in range(min(budget, int(free.sum()))):
        place = first_best(bounds) if step == 0 else _lazy_best(bounds, grid, covered)
        places.append(place)
        gains.append(float(bounds[place]))
        bounds[place] = -np.inf
        np.maximum(covered, _cosines(grid, np.array([place]))[:, 0], out=covered)
    return chosen(places, gains)


def _lazy_best(bounds: Reals, grid: Reals, covered: Reals) -> int:
    """The lowest row that ties with the best, once all that could tie have been looked at; brings their bounds up."""
    fresh = np.zeros(len(bounds), dtype=np.bool_)
    best = -np.inf
    while True:
        stale = np.flatnonzero(~fresh & np.isfinite(bounds) & (bounds >= best - TIE))
        if not len(stale):
            return first_best(np.where(fresh, bounds, -np.inf))
        rows = stale[np.argsort(-bounds[stale], kind="stable")[:_FEW]]
        _refresh(bounds, rows, grid, covered)
        fresh[rows] = True
        best = max(best, float(bounds[rows].max()))


def _refresh(bounds: Reals, rows: Integers, grid: Reals, covered: Reals) -> None:
    """Puts the gains of these rows into their places."""
    size = block_rows(len(grid))
    for start in range(0, len(rows), size):
        here = rows[start : start + size]
        gains = _cosines(grid, here)
        gains -= covered[:, None]
        np.maximum(gains, 0.0, out=gains)
        bounds[here] = gains.sum(axis=0)


def _cosines(grid: Reals, rows: Integers) -> Reals:
    """max(0, cosine) of every row to some, shape (n, rows)."""
    cosines = grid @ grid[rows].T
    np.maximum(cosines, 0.0, out=cosines)
    cosines *= _STEP
    np.rint(cosines, out=cosines)
    cosines /= _STEP
    return cosines
