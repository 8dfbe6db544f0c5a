"""Coverage: a set that together has every part of the query (Gupta, Gardner and Singh 2023, Set-BSR and its kin).

A set covers a part of the query as far as its best member does. Parts are weighed to sum to 1, so covering all of them
is worth 1. The next pick is the candidate with the largest

    coverage it adds + relevance_weight · relevance

Where that candidate adds none, the cover is complete: a new one starts, which counts from nothing, so the next pick is
the best of the rest. Where no candidate covers anything at all, the rest is filled by relevance. With a
relevance weight of 0 this is algorithm 1 of the paper, which loops for ever where fewer candidates than k exist;
here it ends. Coverage is monotone and submodular, so one greedy cover is worth at least 1 − 1/e of the best set.

Contributions are rounded to multiples of 2⁻⁴⁰, so that their sums are exact: equal gains are equal, whatever the order
of the parts. Cost is O(entries · k), entries being the pairs of a candidate and a part that it covers.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from retriever.errors import InvalidInput
from retriever.example import Example
from retriever.ranking.strategies.aspects import Aspects, named_aspects, term_aspects, token_aspects
from retriever.ranking.strategies.base import Candidates, Strategy
from retriever.ranking.strategies.picks import (
    NONE,
    Integers,
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
    """What is covered so far, and by whom. Contributions are kept as entries (candidate, part, value)."""

    def __init__(self, aspects: Aspects) -> None:
        total = math.fsum(aspects.weights.tolist())
        shares = aspects.weights / total if total > 0 else aspects.weights
        self._count, self._parts = aspects.covered.shape
        self._candidates, self._part = np.divmod(np.flatnonzero(aspects.covered > 0.0), max(self._parts, 1))
        covered = aspects.covered[self._candidates, self._part]
        self._values = np.rint(covered * shares[self._part] * _GRID) / _GRID
        self._starts: Integers = np.searchsorted(self._candidates, np.arange(self._count + 1))
        self.clear()

    def clear(self) -> None:
        """Starts a new cover."""
        self._current = np.zeros(self._parts)
        self._holder = np.full(self._parts, -1)
        self._members: list[int] = []

    def added(self) -> Reals:
        """The coverage that each candidate would add, shape (m,)."""
        gains = np.maximum(self._values - self._current[self._part], 0.0)
        added: Reals = np.bincount(self._candidates, weights=gains, minlength=self._count).astype(np.float64)
        return added

    def rival(self, place: int) -> int:
        """The member that covers most of what the candidate covers."""
        parts, values = self._of(place)
        held = self._holder[parts]
        shared = np.minimum(values, self._current[parts])[held >= 0]
        if not shared.any():
            return NONE
        return self._members[int(np.argmax(np.bincount(held[held >= 0], weights=shared)))]

    def add(self, place: int) -> None:
        """Makes a candidate a member."""
        parts, values = self._of(place)
        better = values > self._current[parts]
        self._current[parts[better]] = values[better]
        self._holder[parts[better]] = len(self._members)
        self._members.append(place)

    def _of(self, place: int) -> tuple[Integers, Reals]:
        mine = slice(self._starts[place], self._starts[place + 1])
        return self._part[mine], self._values[mine]


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
    # Terms that the query does not have are all one: none of them is looked for.
    terms = [numbers.get(term, len(numbers)) for one in candidates.terms for term in one]
    offsets = np.cumsum([0, *map(len, candidates.terms)])
    return term_aspects(query, np.array(terms, dtype=np.int64), offsets, longest=longest)


def _field_aspects(candidates: Candidates, field: str) -> Aspects:
    wanted = dict.fromkeys(_values(candidates.reader.query, field), 1.0)
    return named_aspects([_values(example, field) for example in candidates.examples], wanted or None)


def _values(example: Example, field: str) -> tuple[str, ...]:
    value = example.value(field)
    values = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(sorted({one if isinstance(one, str) else json.dumps(one, sort_keys=True) for one in values}))


COVERAGE = Strategy(pick=_pick, options=CoverageOptions)
