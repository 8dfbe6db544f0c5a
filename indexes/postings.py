"""Postings: which documents contain a term and how often, in flat arrays."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InvalidInput
from indexes.vocabulary import Vocabulary, check_vocabulary

_BLOCK = 1 << 20
"""Terms, repeats included, that are sorted at once."""


@dataclass(frozen=True)
class _Run:
    """The postings of a block of documents.

    Attributes:
        numbers: The terms that occur, ascending; int64, shape (terms,).
        sizes: How many postings each has; int64, shape (terms,).
        rows: The documents that contain it, ascending within a term; int32, shape (postings,).
        counts: How often each does; in the smallest unsigned type that holds them.
    """

    numbers: NDArray[np.int64]
    sizes: NDArray[np.int64]
    rows: NDArray[np.int32]
    counts: NDArray[np.unsignedinteger]

    @classmethod
    def of(cls, flat: array[int], lengths: array[int], begin: int) -> _Run:
        """From the numbers of the terms of some documents, one after the other, and the row of the first."""
        row_of = np.repeat(np.arange(begin, begin + len(lengths), dtype=np.int64), lengths)
        keys = np.array(flat, dtype=np.int64) << 32 | row_of
        keys.sort()
        starts = _starts(keys)
        counts = np.diff(starts, append=len(keys))
        keys = keys[starts]
        rows, terms = (keys & 0xFFFFFFFF).astype(np.int32), keys >> 32
        starts = _starts(terms)
        smallest = np.min_scalar_type(int(counts.max(initial=0)))
        return cls(terms[starts], np.diff(starts, append=len(terms)), rows, counts.astype(smallest))


def _starts(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each distinct value of a sorted array begins."""
    return np.flatnonzero(np.diff(values, prepend=-1))


def _merged(
    runs: list[_Run], order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Offsets, rows and counts of all postings; the list is emptied, so that memory is given back on the way.

    Args:
        runs: In row order.
        order: The number of each term, in the order of the vocabulary.
    """
    sizes = np.zeros(len(order), np.int64)
    for run in runs:
        sizes[run.numbers] += run.sizes
    offsets = np.zeros(len(order) + 1, np.int64)
    np.cumsum(sizes[order], out=offsets[1:])
    behind = np.empty(len(order), np.int64)
    behind[order] = offsets[:-1]
    rows, counts = np.empty(int(offsets[-1]), np.int32), np.empty(int(offsets[-1]), np.int32)
    runs.reverse()
    while runs:
        run = runs.pop()
        begins = np.cumsum(run.sizes) - run.sizes
        places = np.repeat(behind[run.numbers] - begins, run.sizes) + np.arange(len(run.rows))
        rows[places], counts[places] = run.rows, run.counts
        behind[run.numbers] += run.sizes
    return offsets, rows, counts


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
        """From the terms of each document, in row order.

        Documents are taken in blocks, each of which becomes a sorted run; then the runs are put one behind the other,
        term by term. Holds no Python object per posting, and about 15 bytes of each at most.
        """
        numbers: defaultdict[str, int] = defaultdict()
        numbers.default_factory = numbers.__len__
        number_of, runs, begin = numbers.__getitem__, [], 0
        flat, lengths = array("i"), array("i")
        for terms in documents:
            flat.extend(map(number_of, terms))
            lengths.append(len(terms))
            if len(flat) >= _BLOCK:
                runs.append(_Run.of(flat, lengths[begin:], begin))
                flat, begin = array("i"), len(lengths)
        runs.append(_Run.of(flat, lengths[begin:], begin))
        terms_sorted = sorted(numbers)
        order = np.fromiter(map(number_of, terms_sorted), np.int64, len(numbers))
        offsets, rows, counts = _merged(runs, order)
        return cls(Vocabulary.from_terms(terms_sorted), offsets, rows, counts, np.array(lengths, dtype=np.int32))

    def __len__(self) -> int:
        return len(self.lengths)

    def find(self, term: str) -> tuple[int, slice]:
        """The number of a term and where its postings stand; -1 and an empty slice when there are none."""
        number = self.vocabulary.find(term)
        return number, slice(0, 0) if number < 0 else slice(int(self.offsets[number]), int(self.offsets[number + 1]))

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
