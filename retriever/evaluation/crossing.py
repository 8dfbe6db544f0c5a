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
from retriever.evaluation.comparison import Values
from retriever.evaluation.halving import ranked
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
        wrong: What a candidate's failures count as on some queries, NaN where there is none; None where none can fail.
            A failure counts where another candidate was answered: it is due to the candidate, such as a k whose
            prompts are too long for the model. Left out, it would flatter what is answered only where that is easy.
    """

    score: Scorer
    count: int
    candidates: list[Candidate]
    wrong: Callable[[Candidate, Places], Values] | None = None
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
        return np.stack([self.known(number)[places] for number in numbers])

    def known(self, number: int) -> Values:
        """What is known of a candidate, NaN where it was not asked or cannot be told."""
        if number >= len(self._values):
            return np.full(self.count, np.nan)
        values, held = self._values[number].copy(), self.held_against(number)
        if self.wrong is not None and len(held):
            values[held] = self.wrong(self.candidates[number], held)
        return values

    def held_against(self, number: int) -> Places:
        """The queries on which a candidate failed and another one was answered."""
        if self.wrong is None or number >= len(self._values):
            return np.array([], np.int64)
        places = np.flatnonzero(self._asked[number] & np.isnan(self._values[number]))
        places = places[~np.isnan(self.wrong(self.candidates[number], places))]
        return places[~np.isnan(np.stack(self._values)[:, places]).all(axis=0)]

    def asked(self, number: int) -> int:
        """On how many queries a candidate was asked."""
        return int(self._asked[number].sum()) if number < len(self._asked) else 0


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
    dealt: list[list[tuple[Places, int]]] = []
    for deal in range(deals):
        places = whole if deal == 0 else permutation(measured.count, deal, "", "deal")
        dealt.append([(part, choose(np.setdiff1d(whole, part))) for part in parts(places, number)])
    final = list(dict.fromkeys([0, *(pick for picks in dealt for _, pick in picks)]))
    values = measured(final, whole)
    others = np.empty((deals, measured.count))
    for row, picks in zip(others, dealt, strict=True):
        for part, pick in picks:
            row[part] = values[final.index(pick), part]
    return Crossed(values[0], others.mean(axis=0), final[ranked(values)[0]])


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
