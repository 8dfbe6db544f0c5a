"""The nearest neighbours of every row of a pool, exactly, in blocks."""

from __future__ import annotations

import numpy as np

from retriever.curation.chosen import block_rows
from retriever.listening import Steps, silent
from retriever.ranking.strategies.picks import Integers, Reals

_SELF = -2.0


def nearest_rows(grid: Reals, count: int, progress: Steps = silent) -> tuple[Integers, Reals]:
    """For every row its nearest others by cosine; equal cosines go to the lower row.

    A row is left out of its own neighbours by its number, not as the most similar, so that copies are neighbours.

    Args:
        grid: Unit vectors from `exact_vectors`, shape (n, d).
        count: How many neighbours, at least 1; n − 1 at most are given.
        progress: Told how many rows are done, and how many there are.

    Returns:
        Rows, nearest first, int64, and their cosines, float64; both of shape (n, min(count, n − 1)).
    """
    total = len(grid)
    count = max(0, min(count, total - 1))
    rows = np.empty((total, count), dtype=np.int64)
    cosines = np.empty((total, count))
    size = block_rows(total)
    for start in range(0, total if count else 0, size):
        block = grid[start : start + size] @ grid.T
        here = np.arange(len(block))
        block[here, start + here] = _SELF
        found = _best(block, count)
        near = np.take_along_axis(block, found, axis=1)
        order = np.argsort(-near, axis=1, kind="stable")
        rows[start : start + size] = np.take_along_axis(found, order, axis=1)
        cosines[start : start + size] = np.take_along_axis(near, order, axis=1)
        progress(min(start + size, total), total)
    return rows, cosines


def _best(block: Reals, count: int) -> Integers:
    """The columns of the `count` largest of each row, ascending; of equal ones the first columns."""
    least = np.partition(block, block.shape[1] - count, axis=1)[:, block.shape[1] - count]
    kept = block >= least[:, None]
    for row in np.flatnonzero(kept.sum(axis=1) > count).tolist():
        surplus = int(kept[row].sum()) - count
        kept[row, np.flatnonzero(block[row] == least[row])[-surplus:]] = False
    return np.nonzero(kept)[1].reshape(len(block), count)
