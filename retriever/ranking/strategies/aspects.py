"""What a query is made of, and how far each candidate covers each part: the input of `coverage`.

Three kinds of parts: n-grams of terms, token vectors (then covering is BERTScore recall, and `coverage` over it is the
Set-BSR of Gupta, Gardner and Singh 2023), and named aspects, whatever their names mean.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from retriever.errors import InvalidInput
from retriever.ranking.strategies.picks import Integers, Reals, check_range


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
            if not np.isfinite(numbers).all() or (numbers < 0).any():
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
    at, found = _lookup(vocabulary, terms, np.arange(len(terms)))
    known = np.full(len(terms), -1)
    known[at] = found
    blocks, gram_weights = [], []
    for n, (first, block) in enumerate(_matches(asked, known, offsets, longest), start=1):
        blocks.append(block)
        gram_weights.append(sliding_window_view(np.append(worth, np.zeros(n)), n)[first].mean(axis=1))
    return Aspects(np.concatenate(blocks, axis=1), np.concatenate(gram_weights))


def _matches(asked: Integers, known: Integers, offsets: Integers, longest: int) -> Iterator[tuple[Integers, Reals]]:
    """For n from 1: where each distinct n-gram of the query first stands, and which candidates contain it.

    An n-gram is numbered by its prefix's number and its last term, so numbers stay below the square of the query's
    length, whatever n is.

    Args:
        asked: The query's terms, numbered from 0.
        known: The candidates' terms by the same numbers, -1 for others.
        offsets: Where each candidate begins.
        longest: The largest n.
    """
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    size = len(asked)
    at = np.flatnonzero(known >= 0)
    grams, mine = asked, known[at]
    for n in range(1, longest + 1):
        if n > 1:
            grams = grams[: max(size - n + 1, 0)] * size + asked[n - 1 :]
            inside = at + n - 1 < offsets[owner[at] + 1]
            at, mine = at[inside], mine[inside]
            last = known[at + n - 1]
            at, mine = at[last >= 0], mine[last >= 0] * size + last[last >= 0]
        distinct, first, grams = np.unique(grams, return_index=True, return_inverse=True)
        at, mine = _lookup(distinct, mine, at)
        block = np.zeros((len(offsets) - 1, len(distinct)))
        block[owner[at], mine] = 1.0
        yield first, block


def _check_offsets(offsets: Integers, total: int) -> None:
    """Checks where candidates begin and end.

    Raises:
        InvalidInput: The offsets do not rise from 0 to the total.
    """
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
        raise InvalidInput("offsets that do not fit", expected=f"offsets rising from 0 to {total}")


def _lookup(distinct: Integers, numbers: Integers, at: Integers) -> tuple[Integers, Integers]:
    """Of the numbers at these positions, those that occur in a sorted list: positions, and places in the list."""
    if not len(distinct):
        return at[:0], numbers[:0]
    place = np.minimum(np.searchsorted(distinct, numbers), len(distinct) - 1)
    hit = distinct[place] == numbers
    return at[hit], place[hit]


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
