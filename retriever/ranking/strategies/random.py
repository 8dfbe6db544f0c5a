"""A seeded sample without replacement: the baseline of every paper.

Drawn anew for each query, or once for all of them (`static`). Stratified, each label gets its share of the pool, by
largest remainders (Hamilton's method), so that the sample has the pool's balance as nearly as k allows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from retriever.ranking.strategies.base import Candidates, Strategy
from retriever.ranking.strategies.picks import NONE, Picks, picks

_EVERYTHING = 2**62


@dataclass(frozen=True)
class RandomOptions:
    """How the sample is drawn.

    Attributes:
        static: Whether it is the same for every query.
        stratified: Whether each label gets its share. An example of several labels counts under the
            first by name.
    """

    static: bool = False
    stratified: bool = False


def sample(candidates: Candidates, k: int, options: RandomOptions) -> Picks:
    """The first k of candidates that come in random order; stratified, the first of each label."""
    if not options.stratified:
        chosen = list(range(min(k, len(candidates))))
    else:
        strata = [min(labels, default="") for labels in candidates.labels]
        left = shares(Counter(strata), min(k, len(strata)))
        chosen = []
        for place, stratum in enumerate(strata):
            if left[stratum]:
                left[stratum] -= 1
                chosen.append(place)
    return picks(chosen, [0.0] * len(chosen), [NONE] * len(chosen))


def shares(sizes: Counter[str], k: int) -> Counter[str]:
    """How many of k each stratum gets: its exact share rounded down, and the rest to the largest remainders.

    Equal remainders go by name. k is at most the sum of the sizes.
    """
    total = sum(sizes.values())
    if not total:
        return Counter()
    given = Counter({name: size * k // total for name, size in sizes.items()})
    by_remainder = sorted(sizes, key=lambda name: (-(sizes[name] * k % total), name))
    given.update(by_remainder[: k - sum(given.values())])
    return given


def _depth(k: int, candidates: int, options: RandomOptions) -> int:
    return _EVERYTHING if options.stratified and k else k


RANDOM = Strategy(
    pick=sample,
    options=RandomOptions,
    depth=_depth,
    shuffled_by=lambda options, query_id: "" if options.static else query_id,
    blind=True,
)
