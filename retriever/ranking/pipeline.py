"""The ranker: retrieve → guard → select, over one query's channel scores.

The guard acts before the cut, so that k is still filled, and before the scores are normalised, so that a copy of the
query does not set the scale for the others. It only looks at rows that could be chosen or that set a channel's maximum,
and asks again until none of those is blocked; rows below the cut change nothing and are not looked at. Under reciprocal
rank fusion, where every row above another counts, ranks are those before the guard: a blocked row keeps its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.hybrid import ChannelScores, Fusion, Hits, HybridIndex
from retriever.ranking.recipe import Recipe
from retriever.ranking.seeding import permutation
from retriever.ranking.strategies import STRATEGIES
from retriever.ranking.strategies.base import Candidates

Rows: TypeAlias = NDArray[np.int64]
Check: TypeAlias = Callable[[Rows], Sequence[str | None]]
"""From row numbers to why each must not be shown, None where it may."""


@dataclass(frozen=True)
class Ranked:
    """What the ranker chose, best first.

    Attributes:
        hits: The rows and their scores.
        fixed: How many of the first rows the recipe named.
        blocked: What the guard left out, by row, with the reason.
    """

    hits: Hits
    fixed: int
    blocked: dict[int, str]


def rank(
    index: HybridIndex,
    scores: ChannelScores,
    recipe: Recipe,
    *,
    fusion: Fusion,
    fixed: Rows,
    check: Check | None,
    query_id: str,
) -> Ranked:
    """Chooses up to k rows for one query.

    Args:
        index: The index that gave the scores.
        scores: Both channels' scores of the eligible rows.
        recipe: Its `select` section is used.
        fusion: How the channels are combined.
        fixed: Rows that come first, if they are eligible and pass the guard.
        check: The guard; None when it blocks nothing.
        query_id: Seeds what is random.
    """
    strategy = STRATEGIES[recipe.select.strategy]
    k, seed = recipe.select.k, recipe.select.seed
    shuffle = _shuffle(index, seed, query_id) if strategy.shuffled else None
    guarded = _Guarded(index, scores, fusion, check)
    leading = guarded.passing(fixed[np.isin(fixed, scores.rows)])[:k]
    rest = k - len(leading)
    # Fixed rows may be among the best; as many more candidates keep the strategy's view of the others whole.
    found = guarded.first(strategy.depth(rest) + len(leading) if rest else 0, shuffle)
    found = found[~np.isin(found, leading)][: strategy.depth(rest)]
    hits = index.describe(guarded.scores, found, fusion)
    chosen = strategy.pick(Candidates(hits.rows, hits.fused), rest)
    rows = np.concatenate([leading, found[chosen]])
    return Ranked(index.describe(guarded.scores, rows, fusion), len(leading), guarded.blocked)


def _shuffle(index: HybridIndex, seed: int, query_id: str) -> Rows:
    """The rows in a random order, which removed ones do not change."""
    rows = np.arange(len(index)) if index.alive is None else np.flatnonzero(index.alive)
    return rows[permutation(len(rows), seed, query_id, "select")]


class _Guarded:
    """The scores of one query with the rows that the guard blocks taken out as they are met."""

    def __init__(self, index: HybridIndex, scores: ChannelScores, fusion: Fusion, check: Check | None) -> None:
        self.index = index
        self.scores = scores
        self.fusion = fusion
        self.check = check
        self.blocked: dict[int, str] = {}
        self._cleared: set[int] = set()

    def passing(self, rows: Rows) -> Rows:
        """The rows among these that the guard lets pass."""
        self._look_at(rows)
        return self._unblocked(rows)

    def first(self, count: int, shuffle: Rows | None) -> Rows:
        """The first `count` rows that pass, by relevance or in a shuffled order of all rows."""
        while True:
            rows = self._shuffled(shuffle)[:count] if shuffle is not None else self._best(count)
            if self.check is None or not self._look_at(np.union1d(rows, self._leaders())):
                return rows

    def _best(self, count: int) -> Rows:
        rows = self.index.rank(self.scores, count + len(self.blocked), self.fusion).rows
        return self._unblocked(rows)[:count]

    def _shuffled(self, shuffle: Rows) -> Rows:
        here = np.zeros(len(self.index), dtype=np.bool_)
        here[self.scores.rows] = True
        return self._unblocked(shuffle[here[shuffle]])

    def _unblocked(self, rows: Rows) -> Rows:
        return rows[~np.isin(rows, list(self.blocked))] if self.blocked else rows

    def _leaders(self) -> Rows:
        """The rows that set the channels' maxima, to which the other scores are compared."""
        alone = [Fusion(mode="dense"), Fusion(mode="lexical")]
        return np.concatenate([self.index.rank(self.scores, 1, fusion).rows for fusion in alone])

    def _look_at(self, rows: Rows) -> bool:
        """Takes out those of the rows that are blocked; whether there were any."""
        if self.check is None:
            return False
        known = self._cleared | self.blocked.keys()
        new = np.array([row for row in rows.tolist() if row not in known], dtype=np.int64)
        reasons = {row: reason for row, reason in zip(new.tolist(), self.check(new), strict=True) if reason is not None}
        self._cleared.update(set(new.tolist()) - set(reasons))
        self.blocked.update(reasons)
        if reasons and self.fusion.rule != "rrf":
            keep = np.ones(len(self.index), dtype=np.bool_)
            keep[list(reasons)] = False
            self.scores = self.scores.restricted(keep)
        return bool(reasons)
