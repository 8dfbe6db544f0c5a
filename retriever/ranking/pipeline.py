"""The ranker: retrieve → guard → rerank → select, over one query's channel scores.

The guard acts before the cut, so that k is still filled, and before the scores are normalised, so that a copy of the
query does not set the scale for the others. It only looks at rows that could be chosen or that set a channel's maximum,
and asks again until none of those is blocked; rows below the cut change nothing and are not looked at. Under reciprocal
rank fusion, where every row above another counts, ranks are those before the guard: a blocked row keeps its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.channels import ChannelScores, Fusion, Hits
from indexes.hybrid import HybridIndex
from retriever.ranking.adaptive import Adaptive
from retriever.ranking.constrained import Constrained, View, constrained
from retriever.ranking.recipe import Part, Recipe
from retriever.ranking.rerank import UNSEEN, Rerank, rerank
from retriever.ranking.seeding import permutation
from retriever.ranking.strategies import strategy
from retriever.ranking.strategies.base import Candidates, Reader
from retriever.ranking.strategies.fixed import FixedOptions
from retriever.ranking.strategies.picks import NONE, Integers, Reals

Rows: TypeAlias = NDArray[np.int64]
Check: TypeAlias = Callable[[Rows], Sequence[str | None]]
"""From row numbers to why each must not be shown, None where it may."""


@dataclass(frozen=True)
class Choice:
    """A row that was chosen.

    Attributes:
        row: Its number.
        origin: The strategy that chose it.
        gain: What it was worth to the strategy at that moment; None where the strategy weighs nothing.
        against: The earlier choice that it was most traded against; None for none.
        shared: Whether it belongs to the block that all queries share.
        breaks: The constraints that it breaks: it fills up to k where nothing else is left.
        relevance: What it was worth after reranking; None where nothing scored it again.
        rescored: The reranker's own score.
    """

    row: int
    origin: str
    gain: float | None = None
    against: int | None = None
    shared: bool = False
    breaks: tuple[str, ...] = ()
    relevance: float | None = None
    rescored: float | None = None


@dataclass(frozen=True)
class Ranked:
    """What the ranker chose, best first.

    Attributes:
        choices: The rows, and how each came in.
        hits: The rows and their scores.
        blocked: What the guard left out, by row, with the reason.
        open_variance: The share of the query's variance that all choices leave open, where the last strategy tells.
        barred: What the constraints left out, by row, with the reason.
        unmet: Constraints that the candidates do not allow to be kept.
    """

    choices: tuple[Choice, ...]
    hits: Hits
    blocked: dict[int, str]
    open_variance: float | None = None
    barred: Mapping[int, str] = field(default_factory=dict)
    unmet: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lookup:
    """What the ranker may look at beside the scores.

    Attributes:
        reader: The query, and more about rows.
        named: From ids to their rows; an id that is not in the pool is an error.
        shared: The rows of a part that all queries share.
        rescore: The reranker's scores of rows, float64, shape (m,).
    """

    reader: Reader
    named: Callable[[Sequence[str]], Rows]
    shared: Callable[[Part], Rows]
    rescore: Callable[[Rows], Reals]


def rank(
    index: HybridIndex, scores: ChannelScores, recipe: Recipe, *, fusion: Fusion, lookup: Lookup, check: Check | None
) -> Ranked:
    """Chooses up to k rows for one query.

    Args:
        index: The index that gave the scores.
        scores: Both channels' scores of the eligible rows.
        recipe: What comes after `retrieve` and `guard`, up to `adaptive`, is used.
        fusion: How the channels are combined.
        lookup: Where more is read.
        check: The guard; None when it blocks nothing.
    """
    select = recipe.select
    guarded = _Guarded(index, scores, fusion, check)
    ranking = _Ranking(guarded, recipe.rerank, lookup.rescore)
    choices: list[Choice] = []
    barred: dict[int, str] = {}
    part = _Picked(())
    for number, one in enumerate(select.plan, start=1):
        last = number == len(select.plan)
        count = min(one.k, select.k - len(choices))
        taken = np.array([choice.row for choice in choices], dtype=np.int64)
        rows = _rows_for(one, count, ranking, lookup, recipe, taken)
        part = _pick(one, count, rows, taken, ranking, lookup, recipe, adaptive=recipe.adaptive if last else Adaptive())
        choices += part.choices
        barred |= part.barred
    chosen = np.array([choice.row for choice in choices], dtype=np.int64)
    # A copy of the query that the guard meets must not set the scale, whoever chose.
    guarded.settle()
    hits = guarded.describe(chosen)
    left_open = _left_open(select.last, lookup.reader)
    open_variance = float(left_open(chosen)[-1]) if left_open and choices else None
    left = {row: why for row, why in barred.items() if row not in chosen}
    return Ranked(
        choices=tuple(map(ranking.told, choices)),
        hits=hits,
        blocked=guarded.blocked,
        open_variance=open_variance,
        barred=left,
        unmet=part.unmet,
    )


@dataclass(frozen=True)
class _Picked:
    """What one part chose."""

    choices: tuple[Choice, ...]
    barred: Mapping[int, str] = field(default_factory=dict)
    unmet: tuple[str, ...] = ()


def _pick(
    part: Part,
    count: int,
    rows: Rows,
    taken: Rows,
    ranking: _Ranking,
    lookup: Lookup,
    recipe: Recipe,
    *,
    adaptive: Adaptive,
) -> _Picked:
    """The choices of one part. Constraints bind what a strategy chooses for a query, and count what came before."""
    free = part.shared or part.strategy == "fixed" or recipe.constraints.idle
    everything = rows if free or not len(taken) else np.concatenate([taken, rows])
    candidates = ranking.candidates(everything, lookup.reader)
    method, settings = strategy(part.strategy), part.settings()
    count = adaptive.before(_falling(candidates, len(everything) - len(rows)), count)
    enough = _enough(part, count, everything, taken, lookup.reader, adaptive)
    if free:
        picked = method.pick(candidates, count, settings)
        picked = picked.first(enough(picked.places))
        made = Constrained(picked, ((),) * len(picked), {}, ())
    else:
        made = constrained(
            lambda places, k: method.pick(View(candidates, places), k, settings),
            candidates,
            count,
            recipe.constraints,
            before=range(len(taken)),
            enough=enough,
        )
    barred = {int(everything[place]): why for place, why in made.barred.items()}
    return _Picked(tuple(_choices(made, everything, part)), barred, made.unmet)


def _enough(
    part: Part, count: int, rows: Rows, taken: Rows, reader: Reader, adaptive: Adaptive
) -> Callable[[Integers], int]:
    """From the places of a part's picks, in order, to how many are enough beside what is taken."""
    left_open = _left_open(part, reader)
    if left_open is None:
        return len

    def enough(places: Integers) -> int:
        shown = np.concatenate([taken, rows[places]])
        return adaptive.after(lambda: left_open(shown)[len(taken) :], len(places), count)

    return enough


def _left_open(part: Part, reader: Reader) -> Callable[[Rows], Reals] | None:
    """What is open of the query's variance before the first of some rows and after each, if the strategy tells it."""
    tell = strategy(part.strategy).left_open
    return None if tell is None else lambda rows: tell(reader, rows, part.settings())


def _rows_for(part: Part, count: int, ranking: _Ranking, lookup: Lookup, recipe: Recipe, taken: Rows) -> Rows:
    """The candidates of a part, best first: eligible, past the guard and not chosen yet."""
    settings = part.settings()
    method = strategy(part.strategy)
    guarded = ranking.guarded
    if isinstance(settings, FixedOptions):
        rows = guarded.passing(lookup.named(settings.ids))
    elif part.shared:
        rows = guarded.passing(lookup.shared(part))
    else:
        depth = method.depth(count, recipe.select.candidates, settings) if count else 0
        if count and not (recipe.constraints.idle and recipe.adaptive.by == "none"):
            depth = max(depth, recipe.select.candidates)  # what is barred has to be made up for
        seeded = method.shuffled_by(settings, lookup.reader.query.id)
        shuffle = None if seeded is None else _shuffle(guarded.index, recipe.select.seed, seeded)
        # What is chosen already may be among the best; as many more keep the strategy's view of the others whole.
        rows = ranking.first(min(depth + len(taken), len(guarded.index)), shuffle) if depth else taken[:0]
        return _without(rows, taken)[:depth]
    return _without(rows, taken)


def _without(rows: Rows, taken: Rows) -> Rows:
    return rows[~np.isin(rows, taken)] if len(taken) else rows


def _choices(made: Constrained, rows: Rows, part: Part) -> list[Choice]:
    picked = made.picks
    numbers = rows[picked.places].tolist(), picked.gains.tolist(), picked.against.tolist()
    return [
        Choice(
            row=row,
            origin=part.strategy,
            gain=gain if math.isfinite(gain) else None,
            against=None if against == NONE else int(rows[against]),
            shared=part.shared,
            breaks=breaks,
        )
        for row, gain, against, breaks in zip(*numbers, made.breaks, strict=True)
    ]


def _shuffle(index: HybridIndex, seed: int, seeded: str) -> Rows:
    """The rows in a random order, which removed ones do not change."""
    rows = np.arange(len(index)) if index.alive is None else np.flatnonzero(index.alive)
    return rows[permutation(len(rows), seed, seeded, "select")]


class _Ranking:
    """The order and relevance of candidates: by their fused scores, or as a reranker has them."""

    def __init__(self, guarded: _Guarded, settings: Rerank, rescore: Callable[[Rows], Reals]) -> None:
        self.guarded = guarded
        self._settings = settings
        self._rescore = rescore
        self._relevance: dict[int, float] = {}
        self._rescored: dict[int, float] = {}

    def first(self, count: int, shuffle: Rows | None) -> Rows:
        """The first `count` rows that pass the guard, by relevance or in a shuffled order of all rows."""
        if shuffle is not None or self._settings.by is None:
            return self.guarded.first(count, shuffle)
        depth = min(self._settings.depth, len(self.guarded.index))
        rows = self.guarded.first(max(count, depth), None)
        new_rows = np.array([row for row in rows[:depth].tolist() if row not in self._rescored], dtype=np.int64)
        if len(new_rows):
            self._rescored.update(zip(new_rows.tolist(), self._rescore(new_rows).tolist(), strict=True))
        scores = np.array([self._rescored[row] for row in rows[:depth].tolist()], dtype=np.float64)
        new = rerank(rows, self.guarded.describe(rows).fused, scores, self._settings.weight)
        rows = rows[new.places]
        self._relevance.update(zip(rows.tolist(), new.relevance.tolist(), strict=True))
        return rows[:count]

    def candidates(self, rows: Rows, reader: Reader) -> Candidates:
        """Rows with their relevance. Beside those that a reranker has seen, others are worth the least."""
        hits = self.guarded.describe(rows)
        cosines = hits.dense if self.guarded.scores.dense_speaks else None
        if not self._relevance or not any(row in self._relevance for row in rows.tolist()):
            return Candidates(rows, hits.fused, reader, cosines=cosines)
        relevance = np.array([self._relevance.get(row, UNSEEN) for row in rows.tolist()], dtype=np.float64)
        return Candidates(rows, relevance, reader, hits.fused, cosines)

    def told(self, choice: Choice) -> Choice:
        """The choice with what the reranker says of it, if it is within the reranker's depth."""
        if choice.row not in self._rescored:
            return choice
        return replace(choice, relevance=self._relevance[choice.row], rescored=self._rescored[choice.row])


def _falling(candidates: Candidates, taken: int) -> Reals:
    """The fused scores of those after the taken ones, best first where a reranker has put them into another order."""
    fused = candidates.fused[taken:]
    return -np.sort(-fused) if candidates.reranked else fused


class _Guarded:
    """The scores of one query with the rows that the guard blocks taken out as they are met."""

    def __init__(self, index: HybridIndex, scores: ChannelScores, fusion: Fusion, check: Check | None) -> None:
        self.index = index
        self.scores = scores
        self.fusion = fusion
        self.check = check
        self.blocked: dict[int, str] = {}
        self._eligible = scores.eligible
        self._cleared: set[int] = set()
        self._best_hits: Hits | None = None  # by the scores as they are now

    def describe(self, rows: Rows) -> Hits:
        """The scores of rows that have passed; those that `first` has ranked already are not worked out again.

        A row that is named or drawn need not be among those that a FAISS index proposed: it is scored now.
        """
        known = self._best_hits
        if known is not None:
            if np.array_equal(rows, known.rows):
                return known
            place_of = {row: place for place, row in enumerate(known.rows.tolist())}
            places = [place_of.get(row, -1) for row in rows.tolist()]
            if -1 not in places:
                return known.take(np.array(places, dtype=np.int64))
        self._consider(self.index.extended(self.scores, rows))
        return self.index.describe(self.scores, rows, self.fusion)

    def passing(self, rows: Rows) -> Rows:
        """The rows among these that are eligible and that the guard lets pass."""
        rows = rows[np.isin(rows, self._eligible)]
        self._look_at(rows)
        return self._unblocked(rows)

    def first(self, count: int, shuffle: Rows | None) -> Rows:
        """The first `count` rows that pass, by relevance or in a shuffled order of all rows."""
        while True:
            rows = self._shuffled(shuffle)[:count] if shuffle is not None else self._best(count)
            if self.check is None or not self._look_at(np.union1d(rows, self.index.leaders(self.scores))):
                return rows

    def settle(self) -> None:
        """Takes out what is blocked among the rows that set a channel's maximum, until none is."""
        while self.check is not None and self._look_at(self.index.leaders(self.scores)):
            pass

    def _best(self, count: int) -> Rows:
        """The best that are not blocked so far; a FAISS index proposes until they are `count`, or no more are left.

        Each time it is asked for at least twice as many, so that a guard that blocks many is no reason to search often.
        """
        while True:
            wanted = count + len(self.blocked)
            if wanted > self.scores.depth:
                self._deepen(max(wanted, 2 * self.scores.depth))
            self._best_hits = self.index.rank(self.scores, wanted, self.fusion)
            rows = self._unblocked(self._best_hits.rows)[:count]
            if len(rows) == count or self.scores.depth == len(self._eligible):
                return rows
            self._deepen(2 * self.scores.depth)

    def _deepen(self, depth: int) -> None:
        deeper = self.index.deepened(self.scores, depth, mode=self.fusion.mode)
        if deeper is not self.scores:
            self._consider(deeper)
            self._take_out(self.blocked)

    def _consider(self, scores: ChannelScores) -> None:
        if scores is not self.scores:
            self.scores, self._best_hits = scores, None

    def _shuffled(self, shuffle: Rows) -> Rows:
        here = np.zeros(len(self.index), dtype=np.bool_)
        here[self._eligible] = True
        return self._unblocked(shuffle[here[shuffle]])

    def _unblocked(self, rows: Rows) -> Rows:
        return rows[~np.isin(rows, list(self.blocked))] if self.blocked else rows

    def _look_at(self, rows: Rows) -> bool:
        """Takes out those of the rows that are blocked; whether there were any."""
        if self.check is None:
            return False
        known = self._cleared | self.blocked.keys()
        new = np.array([row for row in rows.tolist() if row not in known], dtype=np.int64)
        reasons = {row: reason for row, reason in zip(new.tolist(), self.check(new), strict=True) if reason is not None}
        self._cleared.update(set(new.tolist()) - set(reasons))
        self.blocked.update(reasons)
        self._take_out(reasons)
        return bool(reasons)

    def _take_out(self, blocked: Mapping[int, str]) -> None:
        """Leaves blocked rows out of what the others are compared to, unless it is ranks that count."""
        if blocked and self.fusion.rule != "rrf":
            keep = np.ones(len(self.index), dtype=np.bool_)
            keep[list(blocked)] = False
            self._consider(self.scores.restricted(keep))
