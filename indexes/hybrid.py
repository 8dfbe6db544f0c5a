"""HybridIndex: both channels, one answer.

Where dense search is exact, both channels score every row, so there are no missing scores and no candidate cut to
distort the normalisation. Where a FAISS index proposes, its rows and the best lexical rows are candidates, and both
channels score each of them. Whoever wants more of the eligible rows asks for them: the next best by `deepened`, given
ones by `extended`. The order is total: by descending fused score, then ascending row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from indexes.ann import PROPOSALS
from indexes.channels import ChannelScores, Fusion, Hits, Leader, Mask, Places, Query, Rows, Scores
from indexes.dense import NO_DIRECTION, DenseIndex
from indexes.errors import InvalidInput
from indexes.fusion import BM25_INFIMUM, COSINE_INFIMUM, convex, reciprocal_rank, theoretical_min_max
from indexes.lexical import LexicalIndex
from indexes.topk import possible, top

_LEXICAL_BYTES = 16 << 20
"""Of the lexical scores that are held at once: they stay in a processor's cache until they are ranked."""

_ROUNDING = 2.0**-22
"""How far float32 arithmetic takes a fused score off, for each unit of what its parts may amount to.

Each part is rounded as a number, by its factor and by their product, and the sum once more: 4 · 2⁻²⁴. What float64
arithmetic does to scores that are equal on paper is less than a millionth of it.
"""


class HybridIndex:
    """A dense and a lexical index over the same rows.

    Args:
        dense: Unit vectors.
        lexical: BM25.
        alive: Rows that are not removed, bool, shape (rows,); None when all are.

    Raises:
        InvalidInput: The two do not have the same number of rows.
    """

    def __init__(self, dense: DenseIndex, lexical: LexicalIndex, alive: Mask | None = None) -> None:
        if len(dense) != len(lexical):
            raise InvalidInput(f"{len(dense)} vectors and {len(lexical)} documents", expected="as many as the other")
        self.dense = dense
        self.lexical = lexical
        self.alive = alive
        self._bound = dense.bound
        self._rows: Rows = np.arange(len(lexical))
        self._rows.setflags(write=False)

    def __len__(self) -> int:
        """Rows, removed ones included."""
        return len(self.lexical)

    def score(
        self, queries: Sequence[Query], eligible: Sequence[Mask | None] | None = None, *, mode: str = "hybrid"
    ) -> Iterator[ChannelScores]:
        """What both channels say, for a block of queries at once, handed out one after the other.

        Args:
            queries: The queries; beside what is handed out, the memory used is queries × rows × 4 bytes, and a few
                megabytes.
            eligible: For each query the rows that may be returned, bool, shape (rows,); None when all may.
            mode: Of the fusion that is to rank them. Where a FAISS index proposes, and it is `dense`, the lexical
                channel proposes nothing, and scores what is proposed alone.

        Raises:
            InvalidInput: A query's vector has another dimension than the index, or is not finite.
        """
        masks = [self._with_alive(mask) for mask in (eligible or [None] * len(queries))]
        vectors = self._stacked(queries)
        if self.dense.ann is not None:
            return map(self._score_proposed, queries, masks, repeat(mode))
        return self._score_in_turn(queries, vectors, masks)

    def _score_in_turn(
        self, queries: Sequence[Query], vectors: NDArray[np.float32], masks: Sequence[Mask | None]
    ) -> Iterator[ChannelScores]:
        """One matrix product for all; lexical scores, which are twice as large, for a few queries at a time."""
        dense = self.dense.scores(vectors)
        some = max(1, _LEXICAL_BYTES // (8 * max(1, len(self))))
        for start in range(0, len(queries), some):
            lexical = self.lexical.block([query.terms for query in queries[start : start + some]])
            for i, of_query in enumerate(lexical, start=start):
                yield self._score_all(queries[i], dense[i], of_query, masks[i])

    def _with_alive(self, mask: Mask | None) -> Mask | None:
        if self.alive is None or mask is None:
            return mask if self.alive is None else self.alive
        return mask & self.alive

    def _stacked(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        for query in queries:
            if query.vector.shape != (self.dense.dim,) or not np.isfinite(query.vector).all():
                raise InvalidInput(
                    f"a query vector of shape {query.vector.shape}",
                    expected=f"{self.dense.dim} finite numbers, as the index was built with",
                )
        return np.array([query.vector for query in queries], dtype=np.float32).reshape(len(queries), self.dense.dim)

    def _score_all(
        self, query: Query, dense: NDArray[np.float32], lexical: Scores, eligible: Mask | None
    ) -> ChannelScores:
        directed, known = bool(query.vector.any()), self.lexical.knows(query.terms)
        if not directed:
            dense.fill(NO_DIRECTION)
        rows = self._rows
        if eligible is not None:
            rows, dense, lexical = rows[eligible], dense[eligible], lexical[eligible]
        return ChannelScores(query, rows, len(rows), rows, dense, lexical, directed, known)

    def _score_proposed(self, query: Query, eligible: Mask | None, mode: str) -> ChannelScores:
        """What both channels say of the rows that FAISS or the lexical channel propose."""
        allowed = self._rows if eligible is None else np.flatnonzero(eligible)
        depth = min(PROPOSALS, len(allowed))
        directed, known = bool(query.vector.any()), self.lexical.knows(query.terms)
        rows, everything = self._propose(query, allowed, eligible, depth, mode)
        lexical = self.lexical.scores_of(rows, query.terms) if everything is None else everything[rows]
        dense = self.dense.scores_of(rows, query.vector)
        return ChannelScores(query, allowed, depth, rows, dense, lexical, directed, known)

    def _propose(
        self, query: Query, allowed: Rows, eligible: Mask | None, depth: int, mode: str
    ) -> tuple[Rows, Scores | None]:
        """About the best `depth` rows of each channel, ascending; the lexical scores of all, where they were needed."""
        proposed = self.dense.propose(query.vector, depth, eligible) if query.vector.any() else allowed[:0]
        if mode == "dense" and len(proposed):
            return proposed, None
        everything = self.lexical.scores(query.terms)
        if self.lexical.knows(query.terms):
            proposed = np.union1d(proposed, allowed[top(allowed, everything[allowed], depth)])
        return (proposed if len(proposed) else allowed), everything

    def deepened(self, scores: ChannelScores, depth: int, *, mode: str) -> ChannelScores:
        """The same with what each channel proposes when it is asked for `depth` rows, of the eligible ones.

        Where that is all of them, all are under consideration, those included that `restricted` has taken out.

        Args:
            scores: What `score` gave for the query.
            depth: How many; no more than before changes nothing.
            mode: As for `score`.
        """
        depth = min(depth, len(scores.eligible))
        if depth <= scores.depth:
            return scores
        mask = None
        if len(scores.eligible) < len(self):
            mask = np.zeros(len(self), dtype=np.bool_)
            mask[scores.eligible] = True
        rows, _ = self._propose(scores.query, scores.eligible, mask, depth, mode)
        return replace(self.extended(scores, rows), depth=depth)

    def extended(self, scores: ChannelScores, rows: Rows) -> ChannelScores:
        """The same with further rows, scored by both channels.

        Args:
            scores: What `score` gave for the query.
            rows: Eligible rows, in any order, none that `restricted` has taken out; those that are under consideration
                already change nothing.
        """
        if scores.depth == len(scores.eligible):
            return scores
        places = np.searchsorted(scores.rows, rows)
        known = places < len(scores.rows)
        known[known] = scores.rows[places[known]] == rows[known]
        if known.all():
            return scores
        new = np.unique(rows[~known])
        at = np.searchsorted(scores.rows, new)
        return replace(
            scores,
            rows=np.insert(scores.rows, at, new),
            dense=np.insert(scores.dense, at, self.dense.scores_of(new, scores.query.vector)),
            lexical=np.insert(scores.lexical, at, self.lexical.scores_of(new, scores.query.terms)),
        )

    def rank(self, scores: ChannelScores, k: int, fusion: Fusion) -> Hits:
        """The k best rows under a fusion; fewer rows give fewer hits.

        Args:
            scores: What `score` gave for the query, perhaps restricted.
            k: How many.
            fusion: How the channels are combined.
        """
        mode = scores.mode(fusion)
        if mode == "dense" or (mode == "hybrid" and fusion.rule == "convex"):
            places = self._narrowed(scores, k, fusion, mode)
            cosines = self._cosines(scores, places)
            best = top(scores.rows[places], self._deciding(scores, places, cosines, fusion, mode), k)
            if mode == "dense" and len(best):
                scores.leaders["dense"] = Leader(int(scores.rows[places[best[0]]]), float(cosines[best[0]]))
            return self._hits(scores, places[best], cosines[best], fusion, mode)
        if mode == "none":
            places = np.arange(min(k, len(scores.rows)))
        else:
            exact = scores.lexical if mode == "lexical" else self._reciprocal_ranks(scores, fusion)
            places = top(scores.rows, exact, k)
        return self._hits(scores, places, self._cosines(scores, places), fusion, mode)

    def describe(self, scores: ChannelScores, rows: Rows, fusion: Fusion) -> Hits:
        """The scores of given rows, in the given order, as `rank` would give them.

        Args:
            scores: What `score` gave for the query; all of `rows` are among its rows.
            rows: Row numbers, int64, shape (k,).
            fusion: How the channels are combined.
        """
        places = np.searchsorted(scores.rows, rows)
        return self._hits(scores, places, self._cosines(scores, places), fusion, scores.mode(fusion))

    def _cosines(self, scores: ChannelScores, places: Places) -> Scores:
        """The exact scores of the dense channel at some places; NaN where it is silent."""
        if not scores.dense_speaks:
            return np.full(len(places), np.nan)
        return self.dense.exact(scores.rows[places], scores.query.vector)

    def _narrowed(self, scores: ChannelScores, k: int, fusion: Fusion, mode: str) -> Places:
        """The places that can be among the k best, judged by approximate dense scores and their error bound."""
        if mode == "dense":
            return possible(scores.dense, k, self._bound)
        dense, lexical = self._dense_leader(scores).score, _lexical_leader(scores).score
        largest = float(np.abs(scores.lexical).max(initial=0.0)) if self.lexical.settings.signed else lexical
        approximate, error = _convex_but_for_a_constant(scores, dense, lexical, largest, fusion, self._bound)
        return possible(approximate, k, error)

    def _deciding(self, scores: ChannelScores, places: Places, cosines: Scores, fusion: Fusion, mode: str) -> Scores:
        """The exact scores that a mode orders by, at some places whose exact cosines are known."""
        if mode == "lexical":
            return scores.lexical[places]
        if mode == "none":
            return np.zeros(len(places))
        if mode == "dense":
            return cosines
        if fusion.rule == "rrf":
            return self._reciprocal_ranks(scores, fusion)[places]
        maxima = self._dense_leader(scores).score, _lexical_leader(scores).score
        return _convex(cosines, scores.lexical[places], *maxima, fusion)

    def _reciprocal_ranks(self, scores: ChannelScores, fusion: Fusion) -> Scores:
        """The fused score of every row under reciprocal ranks, for which every row has to be looked at; kept."""
        if fusion not in scores.by_ranks:
            dense = self.dense.exact(scores.rows, scores.query.vector)
            ranks = _ranks(dense, scores.dense_speaks), _ranks(scores.lexical, scores.lexical_speaks)
            scores.by_ranks[fusion] = reciprocal_rank(*ranks, fusion.weight, fusion.rrf_k)
        return scores.by_ranks[fusion]

    def leaders(self, scores: ChannelScores) -> Rows:
        """The rows that set the maxima of the channels that speak; int64, at most two.

        Args:
            scores: What `score` gave for the query, perhaps restricted.
        """
        leaders = self._dense_leader(scores), _lexical_leader(scores)
        return np.array(sorted({one.row for one in leaders if one.row is not None}), dtype=np.int64)

    def _dense_leader(self, scores: ChannelScores) -> Leader:
        """The best row of the dense channel among those under consideration; worked out once."""
        if "dense" not in scores.leaders:
            leader = Leader(None, COSINE_INFIMUM)
            if scores.dense_speaks and len(scores.rows):
                rows = scores.rows[possible(scores.dense, 1, self._bound)]
                exact = self.dense.exact(rows, scores.query.vector)
                best = int(exact.argmax())
                leader = Leader(int(rows[best]), float(exact[best]))
            scores.leaders["dense"] = leader
        return scores.leaders["dense"]

    def _hits(self, scores: ChannelScores, places: Places, cosines: Scores, fusion: Fusion, mode: str) -> Hits:
        if fusion.mode == "hybrid" and mode != "none":
            mode = "hybrid"  # a silent channel or a weight of 0 or 1 changes the order, not the scale that is reported
        return Hits(
            scores.rows[places],
            self._deciding(scores, places, self._or_no_direction(cosines), fusion, mode),
            cosines,
            scores.lexical[places] if scores.lexical_speaks else np.full(len(places), np.nan),
        )

    @staticmethod
    def _or_no_direction(cosines: Scores) -> Scores:
        """The cosines as they count: those of a silent channel are `NO_DIRECTION`."""
        return np.where(np.isnan(cosines), NO_DIRECTION, cosines)


def _convex(dense: Scores, lexical: Scores, dense_maximum: float, lexical_maximum: float, fusion: Fusion) -> Scores:
    return convex(
        theoretical_min_max(dense, COSINE_INFIMUM, dense_maximum),
        theoretical_min_max(lexical, BM25_INFIMUM, lexical_maximum),
        fusion.weight,
    )


def _convex_but_for_a_constant(
    scores: ChannelScores, dense_maximum: float, lexical_maximum: float, largest: float, fusion: Fusion, bound: float
) -> tuple[NDArray[np.float32], float]:
    """`_convex` of every row less what is the same for all, as float32, and how far that can be off.

    Memory is what it costs: half as many bytes are half the time.

    Args:
        scores: What is fused.
        dense_maximum: Of the exact scores, as is the one that follows.
        lexical_maximum: Of the lexical channel.
        largest: What no lexical score is farther from 0 than.
        fusion: The weight is used.
        bound: How far the dense scores can be off.
    """
    dense_range, lexical_range = dense_maximum - COSINE_INFIMUM, lexical_maximum - BM25_INFIMUM
    lexical_factor = (1.0 - fusion.weight) / lexical_range if lexical_range > 0 else 0.0
    dense_factor = fusion.weight / dense_range if dense_range > 0 else 0.0
    fused = scores.lexical.astype(np.float32)
    fused *= np.float32(lexical_factor)
    fused += scores.dense * np.float32(dense_factor)
    parts = largest * lexical_factor + 2.0 * dense_factor
    return fused, bound * dense_factor + _ROUNDING * parts


def _lexical_leader(scores: ChannelScores) -> Leader:
    """The best row of the lexical channel among those under consideration; worked out once."""
    if "lexical" not in scores.leaders:
        leader = Leader(None, BM25_INFIMUM)
        if scores.lexical_speaks and len(scores.rows):
            best = int(scores.lexical.argmax())
            leader = Leader(int(scores.rows[best]), float(scores.lexical[best]))
        scores.leaders["lexical"] = leader
    return scores.leaders["lexical"]


def _ranks(scores: Scores, speaks: bool) -> NDArray[np.int64]:
    """Ranks from 1 by descending score; ties in row order. A silent channel ranks every row last."""
    if not speaks:
        return np.full(len(scores), len(scores), dtype=np.int64)
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return ranks
