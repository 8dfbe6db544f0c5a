"""The examples that a recipe names, and nothing beyond them."""

from __future__ import annotations

from dataclasses import dataclass

from retriever.ranking.strategies.base import Candidates, Strategy
from retriever.ranking.strategies.picks import NONE, Picks, picks


@dataclass(frozen=True)
class FixedOptions:
    """Which examples.

    Attributes:
        ids: Their ids, in the order in which they are taken. Those that the filters or the guard keep out are left out.
    """

    ids: tuple[str, ...] = ()


def named(candidates: Candidates, k: int, options: FixedOptions) -> Picks:
    """The first k of the candidates, which are the named examples in their order."""
    count = min(k, len(candidates))
    return picks(range(count), [0.0] * count, [NONE] * count)


FIXED = Strategy(pick=named, options=FixedOptions, depth=lambda k, candidates, options: k, blind=True, ranked=False)
