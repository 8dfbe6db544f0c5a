"""Parts of the queries, for each of which the others choose a recipe: nested cross-validation.

A figure by which a recipe was chosen is flattered by chance. Here every query is answered by the recipe that the other
parts chose, so that all queries measure and none had a part in the choice that it measures (Stone 1974). Dealing the
queries out several times and taking the mean leaves less to the luck of one deal (Kim 2009).

More parts choose from more queries each, but by nearly the same ones, so that their choices err together and intervals
are too narrow. In pools without a better recipe (those of four data sets, each recipe's difference moved to a mean of
0, queries resampled) the interval of 80 % lay above 0 in one case of nine with two parts, one of seven with five dealt
out twenty times, and one of four with twenty. Five found the better recipe of a real pool about twice as often as two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from retriever.errors import InvalidInput
from retriever.evaluation.halving import Values, ranked
from retriever.evaluation.scoring import Asked, Places, Scorer
from retriever.evaluation.search_space import Candidate
from retriever.example import Example, Json
from retriever.ranking.seeding import permutation

LEAST = 8
"""Queries without which nothing is said."""


@dataclass
class Measured:
    """Candidates and what they are worth on the queries; each is scored once on a query.

    Attributes:
        score: Scores candidates.
        count: How many queries.
        candidates: The recipes, the own one first.
    """

    score: Scorer
    count: int
    candidates: list[Candidate]
    _values: list[Values] = field(default_factory=list)
    _asked: list[NDArray[np.bool_]] = field(default_factory=list)

    def number(self, candidate: Candidate) -> int:
        """The candidate's number; a new one is added."""
        if candidate not in self.candidates:
            self.candidates.append(candidate)
        return self.candidates.index(candidate)

    def __call__(self, numbers: Sequence[int], places: Places) -> Values:
        """What candidates are worth, shape (candidates, places), NaN where it cannot be told."""
        while len(self._values) < len(self.candidates):
            self._values.append(np.full(self.count, np.nan))
            self._asked.append(np.zeros(self.count, dtype=np.bool_))
        together: dict[bytes, list[int]] = {}
        for number in dict.fromkeys(numbers):
            together.setdefault(self._asked[number][places].tobytes(), []).append(number)
        for some in together.values():
            new = places[~self._asked[some[0]][places]]
            if not len(new):
                continue
            for number, row in zip(some, self.score([self.candidates[n] for n in some], new), strict=True):
                self._values[number][new] = row
                self._asked[number][new] = True
        return np.stack([self._values[number][places] for number in numbers])

    def known(self, number: int) -> Values:
        """What is known of a candidate, NaN where it was not asked."""
        return self._values[number] if number < len(self._values) else np.full(self.count, np.nan)


@dataclass(frozen=True)
class Crossed:
    """What the parts chose for each other.

    Attributes:
        own: What the own recipe is worth on each query.
        other: What the recipe is worth that the other parts chose.
        chosen: The number of the candidate that is the best of the own one and of all choices, on all queries.
    """

    own: Values
    other: Values
    chosen: int


def parts(places: Places, number: int) -> list[Places]:
    """Queries in random order dealt out to parts; of more queries each part keeps those that it had."""
    return [np.sort(places[first::number]) for first in range(number)]


def crossed(measured: Measured, choose: Callable[[Places], int], number: int, *, deals: int = 1) -> Crossed:
    """Lets all parts but one choose for that one.

    Args:
        measured: The candidates, on queries in random order.
        choose: From some queries, in their order, to the number of the best candidate on them.
        number: How many parts, at least 2.
        deals: How often the queries are dealt out; what the other parts chose is worth its mean over all deals.
    """
    whole = np.arange(measured.count)
    others = []
    picks = [0]
    for deal in range(deals):
        places = whole if deal == 0 else permutation(measured.count, deal, "", "deal")
        other = np.empty(measured.count)
        for part in parts(places, number):
            picks.append(choose(np.setdiff1d(whole, part)))
            other[part] = measured([picks[-1]], part)[0]
        others.append(other)
    final = list(dict.fromkeys(picks))
    values = measured(final, whole)
    return Crossed(values[0], np.mean(others, axis=0), final[ranked(values)[0]])


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        objective: The name of what is to be high, with a minus before it where less is better.
        measured: The recipes and what they are worth.
        crossed: What the parts chose for each other.
        notes: What a reader should know.
        told: Further settings that decide the figures.
    """

    objective: str
    measured: Measured
    crossed: Crossed
    notes: Sequence[str]
    told: Mapping[str, Json] = field(default_factory=dict)


def judgeable(asked: Asked, judges: Callable[[Example], bool], needs: str, seed: int) -> Asked:
    """The queries that can be judged, in a random order.

    Args:
        asked: All queries.
        judges: Whether one can be judged.
        needs: What of it must be known, in words.
        seed: Of the order.

    Raises:
        InvalidInput: They are fewer than `LEAST`.
    """
    kept = [query for query in asked.queries if judges(query)]
    if len(kept) < LEAST:
        raise InvalidInput(f"{len(kept)} queries with {needs}", expected=f"at least {LEAST} different ones")
    return replace(asked, queries=[kept[place] for place in permutation(len(kept), seed, "", "tuning").tolist()])
