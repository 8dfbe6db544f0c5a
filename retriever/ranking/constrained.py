"""Any strategy under constraints.

How they combine with a strategy. The strategy chooses among the candidates. Its picks are taken in their order up to
the first that the constraints forbid. All candidates that are forbidden beside what is taken are then removed, the
strategy chooses again among the rest, and its picks beyond those taken follow; and so on. Every round takes at least
one, so there are at most k.

For a strategy whose next pick depends on its picks so far alone (`top`, `random`, `fixed`, and with scores as they are
`mmr`, `dpp` and `sift`) this is exactly the greedy search in which forbidden candidates are masked at every step, but
for gains within the tie margin. Others scale relevance over the candidates or place all at once (`coverage`,
`balanced`, `cluster`, `complexity`, anything `min-max`): for them it is the rule by which picks are taken.

What is promised. `min_score` and `min_trust` always hold. `at_most` and `near` hold for all that is not back-filled.
`at_least` and `every_label` hold wherever the candidates allow it beside those (a search of at most
`constraints.SEARCH` steps decides; what it cannot find is lowered); what they lack is told. If the rest is exhausted
before k, it is filled with the strategy's picks that break `at_most` or `near`, each told with what it breaks;
`backfill = false` gives fewer instead. A strategy that stops by itself is not filled up. Where fewer are `enough`, the
first are kept, but all those that `at_least` and `every_label` need; what is told is about those that are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retriever.example import Example
from retriever.ranking.constraints import Chosen, Constraints, Facts
from retriever.ranking.strategies.base import Candidates
from retriever.ranking.strategies.picks import NONE, Integers, Picks, Reals, picks

Pick: TypeAlias = Callable[[Integers, int], Picks]
"""From places among all candidates, ascending, and k to picks; their places count within those given."""


@dataclass(frozen=True)
class Constrained:
    """What was chosen under constraints.

    Attributes:
        picks: Places among the candidates, in the order in which they were taken, with gains and rivals as the strategy
            gave them at that moment. A rival is always an earlier pick or none.
        breaks: For each pick the constraints that it breaks: empty for all but those that were back-filled.
        barred: The candidates that were in the way of a constraint, by place, and of which; chosen ones are not here.
        unmet: What `at_least` and `every_label` lack.
    """

    picks: Picks
    breaks: tuple[tuple[str, ...], ...]
    barred: Mapping[int, str]
    unmet: tuple[str, ...]


class View(Candidates):
    """Some of the candidates; what has been read of all is not read again.

    Args:
        whole: All of them.
        places: Which, shape (m,).
    """

    def __init__(self, whole: Candidates, places: Integers) -> None:
        fused = whole.fused[places] if whole.reranked else None
        super().__init__(whole.rows[places], whole.relevance[places], whole.reader, fused)
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


def constrained(
    pick: Pick,
    candidates: Candidates,
    k: int,
    constraints: Constraints,
    *,
    before: Sequence[int] = (),
    enough: Callable[[Integers], int] = len,
) -> Constrained:
    """Chooses up to k candidates with a strategy, under constraints; see above.

    Args:
        pick: The strategy. It is given places, and `View(candidates, places)` is what it looks at.
        candidates: All that can be chosen, and those of `before`.
        k: How many, at most, beside those of `before`.
        constraints: What they must keep to.
        before: Places of what is chosen already. It counts, and is never chosen again.
        enough: From the places of what was chosen, in order, to how many of them are enough.
    """
    facts = Facts(candidates, constraints)
    barred = {place: why for place in range(len(candidates)) if (why := facts.barred(place)) is not None}
    usable = set(range(len(candidates))) - barred.keys() - set(before)
    taken = _Taken(Chosen(facts, constraints, before, len(before) + k, usable), pick, k, barred)
    open_ = sorted(usable)
    while len(taken) < k and len(open_) > len(taken) and taken.round(open_):
        open_ = taken.bar(open_)
    if constraints.backfill and not taken.stopped:
        taken.fill(sorted(usable))
    taken.keep(enough(np.array(taken.places, dtype=np.int64)))
    return taken.result()


class _Taken:
    """The picks taken so far."""

    def __init__(self, chosen: Chosen, pick: Pick, k: int, barred: Mapping[int, str]) -> None:
        self.set = chosen
        self.stopped = False
        self.places: list[int] = []
        self._pick = pick
        self._k = k
        self._barred = {place: (0, why) for place, why in barred.items()}  # beside how many picks, and why
        self._gains: list[float] = []
        self._against: list[int] = []
        self._breaks: list[tuple[str, ...]] = []

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

    def bar(self, open_: list[int]) -> list[int]:
        """Bars what may not be taken beside the picks; what is left."""
        mine = set(self.places)
        for place in open_:
            if place not in mine and (why := self.set.forbids(place)) is not None:
                self._barred[place] = len(self), why
        return [place for place in open_ if place not in self._barred]

    def fill(self, usable: list[int]) -> None:
        """Takes the strategy's picks among all, whatever they break."""
        if len(self) == min(self._k, len(usable)):
            return
        for place, gain, against in self._picks(usable):
            if len(self) < self._k:
                self._take(place, gain, against, tuple(self.set.broken(place)))

    def keep(self, count: int) -> None:
        """Lets go of all picks but the first so many, or as many as are needed, and of what only the others barred."""
        count = max(count, self.set.needed())
        if count >= len(self):
            return
        self.set.keep(count)
        for column in (self.places, self._gains, self._against, self._breaks):
            del column[count:]
        for place, (beside, _) in list(self._barred.items()):
            if beside > count:
                del self._barred[place]
                if broken := self.set.broken(place):
                    self._barred[place] = count, broken[0]

    def result(self) -> Constrained:
        """All that was taken."""
        chosen = picks(self.places, self._gains, self._against)
        barred = {place: why for place, (_, why) in sorted(self._barred.items()) if place not in self.places}
        return Constrained(chosen, tuple(self._breaks), barred, self.set.unmet())

    def _picks(self, among: list[int]) -> list[tuple[int, float, int]]:
        """The strategy's picks that are not taken yet, with gains and rivals."""
        within = np.array(among, dtype=np.int64)
        picked = self._pick(within, min(self._k, len(among)))
        self.stopped = len(picked) < min(self._k, len(among))
        rivals = [NONE if one == NONE else int(within[one]) for one in picked.against]
        found = zip(within[picked.places].tolist(), picked.gains.tolist(), rivals, strict=True)
        return [one for one in found if one[0] not in self.places]

    def _take(self, place: int, gain: float, against: int, breaks: tuple[str, ...]) -> None:
        self._gains.append(gain)
        self._against.append(against if against in self.places else NONE)
        self._breaks.append(breaks)
        self.places.append(place)
        self.set.take(place)
