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

How they combine with a strategy. The strategy chooses among the candidates. Its picks are taken in their order up to
the first that the constraints forbid. All candidates that are forbidden beside what is taken are then removed, the
strategy chooses again among the rest, and its picks beyond those taken follow; and so on. Every round takes at least
one, so there are at most k.

For a strategy whose next pick depends on its picks so far alone (`top`, `random`, `fixed`, and with scores as they are
`mmr`, `dpp` and `sift`) this is exactly the greedy search in which forbidden candidates are masked at every step, but
for gains within the tie margin. Others scale relevance over the candidates or place all at once (`coverage`,
`balanced`, `cluster`, `complexity`, anything `min-max`): for them it is the rule by which picks are taken.

What is promised. `min_score` and `min_trust` always hold. `at_most` and `near` hold for all that is not back-filled.
`at_least` and `every_label` hold wherever the candidates allow it beside those (a search of at most `SEARCH` steps
decides; beyond, they are lowered); what they lack is told. If the rest is exhausted before k, it is filled with the
strategy's picks that break `at_most` or `near`, each told with what it breaks; `backfill = false` gives fewer instead.
A strategy that stops by itself is not filled up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.analyzers import character_ngrams
from retriever.errors import InvalidInput
from retriever.example import Example, render
from retriever.ranking.guard import jaccard, normalised
from retriever.ranking.strategies.base import Candidates
from retriever.ranking.strategies.picks import Integers, Picks, Reals
from retriever.ranking.template_key import template_key

SEARCH = 2_000
"""How many steps the search for a choice that meets `at_least` may take."""

Pick: TypeAlias = Callable[[Integers, int], Picks]
"""From places among all candidates, ascending, and k to picks; their places count within those given."""


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


@dataclass(frozen=True)
class Constrained:
    """What was chosen under constraints.

    Attributes:
        picks: Places among the candidates, in the order in which they were taken, with gains and rivals as the strategy
            gave them at that moment. A rival is always an earlier pick or none.
        breaks: For each pick the constraints that it breaks: empty for all but those that were back-filled.
        barred: The candidates that were in the way of a constraint, by place, and of which; chosen ones are not here.
        unmet: What `at_least` and `every_label` lack.
        last: The strategy's last answer that was used, with whatever else it reports; None where nothing was chosen.
    """

    picks: Picks
    breaks: tuple[tuple[str, ...], ...]
    barred: Mapping[int, str]
    unmet: tuple[str, ...]
    last: Picks | None


class View(Candidates):
    """Some of the candidates; what has been read of all is not read again.

    Args:
        whole: All of them.
        places: Which, shape (m,).
    """

    def __init__(self, whole: Candidates, places: Integers) -> None:
        super().__init__(whole.rows[places], whole.relevance[places], whole.reader)
        self._whole = whole
        self._places = places

    @cached_property
    def cosines(self) -> Reals:
        """Cosines to the query."""
        return self._whole.cosines[self._places]

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """Vectors."""
        return self._whole.vectors[self._places]

    @cached_property
    def examples(self) -> list[Example]:
        """The examples."""
        return [self._whole.examples[place] for place in self._places]

    @cached_property
    def terms(self) -> list[list[str]]:
        """The terms of each."""
        return [self._whole.terms[place] for place in self._places]


class _Facts:
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
        score = float(self._candidates.relevance[place])
        if rules.min_score is not None and score < rules.min_score:
            return f"score {score:.3f} below {rules.min_score:g}"
        if rules.min_trust is not None:
            trust = self._candidates.examples[place].meta.get("trust")
            number = trust if isinstance(trust, int | float) and not isinstance(trust, bool) else None
            if number is None or not number >= rules.min_trust:
                return f"trust {trust!r} below {rules.min_trust:g}"
        return None

    @cached_property
    def _wide(self) -> Reals:
        return self._candidates.vectors.astype(np.float64)

    def _cosines(self, place: int) -> Reals:
        cosines: Reals = self._wide @ self._wide[place]
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


class _Set:
    """The candidates taken so far, and what may be taken beside them."""

    def __init__(self, facts: _Facts, rules: Constraints, before: Sequence[int], slots: int, usable: set[int]) -> None:
        self.facts = facts
        self.rules = rules
        self.usable = usable
        self.slots = slots
        self.places = list(before)
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
        plan = [place for place in self._plan if place not in beside]
        if len(self.places) + len(beside) + len(plan) <= self.slots and self._good(plan, beside):
            return plan
        return self._search(beside, iter(range(SEARCH)))

    def _good(self, plan: list[int], beside: list[int]) -> bool:
        """Whether an earlier plan still serves after some more."""
        if any(self.lacking(name, [*beside, *plan]) > 0 for name in self.wanted):
            return False
        return not any(self.broken(p, [*beside, *plan[:i]]) for i, p in enumerate(plan))

    def unmet(self) -> tuple[str, ...]:
        """What is lacking, in words."""
        asked = {**self.rules.at_least, **self._every_label()}
        shown = {name: len(self._shown(name)) for name in asked}
        return tuple(
            f"{shown[name]} of {least} distinct values of {name}"
            for name, least in asked.items()
            if shown[name] < least
        )

    def _search(self, beside: list[int], steps: Iterator[int]) -> list[int] | None:
        if next(steps, None) is None:
            return None
        short = [name for name in self.wanted if self.lacking(name, beside) > 0]
        if not short:
            return []
        left = self.slots - len(self.places) - len(beside)
        if any(self.lacking(name, beside) > left * self._widest[name] for name in short):
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
            new = {value: [p for p in free if value in values[p]] for p in free for value in values[p] - shown}
            if len(new) < self.lacking(name, beside):
                return []
            needed = (
                list(new.values()) if len(new) == self.lacking(name, beside) else [sorted(set().union(*new.values()))]
            )
            scarcest = min(needed, key=len)
            best = scarcest if best is None or len(scarcest) < len(best) else best
        return sorted(best or [], key=lambda p: (-sum(bool(self.facts.values(n)[p]) for n in short), p))

    def _shown(self, name: str, beside: Collection[int] = ()) -> set[str]:
        values = self.facts.values(name)
        return {value for place in (*self.places, *beside) for value in values[place]}

    def _every_label(self) -> dict[str, int]:
        if not self.rules.every_label:
            return {}
        labels = self.facts.values("label")
        every = len({label for place in (*self.places, *self.usable) for label in labels[place]})
        return {"label": every} if max(every, self.rules.at_least.get("label", 0)) == every <= self.slots else {}

    def _wanted(self) -> dict[str, int]:
        asked = {**self.rules.at_least, **self._every_label()}
        possible = {
            name: len({v for place in (*self.places, *self.usable) for v in self.facts.values(name)[place]})
            for name in asked
        }
        return {name: min(least, possible[name]) for name, least in asked.items()}

    def _allow_for_what_can_be(self) -> None:
        """Lowers what is wanted, the largest lack first, until a choice that has it is found."""
        while (plan := self.completed([])) is None:
            worst = max(self.wanted, key=self.lacking)
            self.wanted[worst] -= 1
        self._plan = plan


def constrained(
    pick: Pick, candidates: Candidates, k: int, constraints: Constraints, *, before: Sequence[int] = ()
) -> Constrained:
    """Chooses up to k candidates with a strategy, under constraints; see above.

    Args:
        pick: The strategy. It is given places, and `View(candidates, places)` is what it looks at.
        candidates: All that can be chosen, and those of `before`.
        k: How many, at most, beside those of `before`.
        constraints: What they must keep to.
        before: Places of what is chosen already. It counts, and is never chosen again.
    """
    facts = _Facts(candidates, constraints)
    barred = {place: why for place in range(len(candidates)) if (why := facts.barred(place)) is not None}
    usable = set(range(len(candidates))) - barred.keys() - set(before)
    taken = _Taken(_Set(facts, constraints, before, len(before) + k, usable), pick, k, barred)
    open_ = sorted(usable)
    while len(taken) < k and len(open_) > len(taken) and taken.round(open_):
        mine = set(taken.places)
        for place in open_:
            if place not in mine and (why := taken.set.forbids(place)) is not None:
                barred[place] = why
        open_ = [place for place in open_ if place not in barred]
    if constraints.backfill and not taken.stopped:
        taken.fill(sorted(usable))
    return taken.result()


class _Taken:
    """The picks taken so far."""

    def __init__(self, chosen: _Set, pick: Pick, k: int, barred: dict[int, str]) -> None:
        self.set = chosen
        self.stopped = False
        self.places: list[int] = []
        self._pick = pick
        self._k = k
        self._barred = barred
        self._gains: list[float] = []
        self._against: list[int] = []
        self._breaks: list[tuple[str, ...]] = []
        self._last: Picks | None = None

    def __len__(self) -> int:
        return len(self.places)

    def round(self, open_: list[int]) -> bool:
        """Takes the strategy's picks up to the first that is forbidden; whether there is more to be had."""
        for place, gain, against in self._picks(open_):
            if len(self) == self._k:
                break
            if self.set.forbids(place) is not None:
                return True
            self._take(place, gain, against, ())
        return not self.stopped

    def fill(self, usable: list[int]) -> None:
        """Takes the strategy's picks among all, whatever they break."""
        if len(self) == min(self._k, len(usable)):
            return
        for place, gain, against in self._picks(usable):
            if len(self) < self._k:
                self._take(place, gain, against, tuple(self.set.broken(place)))

    def result(self) -> Constrained:
        """All that was taken."""
        chosen = Picks(
            np.array(self.places, dtype=np.int64),
            np.array(self._gains, dtype=np.float64),
            np.array(self._against, dtype=np.int64),
        )
        barred = {place: why for place, why in sorted(self._barred.items()) if place not in self.places}
        return Constrained(chosen, tuple(self._breaks), barred, self.set.unmet(), self._last)

    def _picks(self, among: list[int]) -> list[tuple[int, float, int]]:
        """The strategy's picks that are not taken yet, with gains and rivals."""
        within = np.array(among, dtype=np.int64)
        picked = self._last = self._pick(within, min(self._k, len(among)))
        self.stopped = len(picked) < min(self._k, len(among))
        rivals = [-1 if one < 0 else int(within[one]) for one in picked.against]
        found = zip(within[picked.places].tolist(), picked.gains.tolist(), rivals, strict=True)
        return [one for one in found if one[0] not in self.places]

    def _take(self, place: int, gain: float, against: int, breaks: tuple[str, ...]) -> None:
        self._gains.append(gain)
        self._against.append(against if against in self.places else -1)
        self._breaks.append(breaks)
        self.places.append(place)
        self.set.take(place)
