"""Inner products without rounding, so that no thread count, library or row order can change a tie.

A sum of float products depends on the order of the additions. A linear-algebra library chooses that order by the number
of threads, the shape and the position of a row: two copies of one vector can get inner products that differ in the last
bit. Here the components are first rounded to multiples of 2⁻²⁶ (finer than the float32 of all but the smallest
components of a unit vector; a cosine moves by about 1e-8). Products are then multiples of 2⁻⁵², and by Cauchy and
Schwarz no partial sum exceeds |x||y| ≤ 2. Every such number is a float64. No addition rounds, so every order, fused or
not, gives the same bits, and a fast matrix product may be used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retriever.errors import InvalidInput
from retriever.ranking.strategies.picks import Reals

_GRID = 2.0**26
_NORM_SLACK = 1e-3


def on_grid(numbers: NDArray[np.floating]) -> Reals:
    """The numbers rounded to multiples of 2⁻²⁶, float64, same shape."""
    grid = numbers.astype(np.float64, order="C")
    grid *= _GRID
    np.rint(grid, out=grid)
    grid *= 1.0 / _GRID  # a power of two: exact, and faster than dividing
    return grid


def exact_vectors(vectors: NDArray[np.float32]) -> tuple[Reals, Reals]:
    """Vectors whose inner products are exact, and their squared norms.

    Args:
        vectors: Unit or zero vectors, shape (m, d).

    Returns:
        The vectors on the grid, float64, shape (m, d); their exact squared norms, float64, shape (m,).

    Raises:
        InvalidInput: Not a matrix, not finite, or a vector of another length than 0 or 1.
    """
    if vectors.ndim != 2:
        raise InvalidInput(f"vectors of shape {vectors.shape}", expected="(candidates, dimensions)")
    grid = on_grid(vectors)
    squares = np.einsum("md,md->m", grid, grid)
    wrong = ~((np.abs(squares - 1.0) <= _NORM_SLACK) | (squares == 0.0))
    if wrong.any():
        place = int(np.argmax(wrong))
        raise InvalidInput(f"vector {place} has squared length {squares[place]:g}", expected="unit or zero vectors")
    return grid, squares
