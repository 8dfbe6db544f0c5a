"""A seeded sample without replacement, drawn anew for each query: the baseline of every paper."""

from __future__ import annotations

from retriever.ranking.strategies.base import Strategy
from retriever.ranking.strategies.top import first

RANDOM = Strategy(pick=first, depth=lambda k: k, shuffled=True)
