"""Dense retrieval: inner products of unit vectors, exact or proposed by a FAISS index.

Matrix products are fast, but their last bits depend on the number of threads, the batch and the kernel. So they only
narrow the choice: whatever can be among the best, within the product's error bound, is scored again by `exact_scores`,
whose bits depend on nothing but the two vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InvalidInput

if TYPE_CHECKING:
    import faiss

Vectors: TypeAlias = NDArray[np.float32]
Rows: TypeAlias = NDArray[np.int64]
Scores: TypeAlias = NDArray[np.float64]

_BLOCK_ROWS = 4096

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
        block = vectors[start : start + _BLOCK_ROWS].astype(np.float64, order="C")
        scores[start : start + _BLOCK_ROWS] = np.where(block.any(axis=1), (block * wide).sum(axis=1), NO_DIRECTION)
    return scores


def check_vectors(vectors: NDArray[np.generic], name: str) -> None:
    """Refuses anything but finite float32 rows of unit length, or zero.

    Raises:
        InvalidInput: Another dtype or shape, a NaN or infinity, or a row of another length.
    """
    if vectors.dtype != np.float32 or vectors.ndim != 2:
        raise InvalidInput(f"{name}: dtype {vectors.dtype}, shape {vectors.shape}", expected="float32, (rows, dim)")
    for start in range(0, len(vectors), _BLOCK_ROWS):
        squared = np.square(vectors[start : start + _BLOCK_ROWS], dtype=np.float64).sum(axis=1)
        wrong = ~((np.abs(squared - 1.0) < 1e-3) | (squared == 0))
        if wrong.any():
            row = start + int(wrong.argmax())
            raise InvalidInput(
                f"{name}: row {row} has length {float(np.sqrt(squared[row - start]))}", expected="1 or 0"
            )


@dataclass(frozen=True)
class Segment:
    """A run of rows.

    Attributes:
        vectors: Unit or zero rows, float32, shape (rows, dim).
        zero_rows: Which rows are zero, int64, shape (zero rows,).
    """

    vectors: Vectors
    zero_rows: Rows

    @classmethod
    def of(cls, vectors: Vectors) -> Segment:
        """A run with its zero rows found; of most rows only the first component is looked at."""
        maybe = np.flatnonzero(vectors[:, 0] == 0)
        return cls(vectors, maybe[~vectors[maybe].any(axis=1)])

    def __len__(self) -> int:
        """How many rows."""
        return len(self.vectors)


class DenseIndex:
    """Unit vectors in one or more runs of rows.

    Args:
        segments: The runs, in row order; all of one dimension, at least one.
        ann: A FAISS index over the first run that proposes rows; without it, every row is considered.
    """

    def __init__(self, segments: Sequence[Segment], ann: AnnIndex | None = None) -> None:
        self._segments = tuple(segments)
        self._starts = np.cumsum([0, *(len(segment) for segment in self._segments)])
        self.dim = self._segments[0].vectors.shape[1]
        self.ann = ann

    def __len__(self) -> int:
        return int(self._starts[-1])

    def scores(self, queries: Vectors) -> Vectors:
        """Approximate scores of every row, within `error_bound` of the exact ones.

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
            np.matmul(queries, segment.vectors.T, out=here)
            here[:, segment.zero_rows] = NO_DIRECTION
        return scores

    def exact(self, rows: Rows, query: Vectors) -> Scores:
        """The exact scores of some rows; float64, shape (rows,)."""
        return exact_scores(self.vectors(rows), query)

    def vectors(self, rows: Rows) -> Vectors:
        """The vectors of some rows, copied; float32, shape (rows, dim)."""
        if len(self._segments) == 1:
            return self._segments[0].vectors[rows]
        vectors = np.empty((len(rows), self.dim), dtype=np.float32)
        segment_of = np.searchsorted(self._starts, rows, side="right") - 1
        for number, segment in enumerate(self._segments):
            here = segment_of == number
            vectors[here] = segment.vectors[rows[here] - self._starts[number]]
        return vectors

    def propose(self, query: Vectors, count: int, eligible: NDArray[np.bool_] | None) -> Rows:
        """About `count` rows that the FAISS index finds near, and every row appended since it was built.

        Returns:
            Ascending row numbers; every eligible row when there is no FAISS index.
        """
        start = int(self._starts[1]) if self.ann is not None else 0
        rest = np.arange(start, len(self))
        rest = rest if eligible is None else rest[eligible[start:]]
        if self.ann is None:
            return rest
        return np.concatenate(
            [np.sort(self.ann.search(query, count, None if eligible is None else eligible[:start])), rest]
        )


class AnnIndex:
    """A FAISS index over inner products.

    Args:
        factory: The factory string it was built from, e.g. `HNSW32` or `IVF1024,Flat`.
        index: The FAISS index.
    """

    def __init__(self, factory: str, index: faiss.Index) -> None:
        self.factory = factory
        self._index = index

    @classmethod
    def build(cls, factory: str, vectors: Vectors) -> AnnIndex:
        """Trains and fills an index; by one thread, because HNSW built by several differs from run to run.

        Args:
            factory: What `faiss.index_factory` takes.
            vectors: float32, shape (rows, dim).

        Raises:
            InvalidInput: FAISS does not take the factory string for these vectors.
        """
        import faiss

        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            index.train(vectors)
            index.add(vectors)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InvalidInput(f"FAISS refuses {factory!r} for {vectors.shape} vectors: {reason}") from error
        finally:
            faiss.omp_set_num_threads(threads)
        return cls(factory, index)

    @classmethod
    def from_bytes(cls, factory: str, serialized: bytes | memoryview) -> AnnIndex:
        """From what `to_bytes` gave. FAISS trusts what it reads, so only bytes whose hash was checked belong here."""
        import faiss

        return cls(factory, faiss.deserialize_index(np.frombuffer(serialized, dtype=np.uint8)))

    def to_bytes(self) -> bytes:
        """The index in FAISS's own format."""
        import faiss

        return bytes(faiss.serialize_index(self._index))

    def search(self, query: Vectors, count: int, eligible: NDArray[np.bool_] | None) -> Rows:
        """Up to `count` row numbers, nearest first; fewer when the index finds fewer, never a placeholder."""
        if count <= 0:
            return np.empty(0, np.int64)
        import faiss

        parameters = None
        if eligible is not None:
            parameters = _parameters(self._index, faiss.IDSelectorBatch(np.flatnonzero(eligible)))
        found = self._index.search(query.reshape(1, -1), count, params=parameters)[1][0]
        rows: Rows = found[found >= 0]
        return rows


def _parameters(index: faiss.Index, selector: faiss.IDSelector) -> faiss.SearchParameters:
    """A filter in the form that this kind of index takes; an index around another one hands it on."""
    import faiss

    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_parameters(index.index, selector))
    if isinstance(index, faiss.IndexRefine):
        return faiss.IndexRefineSearchParameters(
            k_factor=index.k_factor, base_index_params=_parameters(index.base_index, selector)
        )
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(sel=selector, efSearch=index.hnsw.efSearch)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(sel=selector, nprobe=index.nprobe)
    return faiss.SearchParameters(sel=selector)
