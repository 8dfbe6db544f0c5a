"""k-center: rows such that every row is near one of them (Gonzalez 1985).

The next row is always the one that is farthest from all chosen so far. The largest distance that remains is at most
twice that of the best set of the same size. Distances are Euclidean; between unit vectors √(2 − 2 · cosine).

It spreads over the whole pool, odd ones first: good to annotate for coverage, bad when the pool holds rubbish.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retriever.curation.chosen import Chosen, chosen, free_rows
from retriever.listening import Progress, silent
from retriever.ranking.strategies.exact import exact_vectors, on_grid
from retriever.ranking.strategies.picks import Reals, first_best


def kcenter(
    vectors: NDArray[np.float32], budget: int, *, held: Sequence[int] = (), progress: Progress = silent
) -> Chosen:
    """Rows, each the farthest from those before; without held rows the first is the nearest to the mean.

    Time O((budget + held rows) · n · d), memory O(n · d).

    Args:
        vectors: Unit or zero vectors, shape (n, d).
        budget: How many, at most.
        held: Rows that are chosen already.
        progress: Told how far the work is.

    Returns:
        The rows. A gain is the distance to the nearest row chosen before, infinite for the first of all. Squared
        distances that differ by less than 1e-6 are ties.

    Raises:
        InvalidInput: A shape, vector, budget or held row that cannot be used.
    """
    grid, squares = exact_vectors(vectors)
    free = free_rows(len(grid), budget, held)
    nearest = np.full(len(grid), np.inf)
    for place in held:
        np.minimum(nearest, _squared_distances(grid, squares, place), out=nearest)
    places: list[int] = []
    gains: list[float] = []
    count = min(budget, int(free.sum()))
    for step in range(count):
        merit = nearest if len(places) or len(held) else _centrality(grid, squares)
        place = first_best(np.where(free, merit, -np.inf))
        places.append(place)
        gains.append(float(np.sqrt(nearest[place])))
        free[place] = False
        np.minimum(nearest, _squared_distances(grid, squares, place), out=nearest)
        progress("choosing", step + 1, count)
    return chosen(places, gains)


def _squared_distances(grid: Reals, squares: Reals, place: int) -> Reals:
    distances: Reals = np.maximum(squares + squares[place] - 2.0 * (grid @ grid[place]), 0.0)
    return distances


def _centrality(grid: Reals, squares: Reals) -> Reals:
    """Minus the squared distance to the mean, but for a constant; the mean's sum and its products are exact."""
    mean = on_grid(grid.sum(axis=0) / len(grid))
    centrality: Reals = 2.0 * (grid @ mean) - squares
    return centrality
