"""BM25 over postings in arrays.

The score of a document is the sum, over the terms of the query as often as they occur in it, of idf(term) · tf-part.
Both parts differ by variant; each formula is one function below. Nothing is precomputed from collection statistics, so
that an index which grew by appends gives exactly the scores of one built afresh.

Sources: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009 (okapi); Lv and Zhai,
"When documents are very long, BM25 fails!", SIGIR 2011 (l); Lv and Zhai, "Lower-bounding term frequency normalization",
CIKM 2011 (plus); Kamphuis et al., "Which BM25 do you mean?", ECIR 2020 (lucene, and the comparison).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from indexes import kernels, parallel
from indexes.errors import InvalidInput
from indexes.postings import Postings

Scores: TypeAlias = NDArray[np.float64]
Number = TypeVar("Number", bound=np.generic)

VARIANTS = ("lucene", "okapi", "plus", "l")


@dataclass(frozen=True)
class BM25:
    """The settings of BM25.

    Attributes:
        variant: `lucene` (never negative, the default), `okapi` (as in rank-bm25, floor included), `plus` or `l`.
        k1: How fast repeated terms saturate.
        b: How much long documents are discounted, from 0 to 1.
        delta: The lower bound that `plus` (1 in the paper) and `l` (½) add; None takes the paper's.
        epsilon: `okapi` replaces a negative idf by this share of the mean idf.
    """

    variant: str = "lucene"
    k1: float = 1.5
    b: float = 0.75
    delta: float | None = None
    epsilon: float = 0.25

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise InvalidInput(f"BM25 variant {self.variant!r}", expected=f"one of {', '.join(VARIANTS)}")
        if not (0 < self.k1 < math.inf and 0 <= self.b <= 1):
            raise InvalidInput(f"BM25 with k1={self.k1}, b={self.b}", expected="k1 over 0, finite, and b from 0 to 1")

    @property
    def lower_bound(self) -> float:
        """`delta`, or the paper's."""
        if self.delta is None:
            return 0.5 if self.variant == "l" else 1.0
        return self.delta

    @property
    def signed(self) -> bool:
        """Whether a score can be below 0: by the idf of a frequent term, or by a `delta` below 0."""
        return self.variant == "okapi" or self.lower_bound < 0


def idf_lucene(documents: int, containing: int) -> float:
    """ln(1 + (N − n + ½) / (n + ½)): always over 0."""
    return math.log1p((documents - containing + 0.5) / (containing + 0.5))


def idf_okapi(documents: int, containing: int) -> float:
    """ln((N − n + ½) / (n + ½)): negative for a term in more than half of the documents."""
    return math.log(documents - containing + 0.5) - math.log(containing + 0.5)


def idf_plus(documents: int, containing: int) -> float:
    """ln((N + 1) / n)."""
    return math.log((documents + 1) / containing)


def idf_l(documents: int, containing: int) -> float:
    """ln((N + 1) / (n + ½))."""
    return math.log((documents + 1) / (containing + 0.5))


def tf_okapi(counts: Scores, norms: Scores, k1: float) -> Scores:
    """Tf · (k1 + 1) / (tf + k1 · norm), norm = 1 − b + b · length / mean length."""
    return counts * (k1 + 1.0) / (counts + k1 * norms)


def tf_plus(counts: Scores, norms: Scores, k1: float, delta: float) -> Scores:
    """Delta + tf · (k1 + 1) / (tf + k1 · norm)."""
    return delta + tf_okapi(counts, norms, k1)


def tf_l(counts: Scores, norms: Scores, k1: float, delta: float) -> Scores:
    """(k1 + 1) · (c + delta) / (k1 + c + delta), c = tf / norm."""
    normalised = counts / norms + delta
    return (k1 + 1.0) * normalised / (k1 + normalised)


class LexicalIndex(Protocol):
    """What the hybrid index asks of a lexical one."""

    settings: BM25

    def __len__(self) -> int:
        """How many rows there are, removed ones included."""

    def knows(self, terms: Iterable[str]) -> bool:
        """Whether any row that was not removed contains any of the terms."""

    def scores(self, terms: Sequence[str]) -> Scores:
        """The score of every row for the terms of a query; shape (rows,). Scores of removed rows mean nothing."""

    def scores_of(self, rows: NDArray[np.int64], terms: Sequence[str]) -> Scores:
        """The same of some rows, ascending, to the bit; shape as `rows`."""

    def block(self, queries: Sequence[Sequence[str]]) -> Scores:
        """The same for several queries at once, to the bit; shape (queries, rows)."""


_CHUNK = 1 << 14
"""Postings that NumPy works on at once: what it writes in between stays in the processor's cache."""

_TABLE_LENGTHS, _TABLE_COUNTS = 1 << 10, 8
"""Up to which length and count NumPy looks tf-parts up in a table."""

_MOST_TERMS = 1 << 16
"""Terms whose places are remembered; about 500 bytes each."""

_ALONE = 1 << 18
"""Postings that are added up, some 0.3 ms of compiled work, before it pays to wake other threads."""

_PIECES = 4
"""Of the work for each core: the last one to finish keeps the others waiting for less."""

_FORMS = {"plus": kernels.PLUS, "l": kernels.L}


class _Term(NamedTuple):
    """Where a term is found.

    Attributes:
        containing: How many rows that were not removed contain it.
        idf: Its idf.
        spans: The part, the number in its vocabulary, and where the postings begin and end, for each part with any.
    """

    containing: int
    idf: float
    spans: tuple[tuple[int, int, int, int], ...]


def _shared(places: NDArray[np.int64], ways: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What is to be done about the weights of terms that come several times: stored the first time, then read."""
    _, first, inverse, often = np.unique(places, return_index=True, return_inverse=True, return_counts=True)
    ways = np.where(often[inverse] > 1, np.maximum(ways, kernels.SEEN), ways)
    return np.where(np.arange(len(places)) > first[inverse], kernels.STORED, ways).astype(np.uint8)


class _Wanted(NamedTuple):
    """A term of a query in one part: the query's number, the term's, where its postings are, idf, and how often."""

    query: int
    number: int
    start: int
    stop: int
    idf: float
    times: int


@dataclass(frozen=True)
class _Part:
    """A run of documents within the index.

    Attributes:
        postings: Its postings.
        begin: Its first row.
        weights: What each posting adds to a score, idf · tf-part, float64, shape (postings,), where it was stored. What
            was not is memory that is not in use.
        ways: Of each term, what is to be done about its weights, uint8, shape (terms,): `UNKNOWN` at first, `SEEN` once
            it was asked for, `STORED` then. A term that is asked for once costs no memory.
    """

    postings: Postings
    begin: int
    weights: Scores
    ways: NDArray[np.uint8]

    @classmethod
    def of(cls, postings: Postings, begin: int) -> _Part:
        """With nothing stored."""
        plain = replace(
            postings,
            rows=_read_only(postings.rows),
            counts=_read_only(postings.counts),
            lengths=_read_only(postings.lengths),
        )
        ways = np.zeros(len(postings.vocabulary), np.uint8)
        return cls(plain, begin, np.empty(len(plain.rows)), ways)

    def ways_of(self, wanted: list[_Wanted]) -> NDArray[np.uint8]:
        """What is to be done about the weights of each of these terms, one after the other.

        The second time that queries which are asked together want a term, its weights are there.
        """
        places = np.array([one.number for one in wanted], np.int64)
        ways = self.ways[places]
        together = len(wanted) and wanted[0].query != wanted[-1].query
        return _shared(places, ways) if together else ways

    def asked_for(self, wanted: list[_Wanted], ways: NDArray[np.uint8]) -> None:
        """Takes down that these terms were asked for and that what `ways_of` said was done.

        What was said then counts, not what another thread has taken down meanwhile: that is no second time.
        """
        places = np.array([one.number for one in wanted], np.int64)
        self.ways[places] = np.minimum(ways + 1, kernels.STORED)


def _read_only(array: NDArray[Number]) -> NDArray[Number]:
    """A view as the compiled loops take it: in order, aligned, not written to; what a file gave is that already."""
    view = np.require(array, requirements=["C", "A"]).view()
    view.setflags(write=False)
    return view


class BM25Index:
    """BM25 over one or more runs of documents, some of which may have been removed since.

    Safe to use from several threads: what two of them store of a term is the same.

    Args:
        segments: The runs, in row order.
        settings: Variant and parameters.
        removed: For each removed row, the terms of its document; they no longer count in the statistics.
    """

    def __init__(
        self,
        segments: Sequence[Postings],
        settings: BM25 | None = None,
        removed: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
        self.settings = settings or BM25()
        removed = removed or {}
        self._removed = Counter(term for terms in removed.values() for term in set(terms))
        ends = list(accumulate(map(len, segments)))
        self._size = ends[-1] if ends else 0
        self._documents = self._size - len(removed)
        total = sum(int(segment.lengths.sum(dtype=np.int64)) for segment in segments)
        total -= sum(map(len, removed.values()))
        self._mean = total / self._documents if self._documents and total else 1.0
        self._parts = [_Part.of(segment, end - len(segment)) for segment, end in zip(segments, ends, strict=True)]
        self._terms: dict[str, _Term] = {}

    def __len__(self) -> int:
        return self._size

    def knows(self, terms: Iterable[str]) -> bool:
        """Whether any row that was not removed contains any of the terms."""
        return any(self._term(term).containing for term in terms)

    def scores(self, terms: Sequence[str]) -> Scores:
        """The score of every row; a term that occurs twice in the query counts twice."""
        scores: Scores = self.block([terms])[0]
        return scores

    def scores_of(self, rows: NDArray[np.int64], terms: Sequence[str]) -> Scores:
        """The scores of some rows, which are looked up among the postings of each term.

        Args:
            rows: Ascending row numbers, int64, shape (m,).
            terms: Of the query.

        Returns:
            float64, shape (m,); of a row what `scores` gives, to the bit.
        """
        scores = np.zeros(len(rows))
        ends = [int(np.searchsorted(rows, part.begin + len(part.postings))) for part in self._parts]
        mine = [slice(*pair) for pair in pairwise([0, *ends])]
        for term, times in Counter(terms).items():
            found = self._term(term)
            for place, _, start, stop in found.spans if found.containing else ():
                part, here = self._parts[place], mine[place]
                wanted = (rows[here] - part.begin).astype(np.int32)
                containing = part.postings.rows[start:stop]
                at = np.searchsorted(containing, wanted)
                there = np.flatnonzero(containing[np.minimum(at, stop - start - 1)] == wanted)
                if len(there):
                    counts = part.postings.counts[start:stop][at[there]]
                    weights = self._tf_parts(counts, part.postings.lengths[wanted[there]]) * found.idf
                    scores[here.start + there] += times * weights
        return scores

    def block(self, queries: Sequence[Sequence[str]]) -> Scores:
        """The scores of several queries; a term that they share is found and weighed once.

        Returns:
            float64, shape (queries, rows).
        """
        # In the order of a query's terms, whatever the part: that is the order in which a row's score is added up.
        wanted: list[list[_Wanted]] = [[] for _ in self._parts]
        for query, terms in enumerate(queries):
            for term, times in Counter(terms).items():
                found = self._term(term)
                if found.containing:
                    for place, number, start, stop in found.spans:
                        wanted[place].append(_Wanted(query, number, start, stop, found.idf, times))
        if not any(wanted):
            return np.zeros((len(queries), len(self)))  # memory that is never touched costs nothing
        scores = np.empty((len(queries), len(self)))
        compiled = kernels.current()
        if compiled is None:
            compiled = kernels.after(sum(one.stop - one.start for terms_of in wanted for one in terms_of))
        for part, terms_of in zip(self._parts, wanted, strict=True):
            if not terms_of:
                scores[:, part.begin : part.begin + len(part.postings)] = 0.0
            elif compiled is None:
                self._add(part, terms_of, scores)
            else:
                self._add_compiled(part, terms_of, scores, compiled)
        return scores

    def _add(self, part: _Part, wanted: list[_Wanted], scores: Scores) -> None:
        """The scores of one part, with NumPy; on one core: its steps are so short that threads would wait in turn."""
        scores[:, part.begin : part.begin + len(part.postings)] = 0.0
        ways = part.ways_of(wanted)
        for one, way in zip(wanted, ways.tolist(), strict=True):
            self._add_one(part, one, way, scores[one.query, part.begin :])
        part.asked_for(wanted, ways)

    def _add_compiled(self, part: _Part, wanted: list[_Wanted], scores: Scores, compiled: kernels.Kernels) -> None:
        """The scores of one part, by compiled loops; some of the rows on each core."""
        queries, _, starts, stops, idfs, times = zip(*wanted, strict=True)
        bounds = np.searchsorted(np.array(queries), np.arange(len(scores) + 1))
        terms = np.array(starts), np.array(stops), np.array(idfs), np.array(times, np.float64)
        ways = part.ways_of(wanted)
        postings, settings = part.postings, self.settings
        arrays = postings.rows, postings.counts, postings.lengths, part.weights
        numbers = self._mean, settings.k1, settings.b, settings.lower_bound
        form = _FORMS.get(settings.variant, kernels.OKAPI)

        def add(rows: range) -> None:
            compiled.add(scores, part.begin, rows.start, rows.stop, bounds, *terms, ways, *arrays, form, *numbers)

        blocks = -(-len(postings) // kernels.ROWS)
        alone = sum(one.stop - one.start for one in wanted) < _ALONE
        count = 1 if alone else min(blocks, _PIECES * parallel.cores())
        ends = [min(len(postings), kernels.ROWS * (blocks * piece // count)) for piece in range(count + 1)]
        parallel.each(add, [range(*pair) for pair in pairwise(ends)])
        part.asked_for(wanted, ways)

    def _add_one(self, part: _Part, one: _Wanted, way: int, scores: Scores) -> None:
        """Adds what one term contributes to one query in one part, with NumPy."""
        postings = part.postings
        for start in range(one.start, one.stop, _CHUNK):
            here = slice(start, min(start + _CHUNK, one.stop))
            rows = postings.rows[here].astype(np.intp)
            if way == kernels.STORED:
                weights = part.weights[here]
            else:
                weights = self._tf_parts(postings.counts[here], postings.lengths[rows])
                weights *= one.idf
                if way == kernels.SEEN:
                    part.weights[here] = weights
            np.add.at(scores, rows, weights if one.times == 1 else one.times * weights)

    def _tf_parts(self, counts: NDArray[np.int32], lengths: NDArray[np.int32]) -> Scores:
        """The tf-part of some postings; from a table where texts are short, which takes half the time."""
        longest = self._longest
        if longest <= _TABLE_LENGTHS and counts.max() <= _TABLE_COUNTS:
            parts: Scores = self._table.take((counts - 1) * longest + (lengths - 1))
            return parts
        return self._tf(counts.astype(np.float64), 1.0 - self.settings.b + self.settings.b * (lengths / self._mean))

    @cached_property
    def _longest(self) -> int:
        return max((int(part.postings.lengths.max(initial=0)) for part in self._parts), default=0)

    @cached_property
    def _table(self) -> Scores:
        """The tf-part of each count with each length, from 1 up; the same operations as for one, so the same bits."""
        lengths = np.arange(1, self._longest + 1)
        norms = 1.0 - self.settings.b + self.settings.b * (lengths / self._mean)
        counts = np.arange(1.0, _TABLE_COUNTS + 1)
        return self._tf(counts[:, np.newaxis], norms).ravel()

    def _term(self, term: str) -> _Term:
        """Where a term is, looked up once."""
        found = self._terms.get(term)
        if found is None:
            spans = []
            for place, part in enumerate(self._parts):
                number, here = part.postings.find(term)
                if here.stop > here.start:
                    spans.append((place, number, here.start, here.stop))
            containing = sum(stop - start for _, _, start, stop in spans) - self._removed[term]
            found = _Term(containing, self._idf(containing) if containing else 0.0, tuple(spans))
            if len(self._terms) >= _MOST_TERMS:
                self._terms = {}  # replaced as a whole: another thread may be reading it
            self._terms[term] = found
        return found

    def _idf(self, containing: int) -> float:
        match self.settings.variant:
            case "lucene":
                return idf_lucene(self._documents, containing)
            case "plus":
                return idf_plus(self._documents, containing)
            case "l":
                return idf_l(self._documents, containing)
            case _:
                idf = idf_okapi(self._documents, containing)
                return idf if idf >= 0 else self._mean_idf * self.settings.epsilon

    def _tf(self, counts: Scores, norms: Scores) -> Scores:
        k1, delta = self.settings.k1, self.settings.lower_bound
        match self.settings.variant:
            case "plus":
                return tf_plus(counts, norms, k1, delta)
            case "l":
                return tf_l(counts, norms, k1, delta)
            case _:
                return tf_okapi(counts, norms, k1)

    @cached_property
    def _mean_idf(self) -> float:
        """The mean okapi idf over the vocabulary; summed exactly, so that the order of terms does not matter."""
        if len(self._parts) == 1 and not self._removed:
            each = np.diff(self._parts[0].postings.offsets)
            numbers, often = np.unique(each, return_counts=True)
            idfs = np.array([idf_okapi(self._documents, n) for n in numbers.tolist()])
            return math.fsum(np.repeat(idfs, often).tolist()) / len(each) if len(each) else 0.0
        containing: Counter[str] = Counter()
        for part in self._parts:
            postings = part.postings
            containing.update(dict(zip(postings.vocabulary, np.diff(postings.offsets).tolist(), strict=True)))
        containing.subtract(self._removed)
        present = [n for n in containing.values() if n > 0]
        return math.fsum(idf_okapi(self._documents, n) for n in present) / len(present) if present else 0.0
