"""What a query is made of, and how far each candidate covers each part: the input of `coverage`.

Three kinds of parts: n-grams of terms, token vectors (then covering is BERTScore recall, and `coverage` over it is the
Set-BSR of Gupta, Gardner and Singh 2023), and named aspects, whatever their names mean.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from retriever.errors import InvalidInput
from retriever.ranking.strategies.picks import Integers, Reals, check_range

_TABLE = 2**18
"""Numbers below this, as n-grams of a query of up to 500 terms have, are looked up in a table of at most 2 MiB."""

_BATCH = 2**14
"""Terms that are gone through at once, so that they and what is worked out of them stay in the processor's cache."""

_Lookup: TypeAlias = Callable[[Integers], Integers]


@dataclass(frozen=True)
class Aspects:
    """The parts of a query, and how far candidates cover them.

    Attributes:
        covered: How far each candidate covers each part, 0 to 1, float64, shape (m, s).
        weights: What each part is worth, 0 or more, float64, shape (s,).

    Raises:
        InvalidInput: The shapes do not belong together, or a number is negative or not finite.
    """

    covered: Reals
    weights: Reals

    def __post_init__(self) -> None:
        if self.covered.shape[1:] != self.weights.shape:
            raise InvalidInput(f"weights of shape {self.weights.shape}", expected=f"{self.covered.shape[1:]}")
        for name, numbers in (("covered", self.covered), ("weights", self.weights)):
            # NaN is neither.
            if not (numbers.min(initial=0.0) >= 0 and numbers.max(initial=0.0) < np.inf):
                raise InvalidInput(f"{name} with a number below 0 or not finite", expected="finite numbers from 0")


def term_aspects(
    query: Integers, terms: Integers, offsets: Integers, *, longest: int = 4, weights: Reals | None = None
) -> Aspects:
    """The query's distinct n-grams of 1 to `longest` terms; a candidate covers those it contains.

    Args:
        query: The query's terms in text order, as numbers, shape (l,).
        terms: The candidates' terms in text order, one candidate after the other, shape (t,).
        offsets: Candidate i has terms[offsets[i] : offsets[i + 1]], shape (m + 1,).
        longest: The longest n-gram, 1 or more. Measured in the paper: single words alone do harm, 4-grams help.
        weights: What each term of the query is worth (such as its idf), shape (l,); all 1 when left out. An n-gram is
            worth the mean of its terms.

    Raises:
        InvalidInput: The shapes do not belong together, or a setting out of range.
    """
    check_range("longest", longest, 1, 1000)
    worth = np.ones(len(query)) if weights is None else weights
    if worth.shape != query.shape:
        raise InvalidInput(f"weights of shape {worth.shape}", expected=f"{query.shape}")
    _check_offsets(offsets, len(terms))
    vocabulary, asked = np.unique(query, return_inverse=True)
    grams = list(_query_grams(asked, longest))
    gram_weights = [
        sliding_window_view(np.append(worth, np.zeros(n)), n)[first].mean(axis=1)
        for n, (_, first) in enumerate(grams, start=1)
    ]
    term_of = _places(vocabulary)
    gram_of = [_places(distinct) for distinct, _ in grams[1:]]
    sizes = [len(distinct) for distinct, _ in grams]
    covered = np.zeros((len(offsets) - 1, sum(sizes)))
    for some in _batches(offsets):
        begins = offsets[some.start : some.stop + 1]
        known = term_of(terms[begins[0] : begins[-1]])
        _mark(covered[some], known, np.diff(begins), gram_of, sizes, len(query))
    return Aspects(covered, np.concatenate(gram_weights))


def _batches(offsets: Integers) -> Iterator[slice]:
    """Slices of the candidates, with about `_BATCH` terms each unless one candidate has more."""
    first, count = 0, len(offsets) - 1
    while first < count:
        end = int(np.searchsorted(offsets, offsets[first] + _BATCH, side="right")) - 1
        yield slice(first, end := min(max(end, first + 1), count))
        first = end


def _query_grams(asked: Integers, longest: int) -> Iterator[tuple[Integers, Integers]]:
    """For n from 1: the numbers of the query's distinct n-grams, rising, and where each first stands.

    An n-gram's number is its prefix's place among the distinct ones, times the query's length and one, plus its last
    term, counted from 1, so that 0 is left for other terms. So numbers stay small, whatever n is.

    Args:
        asked: The query's terms, numbered from 0, shape (l,).
        longest: The largest n.
    """
    size = len(asked)
    grams = np.zeros(size, dtype=np.int64)
    for n in range(1, longest + 1):
        grams = grams[: max(size - n + 1, 0)] * (size + 1) + asked[n - 1 :] + 1
        distinct, first, grams = np.unique(grams, return_index=True, return_inverse=True)
        yield distinct, first


def _mark(
    covered: Reals, found: Integers, lengths: Integers, gram_of: Sequence[_Lookup], sizes: Sequence[int], size: int
) -> None:
    """Writes 1 where a candidate contains an n-gram of the query.

    Args:
        covered: Of these candidates, shape (m, s), C order, 0 before.
        found: Their terms by the query's numbers, -1 for others, one candidate after the other.
        lengths: How many terms each has, shape (m,).
        gram_of: For n from 2: from an n-gram's number, as `_query_grams` makes it, to its place.
        sizes: For n from 1: how many n-grams the query has; they stand in this order.
        size: The query's length.
    """
    cells = covered.reshape(-1)
    row = np.arange(len(lengths)) * covered.shape[1]
    # After each candidate stands a term that the query does not have, so that no n-gram reaches over its end.
    known = np.insert(found, np.cumsum(lengths), -1)
    at = np.flatnonzero(known >= 0)
    mine, row = known[at], np.repeat(row, lengths + 1)[at]
    cells[row + mine] = 1.0
    for n, places in enumerate(gram_of, start=1):
        row += sizes[n - 1]
        mine = places(mine * (size + 1) + known[at + n] + 1)
        goes_on = np.flatnonzero(mine >= 0)
        at, mine, row = at[goes_on], mine[goes_on], row[goes_on]
        cells[row + mine] = 1.0


def _check_offsets(offsets: Integers, total: int) -> None:
    """Checks where candidates begin and end.

    Raises:
        InvalidInput: The offsets do not rise from 0 to the total.
    """
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
        raise InvalidInput("offsets that do not fit", expected=f"offsets rising from 0 to {total}")


def _places(distinct: Integers) -> _Lookup:
    """From numbers to their places in a rising list, -1 for those that are not in it."""
    if not len(distinct):
        return lambda numbers: np.full(len(numbers), -1)
    if distinct[0] >= 0 and distinct[-1] < _TABLE:
        table = np.full(distinct[-1] + 3, -1)
        table[distinct + 1] = np.arange(len(distinct))
        return lambda numbers: table.take(numbers + 1, mode="clip")  # beyond either end stands a -1

    def search(numbers: Integers) -> Integers:
        place = np.minimum(np.searchsorted(distinct, numbers), len(distinct) - 1)
        return np.where(distinct[place] == numbers, place, -1)

    return search


def token_aspects(recall: Reals, *, weights: Reals | None = None) -> Aspects:
    """The query's tokens; a candidate covers one as far as its most similar token is like it (cosine, at least 0).

    The weighted mean over the query's tokens of what one candidate covers is its BERTScore recall, or MaxSim.

    Args:
        recall: How well each candidate matches each token of the query, shape (m, l); see
            `indexes.late_interaction.recall`.
        weights: What each token of the query is worth, shape (l,); all 1 when left out.

    Raises:
        InvalidInput: The shapes do not belong together, or a number that is not finite.
    """
    return Aspects(np.clip(recall, 0.0, 1.0), np.ones(recall.shape[1]) if weights is None else weights)


def named_aspects(candidates: Sequence[Collection[str]], weights: Mapping[str, float] | None = None) -> Aspects:
    """Aspects by name; a candidate covers those it carries.

    Args:
        candidates: The names that each candidate carries.
        weights: The names to cover and what each is worth; left out, every name that a candidate carries is worth 1.

    Raises:
        InvalidInput: A weight below 0 or not finite.
    """
    worth = weights if weights is not None else {name: 1.0 for names in candidates for name in sorted(names)}
    covered = np.array([[name in names for name in worth] for names in candidates], dtype=np.float64)
    return Aspects(covered.reshape(len(candidates), len(worth)), np.array(list(worth.values()), dtype=np.float64))
