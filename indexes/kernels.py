"""Compiled loops, where numba is installed (the extra `fast`) and there is enough to do to pay for compiling them.

Importing numba and compiling takes more than a second in every process: nothing compiled is kept on disk, because
numba's own cache is read without a check. So a process begins with NumPy and counts the work that the loops would have
done; once that has cost about as much as compiling does, the loops are compiled, within the call that comes next. A
command line that answers one query never pays; a service pays once; whatever the work to come, at most twice the best
possible time is spent.

The loops do what their NumPy counterparts do, in the same order and in float64, without contraction or reassociation:
the results are the same bits. They are written for numba. A place that is unsigned cannot count from the end, and needs
no test of that in the innermost loop; and places, where a slice would read well, are compiled in a quarter of the time.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Doubles: TypeAlias = NDArray[np.float64]

ENOUGH = 300_000_000
"""Postings that NumPy adds up in about the time that compiling takes: 3,000 queries to 100,000 texts of 12 terms."""

OKAPI, PLUS, L = range(3)
"""The forms of a tf-part."""

UNKNOWN, SEEN, STORED = range(3)
"""What is to be done with a term's weights: work them out and forget them, work them out and keep them, read them."""

ROWS = 1 << 14
"""Rows that are scored together, for all queries: their scores and their postings stay in a processor's cache."""
_CHUNK = 512
_STEP = 64


@dataclass(frozen=True)
class Kernels:
    """The compiled loops.

    Attributes:
        add: See `_adding`.
        best: See `_best`.
    """

    add: Callable[..., None]
    best: Callable[..., Any]


class Loader:
    """Counts work and compiles once; safe to use from several threads.

    Args:
        enough: The work after which it compiles.
    """

    def __init__(self, enough: float = ENOUGH) -> None:
        self.kernels: Kernels | None = None
        self._enough = enough
        self._work = 0
        self._tried = False
        self._lock = threading.Lock()

    def after(self, work: int) -> Kernels | None:
        """See the function of that name."""
        if self._tried:
            return self.kernels
        self._work += work
        return self.load() if self._work >= self._enough else None

    def load(self) -> Kernels | None:
        """See the function of that name."""
        with self._lock:
            if not self._tried:
                self.kernels = _compiled()
                self._tried = True
            return self.kernels


_loader = Loader()


@contextmanager
def using(loader: Loader) -> Iterator[None]:
    """With another loader in the whole process, so that a measurement can say what it measures."""
    global _loader
    before, _loader = _loader, loader
    try:
        yield
    finally:
        _loader = before


def after(work: int) -> Kernels | None:
    """The compiled loops, once enough was done without them; None before, and where there is no numba.

    Args:
        work: Postings that are about to be added up.
    """
    return _loader.after(work)


def current() -> Kernels | None:
    """The compiled loops if they are there already."""
    return _loader.kernels


def load() -> Kernels | None:
    """The compiled loops now; None where there is no numba. For a service that would rather wait when it starts."""
    return _loader.load()


def _compiled() -> Kernels | None:
    if find_spec("numba") is None:
        return None
    try:
        import numba
    except ImportError as error:
        warnings.warn(f"numba cannot be imported, so that NumPy does its work: {error}", RuntimeWarning, stacklevel=4)
        return None
    int32s = numba.types.Array(numba.int32, 1, "C", readonly=True)
    int64s = numba.types.Array(numba.int64, 1, "C", readonly=True)
    doubles = numba.types.Array(numba.float64, 1, "C", readonly=True)
    # Without `fastmath` LLVM neither reorders nor contracts; dividing by 0 gives what IEEE 754 says, as in NumPy.
    compiled = partial(numba.njit, nogil=True, error_model="numpy")
    add = numba.void(
        numba.float64[:, ::1], numba.int64, numba.int64, numba.int64, numba.int64[::1],
        numba.int64[::1], numba.int64[::1], numba.float64[::1], numba.float64[::1], numba.uint8[::1],
        int32s, int32s, int32s, numba.float64[::1],
        numba.int64, numba.float64, numba.float64, numba.float64, numba.float64,
    )  # fmt: skip
    best = numba.int64[::1](int64s, doubles, numba.int64)
    parts = (compiled()(part) for part in (_until, _weigh, _spread))
    return Kernels(compiled(add)(_adding(*parts)), compiled(best)(_best))


def _until(rows: NDArray[np.int32], start: int, stop: int, row: int) -> int:
    """The first of the ascending rows from `start` to `stop` that is not below a row."""
    while start < stop:
        middle = (start + stop) // 2
        if rows[middle] < row:
            start = middle + 1
        else:
            stop = middle
    return start


def _weigh(
    out: Doubles,
    first: int,
    count: int,
    rows: NDArray[np.int32],
    counts: NDArray[np.int32],
    lengths: NDArray[np.int32],
    idf: float,
    form: int,
    mean: float,
    k1: float,
    b: float,
    delta: float,
) -> None:
    """What each of some postings adds, idf · tf-part; the formulas are those of `indexes.lexical`."""
    for i in range(count):  # by itself, so that the arithmetic below is done on several at once
        out[i] = lengths[np.uint32(rows[np.uint64(first + i)])]
    for i in range(count):
        out[i] = 1.0 - b + b * (out[i] / mean)
    if form == L:
        for i in range(count):
            normalised = counts[np.uint64(first + i)] / out[i] + delta
            out[i] = idf * ((k1 + 1.0) * normalised / (k1 + normalised))
    elif form == PLUS:
        for i in range(count):
            times = np.float64(counts[np.uint64(first + i)])
            out[i] = idf * (delta + times * (k1 + 1.0) / (times + k1 * out[i]))
    else:
        for i in range(count):
            times = np.float64(counts[np.uint64(first + i)])
            out[i] = idf * (times * (k1 + 1.0) / (times + k1 * out[i]))


def _spread(
    scores: Doubles, rows: NDArray[np.int32], start: int, stop: int, weights: Doubles, first: int, repeats: float
) -> None:
    """Adds what the postings from `start` to `stop` contribute; `weights` begins with that of the posting `first`."""
    for i in range(start, stop):
        scores[np.uint32(rows[np.uint64(i)])] += repeats * weights[np.uint64(i - first)]


def _adding(until: Callable[..., int], weigh: Callable[..., None], spread: Callable[..., None]) -> Callable[..., None]:
    """The loop that writes scores, over three compiled ones."""

    def add(
        scores: Doubles,
        base: int,
        first_row: int,
        end_row: int,
        queries: NDArray[np.int64],
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        idfs: Doubles,
        times: Doubles,
        ways: NDArray[np.uint8],
        rows: NDArray[np.int32],
        counts: NDArray[np.int32],
        lengths: NDArray[np.int32],
        weights: Doubles,
        form: int,
        mean: float,
        k1: float,
        b: float,
        delta: float,
    ) -> None:
        """Writes the scores of some rows of a part: what the terms of each query contribute, in their order.

        Calls for different rows write nothing in common, so that they may run side by side.

        Args:
            scores: Of all rows of all parts, shape (queries, all rows).
            base: Where the part's rows begin among them; what follows is of the part alone.
            first_row: The first of the rows.
            end_row: The end of the rows.
            queries: Where the terms of each query begin, and the end, shape (queries + 1,).
            starts: Where the postings of each term begin, shape (terms,).
            stops: Where they end.
            idfs: The idf of each.
            times: How often each occurs in its query.
            ways: `UNKNOWN`, `SEEN` or `STORED` for each.
            rows: Of all postings.
            counts: Of all postings.
            lengths: Of all rows.
            weights: What each posting adds, idf · tf-part, where it is stored.
            form: `OKAPI`, `PLUS` or `L`.
            mean: Of the lengths.
            k1: A parameter of the formulas, as are the two that follow.
            b: A parameter.
            delta: A parameter.
        """
        chunk = np.empty(_CHUNK)
        for low in range(first_row, end_row, ROWS):
            high = min(low + ROWS, end_row)
            for query in range(len(queries) - 1):
                of = scores[query, base:]
                for row in range(low, high):
                    of[np.uint64(row)] = 0.0
                for term in range(queries[query], queries[query + 1]):
                    repeats, way = times[term], ways[term]
                    start = until(rows, starts[term], stops[term], low)
                    stop = until(rows, start, stops[term], high)
                    if way == STORED:
                        spread(of, rows, start, stop, weights, 0, repeats)
                        continue
                    for first in range(start, stop, _CHUNK):
                        count = min(_CHUNK, stop - first)
                        weigh(chunk, first, count, rows, counts, lengths, idfs[term], form, mean, k1, b, delta)
                        if way == SEEN:
                            for i in range(count):
                                weights[np.uint64(first + i)] = chunk[i]
                        spread(of, rows, first, first + count, chunk, first, repeats)

    return add


def _best(rows: NDArray[np.int64], scores: Doubles, k: int) -> NDArray[np.int64]:
    """The places of the k best by (−score, row), in one pass; see `indexes.topk.top`.

    Args:
        rows: Shape (n,).
        scores: Shape (n,).
        k: From 1 to n.
    """
    best, places, held = np.empty(k, np.float64), np.empty(k, np.int64), 0
    for start in range(0, len(scores), _STEP):
        step = scores[start : start + _STEP]
        if held == k and len(step) == _STEP:
            bound, reach = best[k - 1], np.int64(0)
            for i in range(_STEP):
                reach += np.int64(step[np.uint64(i)] >= bound)
            if not reach:
                continue
        for i in range(len(step)):
            score, row = step[i], rows[start + i]
            if held == k and (score < best[k - 1] or (score == best[k - 1] and row > rows[places[k - 1]])):
                continue
            held = min(held + 1, k)
            place = held - 1
            while place > 0 and (
                score > best[place - 1] or (score == best[place - 1] and row < rows[places[place - 1]])
            ):
                best[place], places[place] = best[place - 1], places[place - 1]
                place -= 1
            best[place], places[place] = score, start + i
    return places
