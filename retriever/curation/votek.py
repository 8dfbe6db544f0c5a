"""Vote-k: rows that many others are near to, and that few chosen ones are near to (Su et al. 2023, fast vote-k).

Each row v that is not chosen votes for its k nearest neighbours, kNN(v), by the cosine of vectors centred on the pool's
mean. Its vote is worth less the more of them are chosen (L):

    score(u) = Σ over unchosen v with u in kNN(v) of  ρ^−|kNN(v) ∩ L|

The best row is chosen, the votes change, and so on. Scores are added up anew at every step, from positive terms, so
that no difference of large numbers hides what is left of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retriever.curation.chosen import Chosen, chosen, free_rows
from retriever.curation.neighbours import nearest_rows
from retriever.errors import InvalidInput
from retriever.listening import Progress, silent
from retriever.ranking.strategies.exact import exact_vectors, on_grid
from retriever.ranking.strategies.picks import Integers, Reals, check_range

MOST_NEIGHBOURS = 150
_RELATIVE_TIE = 1e-9


def votek(
    vectors: NDArray[np.float32],
    budget: int,
    *,
    neighbours: int | None = None,
    rho: float = 10.0,
    held: Sequence[int] = (),
    progress: Progress = silent,
) -> Chosen:
    """Rows by fast vote-k.

    Time O(n² · d) for the neighbours and O(n · k) for each choice; memory O(n · (d + k)).

    Args:
        vectors: Unit or zero vectors, shape (n, d). One without a direction, a zero vector or the mean itself, has no
            neighbours and is nobody's.
        budget: How many, at most.
        neighbours: k, at least 1; None for 150, or a tenth of a pool of less than 1,500.
        rho: How much less a vote is worth with every neighbour that is chosen, 1 or more.
        held: Rows that are chosen already.
        progress: Told how far the work is.

    Returns:
        The rows. A gain is the score; scores that differ by less than one part in a billion are ties.

    Raises:
        InvalidInput: A shape, vector or setting that cannot be used.
    """
    grid, squares = exact_vectors(vectors)
    free = free_rows(len(grid), budget, held)
    check_votes(neighbours, rho)
    count = min(budget, int(free.sum()))
    if not count:
        return chosen([], [])
    nearest = max(1, min(MOST_NEIGHBOURS, len(grid) // 10)) if neighbours is None else neighbours
    voters, targets = _graph(grid, squares, nearest, progress)
    seen = np.isin(targets, np.array(held, dtype=np.int64)).sum(axis=1)
    places: list[int] = []
    gains: list[float] = []
    for step in range(count):
        votes = np.where(free[voters], rho ** -seen.astype(np.float64), 0.0)
        scores = np.bincount(targets.ravel(), weights=np.repeat(votes, targets.shape[1]), minlength=len(grid))
        scores[~free] = -1.0
        place = int(np.argmax(scores >= scores.max() * (1.0 - _RELATIVE_TIE)))
        places.append(place)
        gains.append(float(scores[place]))
        free[place] = False
        seen += (targets == place).any(axis=1)
        progress("choosing", step + 1, count)
    return chosen(places, gains)


def check_votes(neighbours: int | None, rho: float) -> None:
    """Checks the settings of `votek`.

    Raises:
        InvalidInput: One is out of range.
    """
    if neighbours is not None and neighbours < 1:
        raise InvalidInput(f"neighbours = {neighbours}", expected="1 or more")
    check_range("rho", rho, 1.0, 1e6)


def _graph(grid: Reals, squares: Reals, count: int, progress: Progress) -> tuple[Integers, Integers]:
    """The rows that vote, int64, shape (voters,), and whom they vote for, int64, shape (voters, k)."""
    centred = _centred(grid, squares)
    voters = np.flatnonzero(centred.any(axis=1))
    near, _ = nearest_rows(centred[voters], count, lambda done, total: progress("comparing", done, total))
    return voters, voters[near]


def _centred(grid: Reals, squares: Reals) -> Reals:
    """The vectors less their mean, of unit length, on the grid; zero where nothing is left.

    Differences are halved before they are squared, so that squared lengths are at most 1 and exact.
    """
    real = squares > 0.0
    if not real.any():
        return np.zeros_like(grid)
    halves = np.where(real[:, None], on_grid((grid - grid.sum(axis=0) / real.sum()) / 2.0), 0.0)
    lengths = np.sqrt(np.einsum("nd,nd->n", halves, halves))
    return on_grid(halves / np.where(lengths > 0.0, lengths, 1.0)[:, None])
