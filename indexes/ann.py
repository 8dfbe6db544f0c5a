"""AnnIndex: a FAISS index that proposes rows. What it proposes is scored again; see `indexes.dense`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InvalidInput
from indexes.files import Buffer
from indexes.vector_storage import VectorRows

if TYPE_CHECKING:
    import faiss

Vectors: TypeAlias = NDArray[np.float32]
Rows: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]

PROPOSALS = 1000
"""How many rows are proposed to be scored, unless more are asked for."""

TRAIN_ROWS = 1 << 18
"""The most rows that are trained on; for 4,096 cells 64 each, where the least that FAISS's authors advise is 39."""
_ADD_ROWS = 1 << 16
_LINK_BYTES = 4
_FEW_ELIGIBLE = 10_000
_MOST_BREADTH = 4096


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps FAISS on one thread; the number of its threads belongs to the process and is given back."""
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def predicted_bytes(factory: str, count: int, dim: int) -> int:
    """About how large an index will be.

    Args:
        factory: What `faiss.index_factory` takes.
        count: How many rows it will hold.
        dim: Their components.

    Raises:
        InvalidInput: FAISS does not take the factory string for this dimension.
    """
    index = _made(factory, dim)
    ivf = _ivf(index)
    cells = 0 if ivf is None else ivf.nlist * dim * 4
    return math.ceil(count * _row_bytes(index)) + cells


def _made(factory: str, dim: int) -> faiss.Index:
    import faiss

    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise InvalidInput(f"FAISS refuses {factory!r} for {dim} dimensions: {_last_line(error)}") from error


def _last_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1]


def _row_bytes(index: faiss.Index) -> float:
    """What an index takes for each row: its code, its number, its links."""
    import faiss

    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return _row_bytes(index.index)
    if isinstance(index, faiss.IndexRefine):
        return _row_bytes(index.base_index) + _row_bytes(index.refine_index)
    if isinstance(index, faiss.IndexHNSW):
        # The lowest level has twice as many links as those above, which one row in M reaches.
        return _row_bytes(index.storage) + 1.1 * _LINK_BYTES * int(index.hnsw.nb_neighbors(0)) + 12
    if isinstance(index, faiss.IndexNSG):
        return _row_bytes(index.storage) + _LINK_BYTES * int(index.nsg.R)
    return float(index.sa_code_size()) + 8


def _sample(count: int) -> Rows:
    """Ascending rows to train on: all of a few, of more a sample that is always the same."""
    if count <= TRAIN_ROWS:
        return np.arange(count)
    return np.sort(np.random.default_rng(count).choice(count, TRAIN_ROWS, replace=False))


class AnnIndex:
    """A FAISS index over inner products.

    Args:
        index: The FAISS index.
    """

    def __init__(self, index: faiss.Index) -> None:
        self._index = index

    @classmethod
    def build(cls, factory: str, rows: VectorRows) -> AnnIndex:
        """Trains and fills an index; by one thread, because HNSW built by several differs from run to run.

        An inverted file looks into at least as many cells as hold twice what is proposed; a graph is searched at
        least as broadly as it is asked for proposals.

        Args:
            factory: What `faiss.index_factory` takes, e.g. `HNSW32` or `IVF1024,SQ8`.
            rows: What is to be found.

        Raises:
            InvalidInput: FAISS does not take the factory string for these vectors.
        """
        import faiss

        try:
            with one_thread():
                index = faiss.index_factory(rows.dim, factory, faiss.METRIC_INNER_PRODUCT)
                index.train(rows.take(_sample(len(rows))))
                for block in rows.blocks(_ADD_ROWS):
                    index.add(block)
        except RuntimeError as error:
            shape = rows.values.shape
            raise InvalidInput(f"FAISS refuses {factory!r} for {shape} vectors: {_last_line(error)}") from error
        ann = cls(index)
        if ann._ivf is not None:
            ann.effort = min(ann.most_effort, math.ceil(2 * PROPOSALS * ann.most_effort / max(len(rows), 1)))
        else:
            ann.effort = min(ann.most_effort, max(ann.effort, PROPOSALS))
        return ann

    @classmethod
    def from_bytes(cls, serialized: bytes | memoryview) -> AnnIndex:
        """From what `to_bytes` gave. FAISS trusts what it reads, so only bytes whose hash was checked belong here."""
        import faiss

        return cls(faiss.deserialize_index(np.frombuffer(serialized, dtype=np.uint8)))

    def to_bytes(self) -> Buffer:
        """The index in FAISS's own format."""
        import faiss

        return memoryview(faiss.serialize_index(self._index))

    @cached_property
    def _ivf(self) -> faiss.IndexIVF | None:
        return _ivf(self._index)

    @cached_property
    def _hnsw(self) -> faiss.HNSW | None:
        return _hnsw(self._index)

    @property
    def effort(self) -> int:
        """How hard it searches: the cells of an inverted file that it looks into, the breadth of a graph search.

        1 where there is neither.
        """
        if self._ivf is not None:
            return int(self._ivf.nprobe)
        return 1 if self._hnsw is None else int(self._hnsw.efSearch)

    @effort.setter
    def effort(self, value: int) -> None:
        if self._ivf is not None:
            self._ivf.nprobe = value
        elif self._hnsw is not None:
            self._hnsw.efSearch = value

    @property
    def most_effort(self) -> int:
        """What no more effort helps beyond."""
        if self._ivf is not None:
            return int(self._ivf.nlist)
        return 1 if self._hnsw is None else min(max(int(self._index.ntotal), 1), _MOST_BREADTH)

    @property
    def parameters(self) -> dict[str, int]:
        """The effort by the name that FAISS has for it; empty where there is none."""
        if self._ivf is not None:
            return {"nprobe": self.effort}
        return {} if self._hnsw is None else {"efSearch": self.effort}

    @cached_property
    def filters(self) -> bool:
        """Whether it can be asked for some rows only; FAISS tells no other way than by failing."""
        import faiss

        zero = np.zeros((1, self._index.d), np.float32)
        try:
            self._index.search(zero, 1, params=_parameters(self._index, faiss.IDSelectorRange(0, 1), 1.0))
        except RuntimeError:
            return False
        return True

    def looks_at(self, count: int, share: float) -> float:
        """About how many distances a search works out.

        Args:
            count: How many rows are asked for.
            share: Of the rows that are eligible; of others an inverted file works out none.
        """
        effort = self.effort * _deeper(count)
        if self._ivf is not None and self.filters:
            return int(self._index.ntotal) * effort / self.most_effort * _harder(share) * share
        return max(effort, count) * _harder(share)

    def search(self, query: Vectors, count: int, eligible: Mask | None) -> Rows:
        """Up to `count` row numbers, nearest first; fewer when the index finds fewer, never a placeholder.

        Where only a share of the rows is eligible, or more than `PROPOSALS` are asked for, it searches harder; see
        `_harder` and `_deeper`. An index that cannot filter is asked for as many more rows as the share is smaller.
        """
        if count <= 0 or (eligible is not None and not eligible.any()):
            return np.empty(0, np.int64)
        import faiss

        if eligible is None:
            usual = count <= PROPOSALS or not self.filters
            return self._found(query, count, None if usual else _parameters(self._index, None, _deeper(count)))
        share = int(np.count_nonzero(eligible)) / len(eligible)
        if not self.filters:
            wanted = min(len(eligible), math.ceil(1.25 * count / share) + 10)
            rows = self._found(query, wanted, None)
            return rows[eligible[rows]][:count]
        bitmap = np.packbits(eligible, bitorder="little")
        harder = _harder(share) * _deeper(count)
        return self._found(query, count, _parameters(self._index, faiss.IDSelectorBitmap(bitmap), harder))

    def _found(self, query: Vectors, count: int, parameters: faiss.SearchParameters | None) -> Rows:
        found = self._index.search(query.reshape(1, -1), count, params=parameters)[1][0]
        rows: Rows = found[found >= 0]
        return rows

    def propose(self, query: Vectors, count: int, eligible: Mask | None) -> Rows:
        """About `count` rows that may be the nearest, ascending; all eligible ones where that is no more work.

        So it is where a filter leaves few, where at least half of them are asked for, and where the index finds less
        than half of what is asked for.
        """
        all_of_them = int(self._index.ntotal) if eligible is None else int(np.count_nonzero(eligible))
        few = 2 * count
        if eligible is not None and all_of_them:
            few = max(few, _FEW_ELIGIBLE, math.floor(2 * self.looks_at(count, all_of_them / len(eligible))))
        if all_of_them > few:
            found = self.search(query, count, eligible)
            if 2 * len(found) >= count:
                return np.sort(found)
        return np.arange(all_of_them) if eligible is None else np.flatnonzero(eligible)


def _innermost(index: faiss.Index) -> faiss.Index:
    """The index that holds the rows, without what transforms vectors before it or refines what it finds."""
    import faiss

    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return _innermost(index.index)
    if isinstance(index, faiss.IndexRefine):
        return _innermost(index.base_index)
    return index


def _ivf(index: faiss.Index) -> faiss.IndexIVF | None:
    """The inverted file in an index."""
    import faiss

    index = _innermost(index)
    return index if isinstance(index, faiss.IndexIVF) else None


def _hnsw(index: faiss.Index) -> faiss.HNSW | None:
    """The graph in an index."""
    import faiss

    index = _innermost(index)
    return index.hnsw if isinstance(index, faiss.IndexHNSW) else None


def _harder(share: float) -> float:
    """By how much the effort is raised where only a share of the rows is eligible.

    The nearest of them lie as far off as 1 / share as many of all rows, and farther where the filter goes with the
    vectors and the query lies where little is eligible: for that up to twice as much.
    """
    return (2.0 - share) / share


def _deeper(count: int) -> float:
    """By how much the effort, which is meant for `PROPOSALS` rows, is raised where more are asked for."""
    return max(1.0, count / PROPOSALS)


def _parameters(index: faiss.Index, selector: faiss.IDSelector | None, harder: float) -> faiss.SearchParameters:
    """A filter and an effort in the form that this kind of index takes; an index around another one hands them on.

    Args:
        index: The index.
        selector: Lets through what is eligible; None for everything.
        harder: How many times the usual effort.
    """
    import faiss

    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_parameters(index.index, selector, harder))
    if isinstance(index, faiss.IndexRefine):
        return faiss.IndexRefineSearchParameters(
            k_factor=index.k_factor, base_index_params=_parameters(index.base_index, selector, harder)
        )
    if isinstance(index, faiss.IndexHNSW):
        effort = min(max(int(index.ntotal), 1), math.ceil(index.hnsw.efSearch * harder))
        return faiss.SearchParametersHNSW(sel=selector, efSearch=effort)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(sel=selector, nprobe=min(int(index.nlist), math.ceil(index.nprobe * harder)))
    return faiss.SearchParameters(sel=selector)
