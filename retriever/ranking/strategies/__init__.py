"""Selection strategies, one file each. Adding one is adding a file and a line here, or an entry point elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType

from retriever.errors import InvalidInput
from retriever.ranking.strategies.balanced import BALANCED
from retriever.ranking.strategies.base import Strategy
from retriever.ranking.strategies.cluster import CLUSTER
from retriever.ranking.strategies.complexity import COMPLEXITY
from retriever.ranking.strategies.coverage import COVERAGE
from retriever.ranking.strategies.dpp import DPP
from retriever.ranking.strategies.fixed import FIXED
from retriever.ranking.strategies.mmr import MMR
from retriever.ranking.strategies.random import RANDOM
from retriever.ranking.strategies.sift import SIFT
from retriever.ranking.strategies.top import TOP

__all__ = ["STRATEGIES", "Strategy", "strategy", "strategy_names"]

STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        "top": TOP,
        "random": RANDOM,
        "fixed": FIXED,
        "mmr": MMR,
        "dpp": DPP,
        "sift": SIFT,
        "coverage": COVERAGE,
        "balanced": BALANCED,
        "cluster": CLUSTER,
        "complexity": COMPLEXITY,
    }
)
"""The strategies of this package, by the name that a recipe gives them."""

_GROUP = "retriever.strategies"


@cache
def strategy_names() -> tuple[str, ...]:
    """The names of all strategies, those of other packages after our own."""
    others = sorted({point.name for point in entry_points(group=_GROUP)} - STRATEGIES.keys())
    return (*STRATEGIES, *others)


@cache
def strategy(name: str) -> Strategy:
    """A strategy by its name; one of our own cannot be replaced.

    Raises:
        InvalidInput: There is none of that name, or what another package has registered is no `Strategy`.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    for point in entry_points(group=_GROUP, name=name):
        found = point.load()
        if not isinstance(found, Strategy):
            raise InvalidInput(f"entry point {point.value} of the strategy {name!r}", expected="a Strategy")
        return found
    raise InvalidInput(f"strategy {name!r}", expected=f"one of {', '.join(strategy_names())}")
