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
import threading
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InvalidInput
from indexes.vocabulary import Vocabulary, check_vocabulary

Scores: TypeAlias = NDArray[np.float64]

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
        if not (self.k1 > 0 and 0 <= self.b <= 1):
            raise InvalidInput(f"BM25 with k1={self.k1}, b={self.b}", expected="k1 over 0 and b from 0 to 1")


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


@dataclass(frozen=True)
class Postings:
    """The terms of a run of documents, by term.

    Attributes:
        vocabulary: The distinct terms, sorted.
        offsets: Where each term's postings begin, and the end; int64, shape (terms + 1,).
        rows: The documents that contain it, ascending; int32, shape (postings,).
        counts: How often each does; int32, shape (postings,).
        lengths: Terms per document, repeats included; int32, shape (documents,).
    """

    vocabulary: Vocabulary
    offsets: NDArray[np.int64]
    rows: NDArray[np.int32]
    counts: NDArray[np.int32]
    lengths: NDArray[np.int32]

    @classmethod
    def from_documents(cls, documents: Iterable[Sequence[str]]) -> Postings:
        """From the terms of each document, in row order. Holds no Python object per posting."""
        numbers: dict[str, int] = {}
        flat, lengths = array("i"), array("i")
        for terms in documents:
            flat.extend([numbers.setdefault(term, len(numbers)) for term in terms])
            lengths.append(len(terms))
        terms_sorted = sorted(numbers)
        place = np.empty(len(numbers), dtype=np.int64)
        place[[numbers[term] for term in terms_sorted]] = np.arange(len(numbers))
        length_array = np.array(lengths, dtype=np.int32)
        row_of = np.repeat(np.arange(len(length_array), dtype=np.int64), length_array)
        key = place[np.array(flat, dtype=np.int64)] * max(1, len(length_array)) + row_of
        key, counts = np.unique(key, return_counts=True)
        term_of, rows = np.divmod(key, max(1, len(length_array)))
        offsets = np.searchsorted(term_of, np.arange(len(numbers) + 1))
        return cls(
            Vocabulary.from_terms(terms_sorted),
            offsets.astype(np.int64),
            rows.astype(np.int32),
            counts.astype(np.int32),
            length_array,
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def slice(self, term: str) -> slice:
        """Where the postings of a term stand; empty when there are none."""
        number = self.vocabulary.find(term)
        return slice(0, 0) if number < 0 else slice(int(self.offsets[number]), int(self.offsets[number + 1]))

    def documents(self) -> list[list[str]]:
        """The terms of each document, sorted; the inverse of `from_documents` up to order."""
        documents: list[list[str]] = [[] for _ in range(len(self))]
        for number, term in enumerate(self.vocabulary):
            span = slice(self.offsets[number], self.offsets[number + 1])
            for row, count in zip(self.rows[span].tolist(), self.counts[span].tolist(), strict=True):
                documents[row].extend([term] * count)
        return documents


def check_postings(postings: Postings) -> None:
    """Refuses arrays that do not describe postings.

    Raises:
        InvalidInput: Offsets that do not rise from 0 to the end, rows out of range, counts under 1, or lengths that are
            not the sums of the counts.
    """
    documents, count = len(postings.lengths), len(postings.rows)
    vocabulary = postings.vocabulary
    check_vocabulary(vocabulary, "term")
    if not len(postings.offsets) or postings.offsets[0] != 0 or postings.offsets[-1] != count:
        raise InvalidInput(f"posting offsets that do not run from 0 to {count}")
    if (np.diff(postings.offsets) < 0).any():
        raise InvalidInput("posting offsets that fall")
    if len(postings.offsets) != len(vocabulary) + 1 or len(postings.counts) != count:
        raise InvalidInput(f"{len(vocabulary)} terms, {len(postings.offsets)} offsets, {len(postings.counts)} counts")
    if count and not (postings.rows.min() >= 0 and postings.rows.max() < documents and postings.counts.min() > 0):
        raise InvalidInput("postings of rows that are not there, or counts under 1")
    sums = np.bincount(postings.rows, weights=postings.counts, minlength=documents)
    if not np.array_equal(sums, postings.lengths):
        raise InvalidInput("document lengths that are not the sums of their counts")


class LexicalIndex(Protocol):
    """What the hybrid index asks of a lexical one."""

    def __len__(self) -> int:
        """How many rows there are, removed ones included."""

    def knows(self, terms: Iterable[str]) -> bool:
        """Whether any row that was not removed contains any of the terms."""

    def scores(self, terms: Sequence[str]) -> Scores:
        """The score of every row for the terms of a query; shape (rows,). Scores of removed rows mean nothing."""


_MOST_KEPT = 128 << 20
"""Bytes of postings that are kept of the terms that were asked for."""

_TERM_BYTES = 500
"""What a term takes beside its postings: measured at 440, rounded up."""


@dataclass(frozen=True)
class _Term:
    """What a term adds to the scores, each time it occurs in the query.

    Attributes:
        rows: The rows that contain it, int64, shape (m,).
        weights: What it adds to each, idf · tf-part, float64, shape (m,).
    """

    rows: NDArray[np.int64]
    weights: Scores


class BM25Index:
    """BM25 over one or more runs of documents, some of which may have been removed since.

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
        self._segments = tuple(segments)
        removed = removed or {}
        self._removed = Counter(term for terms in removed.values() for term in set(terms))
        lengths = np.concatenate([np.empty(0, np.int32), *(segment.lengths for segment in self._segments)])
        self._documents = len(lengths) - len(removed)
        total = int(lengths.sum(dtype=np.int64)) - sum(map(len, removed.values()))
        mean = total / self._documents if self._documents and total else 1.0
        self._norms = 1.0 - self.settings.b + self.settings.b * (lengths / mean)
        self._idf_floor = self._mean_idf() * self.settings.epsilon if self.settings.variant == "okapi" else 0.0
        # Queries share most of their postings: those of frequent terms. Replaced as a whole when it is full.
        self._terms: dict[str, _Term] = {}
        self._kept = 0
        self._keeping = threading.Lock()

    def __len__(self) -> int:
        return len(self._norms)

    def knows(self, terms: Iterable[str]) -> bool:
        """Whether any row that was not removed contains any of the terms."""
        return any(self._containing(term) for term in terms)

    def scores(self, terms: Sequence[str]) -> Scores:
        """The score of every row; a term that occurs twice in the query counts twice."""
        scores = np.zeros(len(self))
        for term, times in Counter(terms).items():
            found = self._term(term)
            if found is not None:
                np.add.at(scores, found.rows, found.weights if times == 1 else times * found.weights)
        return scores

    def _term(self, term: str) -> _Term | None:
        """A term that some row contains, worked out once; None for any other."""
        found = self._terms.get(term)
        if found is not None:
            return found
        containing = self._containing(term)
        if not containing:
            return None
        starts = np.cumsum([0, *map(len, self._segments)])
        spans = [segment.slice(term) for segment in self._segments]
        runs = list(zip(self._segments, spans, starts, strict=False))
        rows = np.concatenate([segment.rows[span] + start for segment, span, start in runs])
        counts = np.concatenate([segment.counts[span] for segment, span, _ in runs]).astype(np.float64)
        found = _Term(rows, self._idf(containing) * self._tf(counts, self._norms[rows]))
        size = found.rows.nbytes + found.weights.nbytes + _TERM_BYTES
        with self._keeping:
            if self._kept + size > _MOST_KEPT:
                self._terms, self._kept = {}, 0
            self._terms[term] = found
            self._kept += size
        return found

    def _containing(self, term: str) -> int:
        """How many rows that were not removed contain the term."""
        spans = (segment.slice(term) for segment in self._segments)
        return sum(int(span.stop - span.start) for span in spans) - self._removed[term]

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
                return idf if idf >= 0 else self._idf_floor

    def _tf(self, counts: Scores, norms: Scores) -> Scores:
        k1, delta = self.settings.k1, self.settings.delta
        match self.settings.variant:
            case "plus":
                return tf_plus(counts, norms, k1, 1.0 if delta is None else delta)
            case "l":
                return tf_l(counts, norms, k1, 0.5 if delta is None else delta)
            case _:
                return tf_okapi(counts, norms, k1)

    def _mean_idf(self) -> float:
        """The mean okapi idf over the vocabulary; summed exactly, so that the order of terms does not matter."""
        containing: Counter[str] = Counter()
        for segment in self._segments:
            containing.update(dict(zip(segment.vocabulary, np.diff(segment.offsets).tolist(), strict=True)))
        containing.subtract(self._removed)
        present = [n for n in containing.values() if n > 0]
        return math.fsum(idf_okapi(self._documents, n) for n in present) / len(present) if present else 0.0


class RankBM25Index:
    """The same interface over the package rank-bm25 (Okapi), for small pools and for checking.

    It scores every row in Python, some thousand times slower than `BM25Index` at 100,000 rows.

    Args:
        segments: The runs of documents, in row order.
        settings: k1, b and epsilon are used; the variant must be `okapi`.
        removed: For each removed row, the terms of its document.

    Raises:
        InvalidInput: A variant other than `okapi`.
    """

    def __init__(
        self,
        segments: Sequence[Postings],
        settings: BM25 | None = None,
        removed: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
        self.settings = settings or BM25(variant="okapi")
        if self.settings.variant != "okapi":
            raise InvalidInput(f"rank-bm25 with the variant {self.settings.variant!r}", expected="okapi")
        documents = [document for segment in segments for document in segment.documents()]
        self._rows = np.array([row for row in range(len(documents)) if row not in (removed or {})], dtype=np.int64)
        self._size = len(documents)
        kept = [documents[row] for row in self._rows]
        self._terms = frozenset(term for document in kept for term in document)
        self._scorer = self._make(kept) if self._terms else None

    def _make(self, documents: list[list[str]]) -> object:
        from rank_bm25 import BM25Okapi

        return BM25Okapi(documents, k1=self.settings.k1, b=self.settings.b, epsilon=self.settings.epsilon)

    def __len__(self) -> int:
        return self._size

    def knows(self, terms: Iterable[str]) -> bool:
        """Whether any row that was not removed contains any of the terms."""
        return not self._terms.isdisjoint(terms)

    def scores(self, terms: Sequence[str]) -> Scores:
        """The score of every row for the terms of a query, as rank-bm25 gives them."""
        scores = np.zeros(self._size)
        if self._scorer is not None:
            scores[self._rows] = self._scorer.get_scores(list(terms))  # type: ignore[attr-defined]
        return scores
