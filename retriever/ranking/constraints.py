"""Constraints that hold for what any strategy chooses.

    [constraints]
    at_most = {template = 1, label = 2, source = 3}    # so many of each; template, label, or any field
    at_least = {language = 2}                          # so many distinct values
    every_label = true                                 # one of each label, where k is enough for all
    near = 0.95                                        # no two this alike or more
    near_by = "cosine"                                 # cosine | 4-grams
    min_score = 0.3
    min_trust = 0.5                                    # meta.trust
    backfill = true

How they combine with a strategy, and what is promised, says `retriever.ranking.constrained`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from indexes.analyzers import character_ngrams
from retriever.errors import InvalidInput
from retriever.example import Example, render
from retriever.ranking.guard import jaccard, normalised
from retriever.ranking.strategies.base import Candidates
from retriever.ranking.strategies.exact import exact_vectors
from retriever.ranking.strategies.picks import Reals
from retriever.ranking.template_key import template_key

SEARCH = 2_000
"""How many steps the first search for a choice that meets `at_least` may take."""

SEARCH_AGAIN = 20
"""How many it may take to see whether a candidate goes with such a choice. Where it ends too soon the candidate is
passed over, and the choice that is known stays possible: what is asked for is still met, by worse candidates at most.
"""


@dataclass(frozen=True)
class Constraints:
    """What the chosen demonstrations must keep to together; see above.

    Attributes:
        at_most: The most demonstrations with one value, by `template` (see `template_key`), `label`, or the path of a
            field. One that has several values counts for each, one that has none for nothing.
        at_least: The least number of distinct values, by the same names.
        every_label: Whether each label of the candidates is shown, if k is enough for all.
        near: The likeness from which two are near copies, 0 to 1; None to allow them.
        near_by: `cosine` of their vectors, or `4-grams`: Jaccard likeness of the characters of their inputs.
        min_score: The least fused score; None for no bound.
        min_trust: The least `meta.trust`, a number; who has none is not trusted. None for no bound.
        backfill: Whether what breaks `at_most` or `near` fills up to k.

    Raises:
        InvalidInput: A value out of range.
    """

    at_most: Mapping[str, int] = field(default_factory=dict)
    at_least: Mapping[str, int] = field(default_factory=dict)
    every_label: bool = False
    near: float | None = None
    near_by: Literal["cosine", "4-grams"] = "cosine"
    min_score: float | None = None
    min_trust: float | None = None
    backfill: bool = True

    def __post_init__(self) -> None:
        for key, numbers in (("at_most", self.at_most), ("at_least", self.at_least)):
            for name, number in numbers.items():
                if not name or type(number) is not int or number < 1:
                    raise InvalidInput(
                        f"constraints.{key}: {name!r} = {number!r}", expected="a name and a whole number from 1"
                    )
        if self.near is not None and not 0.0 <= self.near <= 1.0:
            raise InvalidInput(f"constraints.near = {self.near}", expected="a number from 0 to 1")
        if self.near_by not in ("cosine", "4-grams"):
            raise InvalidInput(f"constraints.near_by = {self.near_by!r}", expected="one of cosine, 4-grams")
        for key, bound in (("min_score", self.min_score), ("min_trust", self.min_trust)):
            if bound is not None and not np.isfinite(bound):
                raise InvalidInput(f"constraints.{key} = {bound}", expected="a finite number")

    @property
    def idle(self) -> bool:
        """Whether nothing is asked for."""
        return self == Constraints(near_by=self.near_by, backfill=self.backfill)


class Facts:
    """What the constraints ask about candidates, read when asked."""

    def __init__(self, candidates: Candidates, constraints: Constraints) -> None:
        self._candidates = candidates
        self._constraints = constraints
        self._values: dict[str, list[frozenset[str]]] = {}
        self._alike: dict[int, NDArray[np.bool_]] = {}

    def values(self, name: str) -> list[frozenset[str]]:
        """What each candidate has under a name."""
        if name not in self._values:
            self._values[name] = [_values(example, name) for example in self._candidates.examples]
        return self._values[name]

    def alike(self, place: int, near: float) -> NDArray[np.bool_]:
        """Which candidates are near copies of one, itself among them."""
        if place not in self._alike:
            likeness = self._cosines(place) if self._constraints.near_by == "cosine" else self._jaccard(place)
            self._alike[place] = likeness >= near
        return self._alike[place]

    def barred(self, place: int) -> str | None:
        """Which bound a candidate is below on its own."""
        rules = self._constraints
        score = float(self._candidates.fused[place])
        if rules.min_score is not None and score < rules.min_score:
            return f"score {score:.3f} below {rules.min_score:g}"
        if rules.min_trust is not None:
            trust = self._candidates.examples[place].meta.get("trust")
            number = trust if isinstance(trust, int | float) and not isinstance(trust, bool) else None
            if number is None or not number >= rules.min_trust:
                return f"trust {trust!r} below {rules.min_trust:g}"
        return None

    @cached_property
    def _grid(self) -> Reals:
        return exact_vectors(self._candidates.vectors)[0]

    def _cosines(self, place: int) -> Reals:
        cosines: Reals = self._grid @ self._grid[place]
        # A float32 unit vector has the cosine 1 with its copy up to 1e-7: the allowance keeps copies copies.
        return cosines + 1e-6

    @cached_property
    def _grams(self) -> list[frozenset[str]]:
        texts = (normalised(example.input_text) for example in self._candidates.examples)
        return [frozenset(character_ngrams(text, 4)) for text in texts]

    def _jaccard(self, place: int) -> Reals:
        mine = self._grams[place]
        return np.array([jaccard(mine, other) for other in self._grams], dtype=np.float64)


def _values(example: Example, name: str) -> frozenset[str]:
    if name == "template":
        if example.output is None:
            return frozenset()
        return frozenset([template_key(example.output_text, example.input_text)])
    if name == "label":
        return example.labels
    value = example.value(name)
    values = value if isinstance(value, list) else [] if value is None else [value]
    return frozenset(map(render, values))


class Chosen:
    """The candidates taken so far, and what may be taken beside them."""

    def __init__(self, facts: Facts, rules: Constraints, before: Sequence[int], slots: int, usable: set[int]) -> None:
        self.facts = facts
        self.rules = rules
        self.usable = usable
        self.slots = slots
        self.places = list(before)
        self._before = len(before)
        self.wanted = self._wanted()
        self._widest = {name: max(map(len, facts.values(name)), default=0) for name in self.wanted}
        self._plan: list[int] = []
        self._allow_for_what_can_be()

    def broken(self, place: int, beside: Collection[int] = ()) -> list[str]:
        """Which of `at_most` and `near` a candidate breaks beside those taken and some more."""
        found = []
        others = [*self.places, *beside]
        for name, most in self.rules.at_most.items():
            values = self.facts.values(name)
            counts = Counter(value for other in others for value in values[other] & values[place])
            if counts and max(counts.values()) >= most:
                found.append(f"at most {most} of one {name}")
        near = self.rules.near
        if near is not None and any(self.facts.alike(other, near)[place] for other in others):
            found.append(f"near copies of likeness {near:g}")
        return found

    def forbids(self, place: int) -> str | None:
        """Why a candidate may not be taken now, or None."""
        if broken := self.broken(place):
            return broken[0]
        if self.completed([place]) is None:
            return "the places left are kept for " + ", ".join(
                f"{name} ({most} distinct)" for name, most in self.wanted.items()
            )
        return None

    def lacking(self, name: str, beside: Collection[int] = ()) -> int:
        """How many distinct values are still wanted."""
        return self.wanted[name] - len(self._shown(name, beside))

    def take(self, place: int) -> None:
        """Makes a candidate one of those taken."""
        plan = self.completed([place])
        self._plan = [] if plan is None else plan
        self.places.append(place)

    def completed(self, beside: list[int]) -> list[int] | None:
        """More to take after some, so that nothing is lacking; None where the search finds nothing."""
        if not self.wanted:
            return []
        if self._hopeless(beside):
            return None
        plan = [place for place in self._plan if place not in beside]
        # What is taken often stands in for one of the plan; trying that first saves most searches.
        for shorter in (plan, *(plan[:i] + plan[i + 1 :] for i in range(len(plan)))):
            fits = len(self.places) + len(beside) + len(shorter) <= self.slots
            if fits and self._good(shorter, beside):
                return shorter
        return self._search(beside, iter(range(SEARCH_AGAIN if beside else SEARCH)))

    def _hopeless(self, beside: list[int]) -> bool:
        """Whether the places left are too few, whatever they get."""
        left = self.slots - len(self.places) - len(beside)
        return any(self.lacking(name, beside) > left * self._widest[name] for name in self.wanted)

    def _good(self, plan: list[int], beside: list[int]) -> bool:
        """Whether an earlier plan still serves after some more."""
        if any(self.lacking(name, [*beside, *plan]) > 0 for name in self.wanted):
            return False
        return not any(self.broken(p, [*beside, *plan[:i]]) for i, p in enumerate(plan))

    def unmet(self) -> tuple[str, ...]:
        """What is lacking, in words."""
        asked = self._asked()
        shown = {name: len(self._shown(name)) for name in asked}
        return tuple(
            f"{shown[name]} of {least} distinct values of {name}"
            for name, least in asked.items()
            if shown[name] < least
        )

    def needed(self) -> int:
        """How many of those taken it takes, from the first, to lack no more than all of them do."""
        shown = {name: min(least, len(self._shown(name))) for name, least in self._asked().items()}
        cuts = range(self._before, len(self.places))
        enough = (
            cut
            for cut in cuts
            if all(len(self._union(name, self.places[:cut])) >= least for name, least in shown.items())
        )
        return next(enough, len(self.places)) - self._before

    def keep(self, count: int) -> None:
        """Lets go of all that was taken but the first so many."""
        del self.places[self._before + count :]

    def _search(self, beside: list[int], steps: Iterator[int]) -> list[int] | None:
        if next(steps, None) is None:
            return None
        short = [name for name in self.wanted if self.lacking(name, beside) > 0]
        if not short:
            return []
        if self._hopeless(beside):
            return None
        for place in self._carriers(short, beside):
            rest = self._search([*beside, place], steps)
            if rest is not None:
                return [place, *rest]
        return None

    def _carriers(self, short: list[str], beside: list[int]) -> list[int]:
        """The candidates one of which must be taken next: those of the scarcest value that is needed."""
        free = [p for p in sorted(self.usable) if p not in self.places and p not in beside]
        free = [p for p in free if not self.broken(p, beside)]
        best: list[int] | None = None
        for name in short:
            values, shown = self.facts.values(name), self._shown(name, beside)
            new: dict[str, list[int]] = {}
            for p in free:
                for value in sorted(values[p] - shown):  # sets have another order in another process
                    new.setdefault(value, []).append(p)
            if len(new) < self.lacking(name, beside):
                return []
            needed = (
                list(new.values()) if len(new) == self.lacking(name, beside) else [sorted(set().union(*new.values()))]
            )
            scarcest = min(needed, key=len)
            best = scarcest if best is None or len(scarcest) < len(best) else best
        return sorted(best or [], key=lambda p: (-sum(bool(self.facts.values(n)[p]) for n in short), p))

    def _shown(self, name: str, beside: Collection[int] = ()) -> set[str]:
        return self._union(name, (*self.places, *beside))

    def _possible(self, name: str) -> int:
        return len(self._shown(name, self.usable))

    def _union(self, name: str, places: Collection[int]) -> set[str]:
        values = self.facts.values(name)
        return {value for place in places for value in values[place]}

    def _asked(self) -> dict[str, int]:
        """How many distinct values are asked for, whether they can be had or not."""
        least = dict(self.rules.at_least)
        if self.rules.every_label:
            every = self._possible("label")
            if least.get("label", 0) <= every <= self.slots:
                least["label"] = every
        return least

    def _wanted(self) -> dict[str, int]:
        return {name: min(least, self._possible(name)) for name, least in self._asked().items()}

    def _allow_for_what_can_be(self) -> None:
        """Lowers what is wanted, the largest lack first, until a choice that has it is found."""
        while (plan := self.completed([])) is None:
            worst = max(self.wanted, key=self.lacking)
            self.wanted[worst] -= 1
        self._plan = plan
