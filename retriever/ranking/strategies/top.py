"""The k most relevant (kNN selection; KATE, Liu et al. 2021)."""

from __future__ import annotations

from retriever.ranking.strategies.base import Candidates, NoOptions, Strategy
from retriever.ranking.strategies.picks import NONE, Picks, picks


def first(candidates: Candidates, k: int, options: NoOptions) -> Picks:
    """The first k candidates, in their order; a gain is the relevance."""
    count = min(k, len(candidates))
    return picks(range(count), candidates.relevance[:count].tolist(), [NONE] * count)


TOP = Strategy(pick=first, depth=lambda k, candidates, options: k)
