"""What both channels are asked, what they say, and what comes of it: what `HybridIndex` takes and gives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.errors import InvalidInput

Rows: TypeAlias = NDArray[np.int64]
Scores: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
Places: TypeAlias = NDArray[np.int64]

MODES = ("hybrid", "dense", "lexical")
RULES = ("convex", "rrf")


@dataclass(frozen=True)
class Query:
    """One query in the form the channels take.

    Attributes:
        vector: A unit vector, float32, shape (dim,); all zero when the query has no direction.
        terms: The query's terms, repeats included.
    """

    vector: NDArray[np.float32]
    terms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fusion:
    """How the channels are combined.

    Attributes:
        mode: `hybrid`, `dense` or `lexical`. A single channel that is silent (a query without direction, or of unknown
            terms only) gives way to the other one.
        weight: Share of the dense channel in `hybrid`, from 0 to 1.
        rule: `convex` (normalised scores) or `rrf` (reciprocal ranks).
        rrf_k: The constant of `rrf`.
    """

    mode: str = "hybrid"
    weight: float = 0.5
    rule: str = "convex"
    rrf_k: int = 60

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InvalidInput(f"mode {self.mode!r}", expected=f"one of {', '.join(MODES)}")
        if self.rule not in RULES:
            raise InvalidInput(f"fusion rule {self.rule!r}", expected=f"one of {', '.join(RULES)}")
        if not 0 <= self.weight <= 1:
            raise InvalidInput(f"fusion weight {self.weight}", expected="a number from 0 to 1")
        if self.rrf_k < 1:
            raise InvalidInput(f"rrf_k {self.rrf_k}", expected="a whole number of at least 1")


class Leader(NamedTuple):
    """What the other scores of a channel are compared to.

    Attributes:
        row: The best row, the first of those that tie; None where the channel is silent or there is no row.
        score: Its exact score; the least that the channel can give where there is none.
    """

    row: int | None
    score: float


@dataclass(frozen=True)
class ChannelScores:
    """What both channels say of the rows under consideration, before fusion.

    A fused score is relative to the channels' maxima, or to ranks, among these rows: of all that are eligible where
    search is exact; else of what is proposed and what has been added since. More rows raise a maximum only where one of
    them is nearer than all that FAISS found.

    Attributes:
        query: The query they were asked.
        eligible: Ascending numbers of all rows that may be returned, int64; `restricted` leaves them as they are.
        depth: How many of the best each channel was asked for; where it is all of the eligible ones, as it is where
            search is exact, all of them are scored.
        rows: Ascending row numbers, int64, shape (m,); all of them eligible.
        dense: Inner products within `DenseIndex.bound` of the exact ones, float32, shape (m,).
        lexical: BM25 scores, float64, shape (m,).
        dense_speaks: Whether the query has a direction; if not, `dense` is `NO_DIRECTION` everywhere.
        lexical_speaks: Whether any term of the query is known; if not, `lexical` is 0 everywhere.
        leaders: The leader of each channel, kept here by `HybridIndex` once it has been asked for.
        by_ranks: The fused scores under reciprocal ranks, float64, shape (m,), kept in the same way.
    """

    query: Query
    eligible: Rows
    depth: int
    rows: Rows
    dense: NDArray[np.float32]
    lexical: Scores
    dense_speaks: bool
    lexical_speaks: bool
    leaders: dict[str, Leader] = field(default_factory=dict, init=False, repr=False, compare=False)
    by_ranks: dict[Fusion, Scores] = field(default_factory=dict, init=False, repr=False, compare=False)

    def restricted(self, keep: Mask) -> ChannelScores:
        """The same for the rows where `keep`, of shape (index rows,), is true."""
        here = keep[self.rows]
        return replace(self, rows=self.rows[here], dense=self.dense[here], lexical=self.lexical[here])

    def mode(self, fusion: Fusion) -> str:
        """What decides the order: `hybrid`, `dense`, `lexical`, or `none` when both channels are silent."""
        if not self.lexical_speaks:
            return "dense" if self.dense_speaks else "none"
        if not self.dense_speaks:
            return "lexical"
        if fusion.mode == "hybrid" and fusion.weight in (0.0, 1.0) and fusion.rule == "convex":
            # Normalising could round two different scores to one; the channel's own order is exact.
            return "dense" if fusion.weight else "lexical"
        return fusion.mode


@dataclass(frozen=True)
class Hits:
    """Rows in order, best first, with their exact scores.

    Attributes:
        rows: Row numbers, int64, shape (k,).
        fused: What they are ordered by, float64, shape (k,).
        dense: Cosines, float64, shape (k,); NaN when that channel was silent or not asked.
        lexical: BM25 scores, float64, shape (k,); NaN when that channel was silent or not asked.
    """

    rows: Rows
    fused: Scores
    dense: Scores
    lexical: Scores

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Places) -> Hits:
        """Some of them, by their places."""
        return Hits(self.rows[places], self.fused[places], self.dense[places], self.lexical[places])
