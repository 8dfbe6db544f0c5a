"""AnnIndex: a FAISS index that proposes rows. What it proposes is scored again; see `indexes.dense`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InvalidInput
from indexes.vector_storage import VectorRows

if TYPE_CHECKING:
    import faiss

Vectors: TypeAlias = NDArray[np.float32]
Rows: TypeAlias = NDArray[np.int64]


_ADD_ROWS = 1 << 16
_TRAIN_ROWS = 1 << 18
"""The most rows that are trained on; for 4,096 cells 64 each, the least that FAISS's authors advise is 39."""


def _sample(count: int) -> Rows:
    """Ascending rows to train on: all of a few, of more a sample that is always the same."""
    if count <= _TRAIN_ROWS:
        return np.arange(count)
    return np.sort(np.random.default_rng(count).choice(count, _TRAIN_ROWS, replace=False))


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
    def build(cls, factory: str, rows: VectorRows) -> AnnIndex:
        """Trains and fills an index; by one thread, because HNSW built by several differs from run to run.

        Args:
            factory: What `faiss.index_factory` takes.
            rows: What is to be found.

        Raises:
            InvalidInput: FAISS does not take the factory string for these vectors.
        """
        import faiss

        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            index = faiss.index_factory(rows.dim, factory, faiss.METRIC_INNER_PRODUCT)
            index.train(rows.take(_sample(len(rows))))
            for block in rows.blocks(_ADD_ROWS):
                index.add(block)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InvalidInput(f"FAISS refuses {factory!r} for {rows.values.shape} vectors: {reason}") from error
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
