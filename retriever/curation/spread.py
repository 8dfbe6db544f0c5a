"""Greedy log-determinant: rows that together span most (a determinantal point process without a query).

The kernel is that of `retriever.ranking.strategies.dpp`, K = (1 + cosine) / 2, with every row as relevant as every
other. The next row is the one that adds most to log det K_S: log of its variance under K, given the rows before.

It spreads like k-center, but weighs directions: a row in the span of others adds nothing, however far it is from each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retriever.curation.chosen import Chosen, chosen, free_rows
from retriever.listening import Progress, silent
from retriever.ranking.strategies.conditioning import Conditioned
from retriever.ranking.strategies.dpp import LEAST_VARIANCE
from retriever.ranking.strategies.exact import exact_vectors
from retriever.ranking.strategies.picks import Reals, first_best


def spread(
    vectors: NDArray[np.float32], budget: int, *, held: Sequence[int] = (), progress: Progress = silent
) -> Chosen:
    """Rows, each the one that adds most to the volume of those before.

    Time O(s · n · (d + s)) and memory O(n · (d + s)), where s ≤ d + 1 is how many rows are conditioned on.

    Args:
        vectors: Unit or zero vectors, shape (n, d).
        budget: How many, at most.
        held: Rows that are chosen already.
        progress: Told how far the work is.

    Returns:
        The rows. A gain is how much log det K_S grew; gains closer than 1e-6 are ties. K has no more than d + 1
        independent rows. Once every free row lies in the span of those before, the lowest follow, with gain −inf, the
        logarithm of a determinant of 0.

    Raises:
        InvalidInput: A shape, vector, budget or held row that cannot be used.
    """
    grid, squares = exact_vectors(vectors)
    free = free_rows(len(grid), budget, held)
    count = min(budget, int(free.sum()))
    span = _Span(grid, squares, len(held) + count)
    for place in held:
        if span.open[place]:
            span.add(place)
    places: list[int] = []
    gains: list[float] = []
    for step in range(count):
        fresh = free & span.open
        gain = np.log(span.variance, out=np.full(len(grid), -np.inf), where=fresh)
        place = first_best(gain) if fresh.any() else int(np.argmax(free))
        places.append(place)
        gains.append(float(gain[place]))
        free[place] = False
        if fresh[place]:
            span.add(place)
        progress("choosing", step + 1, count)
    return chosen(places, gains)


class _Span:
    """What some rows leave open of every row's variance under K.

    Attributes:
        variance: Of each row given those that were added, float64, shape (n,).
        open: Which rows are not in their span, bool, shape (n,).
    """

    def __init__(self, grid: Reals, squares: Reals, most: int) -> None:
        """Of no row; at most `most` will be added."""
        self._grid = grid
        self._rank = min(most, grid.shape[1] + 1)
        self._conditioned = Conditioned(self._rank, len(grid))
        self.variance: Reals = (1.0 + squares) / 2.0
        self.open = self.variance > LEAST_VARIANCE

    def add(self, place: int) -> None:
        """Takes in a row that is open."""
        kernel_row = (1.0 + self._grid @ self._grid[place]) / 2.0
        row = self._conditioned.add(place, kernel_row, float(self.variance[place]))
        self.variance = self.variance - row * row
        self.open &= self.variance > LEAST_VARIANCE
        self.open[self._conditioned.places] = False
        if len(self._conditioned.places) == self._rank:
            self.open[:] = False
