"""Coverage: a set that together has every part of the query (Gupta, Gardner and Singh 2023, Set-BSR and its kin).

A set covers a part of the query as far as its best member does. Parts are weighed to sum to 1, so covering all of them
is worth 1. The next pick is the candidate with the largest

    coverage it adds + relevance_weight · relevance

Where that candidate adds none, the cover is complete: a new one starts, which counts from nothing, so the next pick is
the best of the rest. Where no candidate covers anything at all, the rest is filled by relevance. With a
relevance weight of 0 this is algorithm 1 of the paper, which loops for ever where fewer candidates than k exist;
here it ends. Coverage is monotone and submodular, so one greedy cover is worth at least 1 − 1/e of the best set.

Contributions are rounded to multiples of 2⁻⁴⁰, so that their sums are exact: equal gains are equal, whatever the order
of the parts. So what a candidate adds is kept up to date, and only parts that a pick covers better are looked at again.
Cost is O(m · s) for each cover where parts are covered whole or not at all, and O(m · s · k) at most.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Literal

import numpy as np

from retriever.errors import InvalidInput
from retriever.example import Example
from retriever.ranking.strategies.aspects import Aspects, named_aspects, term_aspects, token_aspects
from retriever.ranking.strategies.base import Candidates, Strategy
from retriever.ranking.strategies.picks import (
    NONE,
    Picks,
    Reals,
    Scaling,
    by_relevance,
    check_range,
    check_relevance,
    first_best,
    picks,
    scaled,
)

LEAST_GAIN = 1e-9
"""Coverage from which a candidate adds to a cover."""

_GRID = 2.0**40
"""Steps in a coverage of 1."""


def coverage(
    aspects: Aspects, relevance: Reals, k: int, *, relevance_weight: float = 0.2, scaling: Scaling = "raw"
) -> Picks:
    """Picks that together cover the query.

    Args:
        aspects: The parts of the query and how far each of the m candidates covers them.
        relevance: Shape (m,), float64. Under `raw` best on the scale of coverage, 0 to 1.
        k: How many, at most.
        relevance_weight: What relevance counts against coverage, 0 or more.
        scaling: `raw` or `min-max`, for relevance.

    Returns:
        The picks. A gain is the value above. `against` is the earlier pick of the same cover that already covered most
        of what the pick covers, the earlier of equals; none where nothing of it was covered.

    Raises:
        InvalidInput: A shape or setting that cannot be used.
    """
    count = len(aspects.covered)
    check_relevance(relevance, k, count)
    check_range("relevance_weight", relevance_weight, 0.0, 1e6)
    bonus = relevance_weight * scaled(relevance, scaling)
    cover = _Cover(aspects)
    places: list[int] = []
    gains: list[float] = []
    against: list[int] = []
    while len(places) < min(k, count):
        added = cover.added()
        place = _best(added, bonus, places)
        if added[place] <= LEAST_GAIN:
            cover.clear()
            added = cover.added()
            place = _best(added, bonus, places)
            if np.delete(added, places).max() <= LEAST_GAIN:
                break
        against.append(cover.rival(place))
        gains.append(float(added[place] + bonus[place]))
        places.append(place)
        cover.add(place)
    rest = by_relevance(relevance, np.setdiff1d(np.arange(count), places))[: min(k, count) - len(places)]
    return picks([*places, *rest.tolist()], [*gains, *bonus[rest].tolist()], against + [NONE] * len(rest))


def _best(added: Reals, bonus: Reals, places: list[int]) -> int:
    gain = added + bonus
    gain[places] = -np.inf
    return first_best(gain)


class _Cover:
    """What is covered so far, by whom, and what each candidate would add."""

    def __init__(self, aspects: Aspects) -> None:
        total = math.fsum(aspects.weights.tolist())
        shares = aspects.weights / total if total > 0 else aspects.weights
        # In steps of the grid; shape (s, m): a part's row is read as one piece.
        self._values: Reals = np.multiply(aspects.covered.T, _GRID * shares[:, None], order="C")
        np.rint(self._values, out=self._values)
        self._alone: Reals = self._values.sum(axis=0)
        self.clear()

    def clear(self) -> None:
        """Starts a new cover."""
        parts = len(self._values)
        self._added = self._alone.copy()
        self._current = np.zeros(parts)
        self._holder = np.full(parts, -1)
        self._members: list[int] = []

    def added(self) -> Reals:
        """The coverage that each candidate would add, shape (m,)."""
        added: Reals = self._added / _GRID
        return added

    def rival(self, place: int) -> int:
        """The member that covers most of what the candidate covers."""
        held = self._holder >= 0
        shared = np.minimum(self._values[:, place], self._current)[held]
        if not shared.any():
            return NONE
        return self._members[int(np.argmax(np.bincount(self._holder[held], weights=shared)))]

    def add(self, place: int) -> None:
        """Makes a candidate a member."""
        values = self._values[:, place]
        raised = np.flatnonzero(values > self._current)
        before, after = self._current[raised, None], values[raised, None]
        lost = self._values[raised]
        np.clip(lost, before, after, out=lost)
        lost -= before
        # All are whole numbers of steps, so what is taken off step by step leaves what a sum from anew would give.
        self._added -= lost.sum(axis=0)
        self._current[raised] = after[:, 0]
        self._holder[raised] = len(self._members)
        self._members.append(place)


@dataclass(frozen=True)
class CoverageOptions:
    """See `coverage`.

    Attributes:
        of: What has parts: `terms` (n-grams of the key text), `tokens` (their vectors, which is Set-BSR) or `field`
            (the values of a field of the query).
        longest: The longest n-gram.
        field: For `field`: a field that holds a text or a list of texts, such as entity types.
        relevance_weight: What relevance counts against coverage.
    """

    of: Literal["terms", "tokens", "field"] = "terms"
    longest: int = 4
    field: str | None = None
    relevance_weight: float = 0.2

    def __post_init__(self) -> None:
        check_range("longest", self.longest, 1, 1000)
        check_range("relevance_weight", self.relevance_weight, 0.0, 1e6)
        if (self.of == "field") != (self.field is not None):
            raise InvalidInput(
                f"coverage of {self.of!r}, field {self.field!r}", expected="a field for of = 'field' alone"
            )


def _pick(candidates: Candidates, k: int, options: CoverageOptions) -> Picks:
    if options.field is not None:
        aspects = _field_aspects(candidates, options.field)
    elif options.of == "tokens":
        aspects = token_aspects(candidates.reader.recall(candidates.rows))
    else:
        aspects = _term_aspects(candidates, options.longest)
    return coverage(aspects, candidates.relevance, k, relevance_weight=options.relevance_weight, scaling="min-max")


def _term_aspects(candidates: Candidates, longest: int) -> Aspects:
    numbers: dict[str, int] = {}
    query = np.array([numbers.setdefault(term, len(numbers)) for term in candidates.reader.query_terms], dtype=np.int64)
    offsets = np.cumsum([0, *map(len, candidates.terms)])
    # Terms that the query does not have are all one: none of them is looked for.
    numbered = map(numbers.get, chain.from_iterable(candidates.terms), repeat(len(numbers)))
    terms = np.fromiter(numbered, dtype=np.int64, count=int(offsets[-1]))
    return term_aspects(query, terms, offsets, longest=longest)


def _field_aspects(candidates: Candidates, field: str) -> Aspects:
    wanted = dict.fromkeys(_values(candidates.reader.query, field), 1.0)
    return named_aspects([_values(example, field) for example in candidates.examples], wanted or None)


def _values(example: Example, field: str) -> tuple[str, ...]:
    value = example.value(field)
    values = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(sorted({one if isinstance(one, str) else json.dumps(one, sort_keys=True) for one in values}))


COVERAGE = Strategy(pick=_pick, options=CoverageOptions)
