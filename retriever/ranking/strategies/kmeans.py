"""k-means whose result depends on the vectors and the seed alone.

Lloyd's algorithm from k-means++ starting points (Arthur and Vassilvitskii 2007). Vectors are on the grid of `exact`,
and so are the centres, rounded after each mean: every inner product and every sum of members is exact, in any order, so
no thread count changes an assignment. Random numbers are the raw output of PCG64, whose stream NumPy guarantees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retriever.ranking.strategies.exact import on_grid
from retriever.ranking.strategies.picks import Integers, Reals

MOST_ROUNDS = 100
"""Rounds after which the search ends, should assignments still change."""


@dataclass(frozen=True)
class Clusters:
    """A partition of vectors.

    Attributes:
        members: The cluster of each vector, numbered from 0 in the order of their first members, int64, shape (m,).
        distances: The squared distance of each to its cluster's centre, float64, shape (m,).
        centres: Float64, shape (clusters, d). There are fewer than asked for where there are fewer distinct vectors,
            or where a cluster lost all its members.
    """

    members: Integers
    distances: Reals
    centres: Reals


def kmeans(grid: Reals, squares: Reals, count: int, seed: int) -> Clusters:
    """A partition into at most `count` clusters.

    Args:
        grid: Vectors from `exact_vectors`, shape (m, d), m > 0.
        squares: Their squared lengths, shape (m,).
        count: How many clusters, at least 1.
        seed: Seeds the starting points, 0 or more.
    """
    centres = grid[starts(grid, squares, count, seed)]
    members = _distances(grid, squares, centres).argmin(axis=1)
    for _ in range(MOST_ROUNDS):
        centres = _means(grid, members, centres)
        before, members = members, _distances(grid, squares, centres).argmin(axis=1)
        if np.array_equal(before, members):
            break
    _, first, numbers = np.unique(members, return_index=True, return_inverse=True)
    order = np.argsort(first)
    kept = centres[members[first[order]]]
    renumbered = np.argsort(order)[numbers]
    distances: Reals = _distances(grid, squares, kept)[np.arange(len(grid)), renumbered]
    return Clusters(renumbered, distances, kept)


def starts(grid: Reals, squares: Reals, count: int, seed: int) -> list[int]:
    """The places of up to `count` starting points, by k-means++.

    The first is drawn evenly, each further one in proportion to the squared distance to the nearest point so far. Fewer
    come back where all vectors are copies of those.
    """
    draws = (np.random.PCG64(seed).random_raw(count) >> np.uint64(11)) * 2.0**-53
    chosen = [int(draws[0] * len(grid))]
    nearest = _distances(grid, squares, grid[chosen])[:, 0]
    for draw in draws[1:].tolist():
        total = np.cumsum(nearest)
        if total[-1] <= 0.0:
            break
        # Below the total even after rounding, so that a point of distance 0 at the end is never drawn.
        target = min(draw * total[-1], np.nextafter(total[-1], 0.0))
        chosen.append(int(np.searchsorted(total, target, side="right")))
        nearest = np.minimum(nearest, _distances(grid, squares, grid[chosen[-1:]])[:, 0])
    return chosen


def _distances(grid: Reals, squares: Reals, centres: Reals) -> Reals:
    """Squared distances between vectors and centres, shape (m, clusters)."""
    lengths = np.einsum("cd,cd->c", centres, centres)
    distances: Reals = np.maximum(squares[:, None] - 2.0 * (grid @ centres.T) + lengths, 0.0)
    return distances


def _means(grid: Reals, members: Integers, centres: Reals) -> Reals:
    """The mean of each cluster's members, on the grid; a cluster without members keeps its centre."""
    belongs = (members == np.arange(len(centres))[:, None]).astype(np.float64)
    sizes = belongs.sum(axis=1)
    moved = on_grid((belongs @ grid) / np.maximum(sizes, 1.0)[:, None])
    return np.where(sizes[:, None] > 0, moved, centres)
