"""Dense retrieval: inner products of unit vectors, of all rows or of those that a FAISS index proposes.

Matrix products are fast, but their last bits depend on the number of threads, the batch and the kernel. So they only
narrow the choice: whatever can be among the best, within the product's error bound, is scored again by `exact_scores`,
whose bits depend on nothing but the two vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.ann import AnnIndex
from indexes.vector_storage import VectorRows

Vectors: TypeAlias = NDArray[np.float32]
Rows: TypeAlias = NDArray[np.int64]
Scores: TypeAlias = NDArray[np.float64]

_BLOCK_ROWS = 4096
_GATHER_ROWS = 1024
STORED_ROUNDINGS = 2
"""Roundings beside those of the sum, at most; see `VectorRows.products`."""

NO_DIRECTION = -1.0
"""The score of a zero vector: it has no direction, so it is like nothing."""


def error_bound(dim: int) -> float:
    """How far a float32 inner product of two unit vectors of this dimension can be off, with a factor of 2 to spare.

    The bound is dim · 2⁻²⁴ for any order of summation (Higham, "Accuracy and Stability of Numerical Algorithms", §3.1).
    """
    return 2.0 * max(dim, 1) * 2.0**-24


def exact_scores(vectors: Vectors, query: Vectors) -> Scores:
    """Inner products in float64, each summed in the same order whatever stands beside it.

    Args:
        vectors: Unit or zero rows, float32, shape (n, dim).
        query: A unit vector, float32, shape (dim,).

    Returns:
        Shape (n,); `NO_DIRECTION` where a row, or the query, is zero.
    """
    scores = np.full(len(vectors), NO_DIRECTION)
    if not query.any():
        return scores
    wide = query.astype(np.float64)
    for start in range(0, len(vectors), _BLOCK_ROWS):
        # NumPy adds up a row in another order when the memory runs by columns.
        block = vectors[start : start + _BLOCK_ROWS]
        products = block.astype(np.float64, order="C")
        products *= wide
        sums = products.sum(axis=1)
        maybe = np.flatnonzero(sums == 0.0)  # few or none: to look at all components takes as long as the products
        sums[maybe[~block[maybe].any(axis=1)]] = NO_DIRECTION
        scores[start : start + _BLOCK_ROWS] = sums
    return scores


@dataclass(frozen=True)
class Segment:
    """A run of rows.

    Attributes:
        rows: Unit or zero rows, as they are stored.
    """

    rows: VectorRows

    @classmethod
    def of(cls, vectors: Vectors, kind: str = "float32") -> Segment:
        """A run of vectors, in one of `indexes.vector_storage.TYPES`."""
        return cls(VectorRows.of(vectors, kind))

    @cached_property
    def zero_rows(self) -> Rows:
        """Which rows are zero, int64, shape (zero rows,); found when they are first asked for, not at opening."""
        return self.rows.zero_rows()

    def __len__(self) -> int:
        """How many rows."""
        return len(self.rows)


class DenseIndex:
    """Unit vectors in one or more runs of rows.

    Args:
        segments: The runs, in row order; all of one dimension, at least one.
        ann: A FAISS index over the first run that proposes rows; without it, every row is considered.
    """

    def __init__(self, segments: Sequence[Segment], ann: AnnIndex | None = None) -> None:
        self._segments = tuple(segments)
        self._starts = np.cumsum([0, *(len(segment) for segment in self._segments)])
        self.dim = self._segments[0].rows.dim
        self.ann = ann

    @property
    def bound(self) -> float:
        """How far `scores` can be off."""
        return error_bound(self.dim + STORED_ROUNDINGS)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def scores(self, queries: Vectors) -> Vectors:
        """Approximate scores of every row, within `bound` of the exact ones.

        Args:
            queries: Shape (queries, dim).

        Returns:
            float32, shape (queries, rows).
        """
        directed = queries.any(axis=1)
        if not directed.all():
            scores = np.full((len(queries), len(self)), NO_DIRECTION, dtype=np.float32)
            if directed.any():
                scores[directed] = self.scores(queries[directed])
            return scores
        scores = np.empty((len(queries), len(self)), dtype=np.float32)
        for segment, start in zip(self._segments, self._starts, strict=False):
            here = scores[:, start : start + len(segment)]
            segment.rows.products(queries, here)
            here[:, segment.zero_rows] = NO_DIRECTION
        return scores

    def exact(self, rows: Rows, query: Vectors) -> Scores:
        """The exact scores of some rows; float64, shape (rows,)."""
        blocks = range(0, len(rows), _BLOCK_ROWS)
        scores = [exact_scores(self.vectors(rows[start : start + _BLOCK_ROWS]), query) for start in blocks]
        return np.concatenate([np.empty(0), *scores])

    def vectors(self, rows: Rows) -> Vectors:
        """The vectors of some rows, copied; float32, shape (rows, dim)."""
        if len(self._segments) == 1:
            return self._segments[0].rows.take(rows)
        vectors = np.empty((len(rows), self.dim), dtype=np.float32)
        segment_of = np.searchsorted(self._starts, rows, side="right") - 1
        for number, segment in enumerate(self._segments):
            here = segment_of == number
            vectors[here] = segment.rows.take(rows[here] - self._starts[number])
        return vectors

    def propose(self, query: Vectors, count: int, eligible: NDArray[np.bool_] | None) -> Rows:
        """About `count` rows that the FAISS index finds near, and every row appended since it was built.

        See `AnnIndex.propose`.

        Returns:
            Ascending row numbers; every eligible row when there is no FAISS index.
        """
        start = int(self._starts[1]) if self.ann is not None else 0
        rest = np.arange(start, len(self))
        rest = rest if eligible is None else rest[eligible[start:]]
        if self.ann is None:
            return rest
        return np.concatenate([self.ann.propose(query, count, None if eligible is None else eligible[:start]), rest])

    def scores_of(self, rows: Rows, query: Vectors) -> Vectors:
        """What `scores` gives for some rows of one query; float32, shape (rows,)."""
        scores = np.full(len(rows), NO_DIRECTION, dtype=np.float32)
        for start in range(0, len(rows) if query.any() else 0, _GATHER_ROWS):
            block = self.vectors(rows[start : start + _GATHER_ROWS])
            directed = (block[:, 0] != 0) | block.any(axis=1)
            scores[start : start + _GATHER_ROWS] = np.where(directed, block @ query, NO_DIRECTION)
        return scores
