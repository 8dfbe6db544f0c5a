"""Selection strategies, one file each. Adding one is adding a file and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from retriever.ranking.strategies.base import Strategy
from retriever.ranking.strategies.fixed import FIXED
from retriever.ranking.strategies.random import RANDOM
from retriever.ranking.strategies.top import TOP

__all__ = ["STRATEGIES", "Strategy"]

STRATEGIES: Mapping[str, Strategy] = MappingProxyType({"top": TOP, "random": RANDOM, "fixed": FIXED})
"""The strategies by the name a recipe gives them."""
