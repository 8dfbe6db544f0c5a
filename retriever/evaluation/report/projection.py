"""The pool in two dimensions: principal components (Pearson 1901), the same bits with any number of threads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retriever.ranking.strategies.picks import Reals

MOST_ROWS = 1 << 13
"""Rows that axes are found from."""

_ROUNDS = 300
_GRID = 2.0**19


@dataclass(frozen=True)
class Projection:
    """Where vectors lie on the map.

    Attributes:
        mean: What is subtracted, shape (dim,).
        axes: Orthonormal columns, shape (dim, 2).
        shares: Of the variance, how much each of the two axes holds.
    """

    mean: Reals
    axes: Reals
    shares: tuple[float, float]

    def of(self, vectors: NDArray[np.float32]) -> Reals:
        """The places of vectors, shape (n, 2)."""
        places: Reals = np.einsum("nd,dk->nk", vectors.astype(np.float64) - self.mean, self.axes)
        return places


def principal_axes(vectors: NDArray[np.float32]) -> Projection:
    """The two directions in which vectors vary most, by orthogonal iteration on their covariance.

    Components are rounded to multiples of 2⁻¹⁹, so that sums of 2¹³ of their products are float64 numbers exactly: a
    fast matrix product gives the same bits in any order. The rest is einsum, which adds in one order. The largest
    component of each axis is positive, so that no map is the mirror image of another one.

    Args:
        vectors: Unit or zero rows, shape (n, dim); dim of at least 2, n from 1 to `MOST_ROWS`.
    """
    grid = np.rint(vectors.astype(np.float64) * _GRID) / _GRID
    count, dim = grid.shape
    mean = np.array([column.sum() for column in grid.T]) / count
    covariance = (grid.T @ grid) / count - np.multiply.outer(mean, mean)
    # A start that is the same everywhere and orthogonal to nothing: the columns of a fixed pattern.
    steps = np.arange(1, dim + 1, dtype=np.float64)
    axes = _orthonormal(np.stack([np.cos(steps), np.sin(steps * 1.7)], axis=1))
    for _ in range(_ROUNDS):
        axes = _orthonormal(np.einsum("de,ek->dk", covariance, axes))
    axes = axes * np.where(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None, :], axis=0) < 0, -1.0, 1.0)
    variances = np.einsum("dk,de,ek->k", axes, covariance, axes)
    total = float(np.trace(covariance))
    shares = np.clip(variances / total, 0.0, 1.0) if total > 1e-12 else np.zeros(2)
    return Projection(mean, axes, (float(shares[0]), float(shares[1])))


def _orthonormal(columns: Reals) -> Reals:
    """Gram and Schmidt; a column of which nothing is left becomes zero."""
    first = _unit(columns[:, 0])
    second = columns[:, 1] - first * float(np.einsum("d,d->", first, columns[:, 1]))
    return np.stack([first, _unit(second)], axis=1)


def _unit(column: Reals) -> Reals:
    length = float(np.sqrt(np.einsum("d,d->", column, column)))
    return column / length if length > 1e-300 else np.zeros_like(column)
