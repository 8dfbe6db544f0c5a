"""The pool in two dimensions, the same bits with any number of threads.

pca     principal components (Pearson 1901): a straight view, along the two directions in which vectors vary most
umap    UMAP (McInnes et al. 2018): near stays near, far says little
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retriever.errors import MissingDependency
from retriever.ranking.strategies.picks import Reals

METHODS = ("pca", "umap")
FEWEST = 4
"""Points below which there is nothing that UMAP could lay out."""

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
    grid = _on_grid(vectors)
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


def _on_grid(vectors: NDArray[np.float32]) -> Reals:
    """Components rounded to multiples of 2⁻¹⁹, so that sums of their products are exact."""
    grid: Reals = np.rint(vectors.astype(np.float64) * _GRID) / _GRID
    return grid


def require_umap() -> None:
    """Makes sure that UMAP is there.

    Raises:
        MissingDependency: It is not installed.
    """
    with warnings.catch_warnings():
        # The package says of each import that its parametric form, which needs Tensorflow, is not there.
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
        try:
            import umap  # noqa: F401
        except ImportError as error:
            raise MissingDependency("umap-learn", "umap", purpose="a map by UMAP") from error


def umap_places(vectors: NDArray[np.float32], seed: int) -> Reals | None:
    """Where UMAP lays vectors out; those that are to be compared are laid out together.

    Its neighbours are exact, by cosine, and it begins with the principal components: its own approximate neighbours and
    its spectral start would depend on the number of threads. The layout itself runs in one thread.

    Args:
        vectors: Unit or zero rows, shape (n, dim).
        seed: Of the layout.

    Returns:
        Shape (n, 2); None where there is nothing to lay out: fewer rows than `FEWEST`, or none that differ.

    Raises:
        MissingDependency: The extra `umap` is not installed.
    """
    require_umap()
    from umap import UMAP

    if len(vectors) < FEWEST:
        return None
    grid = _on_grid(vectors)
    distances = np.clip(1.0 - grid @ grid.T, 0.0, 2.0)
    np.fill_diagonal(distances, 0.0)
    start = principal_axes(vectors[:MOST_ROWS]).of(vectors)
    start = start / max(float(np.abs(start).max()), 1e-12) * 10.0
    # Where no row differs from another one, UMAP divides by the size of what it begins with, which is 0.
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.filterwarnings("ignore", "using precomputed metric", UserWarning)
        layout = UMAP(
            n_neighbors=min(15, len(vectors) - 1),
            metric="precomputed",
            init=start.astype(np.float32),
            random_state=seed,
            n_jobs=1,
        )
        places: Reals = layout.fit_transform(distances).astype(np.float64)
    return places if np.isfinite(places).all() else None


def _orthonormal(columns: Reals) -> Reals:
    """Gram and Schmidt; a column of which nothing is left becomes zero."""
    first = _unit(columns[:, 0])
    second = columns[:, 1] - first * float(np.einsum("d,d->", first, columns[:, 1]))
    return np.stack([first, _unit(second)], axis=1)


def _unit(column: Reals) -> Reals:
    length = float(np.sqrt(np.einsum("d,d->", column, column)))
    return column / length if length > 1e-300 else np.zeros_like(column)
