"""The map that adapts vectors: a matrix, then unit length again.

Its result must not depend on what stands beside a row: a row that is added later is mapped alone, and has to come out
as it would among a million. Floating-point matrix products give no such promise, so here every product is exact. Both
factors are whole multiples of a power of two, and by Cauchy and Schwarz no partial sum leaves the 53 bits of a double:
`2^20 · 2^24 · |row of the matrix| · |vector| <= 2^53`. Sums without rounding are the same in any order, on any number
of threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retriever.errors import InvalidInput

Vectors = NDArray[np.float32]
Matrix = NDArray[np.float32]

_MATRIX_GRID = 2.0**20
_VECTOR_GRID = 2.0**24
_LARGEST = 8.0
"""Bound of a component of the matrix, so that float32 holds every multiple of 2^-20 below it."""
_LONGEST_ROW = 256.0
_BLOCK_ROWS = 4096


def on_grid(matrix: NDArray[np.floating]) -> Matrix:
    """The matrix with every component at the nearest multiple of 2^-20.

    Args:
        matrix: Shape (dim, dim).

    Raises:
        InvalidInput: A component is not finite or larger than 8, or a row longer than 256.
    """
    rounded = (np.rint(np.asarray(matrix, np.float64) * _MATRIX_GRID) / _MATRIX_GRID).astype(np.float32)
    check_matrix(rounded)
    return rounded


def check_matrix(matrix: NDArray[np.generic]) -> None:
    """Refuses a matrix that `mapped` cannot apply exactly.

    Raises:
        InvalidInput: It is not square and float32, or a component is off the grid, not finite or too large.
    """
    if matrix.dtype != np.float32 or matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InvalidInput(f"a map of {matrix.dtype}, {matrix.shape}", expected="float32, as many rows as columns")
    wide = matrix.astype(np.float64)
    if not (np.abs(wide) <= _LARGEST).all() or (np.square(wide).sum(axis=1) > _LONGEST_ROW**2).any():
        raise InvalidInput("a map whose numbers are not finite or too large", expected=f"at most {_LARGEST}")
    if (np.rint(wide * _MATRIX_GRID) != wide * _MATRIX_GRID).any():
        raise InvalidInput("a map whose numbers are not multiples of 2^-20", expected="one that was learned here")


def mapped(matrix: Matrix, vectors: Vectors) -> Vectors:
    """The vectors, mapped and of unit length again; the bits of a row depend on that row and the matrix alone.

    Args:
        matrix: From `on_grid`, shape (dim, dim).
        vectors: Unit or zero rows, shape (n, dim).

    Returns:
        Unit rows, shape (n, dim); zero where the row was zero, or is sent to zero.

    Raises:
        InvalidInput: The vectors have another dimension than the matrix.
    """
    if vectors.ndim != 2 or vectors.shape[1] != len(matrix):
        raise InvalidInput(f"vectors of shape {vectors.shape}", expected=f"{len(matrix)} components each")
    result = np.empty(vectors.shape, dtype=np.float32)
    transposed = matrix.T.astype(np.float64)
    for start in range(0, len(vectors), _BLOCK_ROWS):
        block = vectors[start : start + _BLOCK_ROWS].astype(np.float64, order="C")
        sent = (np.rint(block * _VECTOR_GRID) / _VECTOR_GRID) @ transposed
        # NumPy adds up a row of memory in one order, whatever rows stand beside it.
        lengths = np.sqrt((sent * sent).sum(axis=1, keepdims=True))
        result[start : start + _BLOCK_ROWS] = sent / np.where(lengths > 0, lengths, 1.0)
    return result


def toward_identity(matrix: Matrix, share: float) -> Matrix:
    """The map that goes a share of the way from the identity, at 0, to the matrix, at 1."""
    identity = np.eye(len(matrix))
    return on_grid(identity + share * (matrix.astype(np.float64) - identity))
