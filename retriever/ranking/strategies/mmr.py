"""Maximal marginal relevance (Carbonell and Goldstein 1998; for demonstrations Ye et al. 2023).

The next pick is the candidate with the largest

    weight · relevance − (1 − weight) · largest cosine to a pick so far

and the first is the most relevant. Relevance and cosine must share a scale: give cosines to the query as they are
(`raw`; a weight of .5 to .7 works best), or any scores with `min-max` (.3 to .5 works best).

Only the rows of picked candidates are computed: O(m · k · d). They are exact (see `exact`), the rest is elementwise, so
the picks do not depend on threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retriever.ranking.strategies.base import Candidates, Strategy
from retriever.ranking.strategies.exact import exact_vectors
from retriever.ranking.strategies.picks import (
    NONE,
    Picks,
    Reals,
    Scaling,
    check_range,
    check_relevance,
    first_best,
    picks,
    scaled,
)


def mmr(
    relevance: Reals, vectors: NDArray[np.float32], k: int, *, weight: float = 0.5, scaling: Scaling = "raw"
) -> Picks:
    """Picks that are relevant and unlike each other.

    Args:
        relevance: Shape (m,), float64.
        vectors: Unit or zero vectors, shape (m, d). A zero vector is unlike everything.
        k: How many, at most.
        weight: The share of relevance, 0 to 1. At 1 the picks are the k most relevant; at 0, after the first, each is
            the one farthest from the picks.
        scaling: `raw` or `min-max`, for relevance.

    Returns:
        The picks. A gain is the value above, of the first weight · relevance. `against` is the pick with the largest
        cosine, the earlier of equals; none for the first, and none at weight 1.

    Raises:
        InvalidInput: A shape, vector or setting that cannot be used.
    """
    check_relevance(relevance, k, len(vectors))
    check_range("weight", weight, 0.0, 1.0)
    grid, _ = exact_vectors(vectors)
    value = scaled(relevance, scaling)
    places, gains, against = [], [], []
    likest = np.full(len(grid), -np.inf)
    rival = np.full(len(grid), NONE)
    relevant = weight * value
    picked = np.zeros(len(grid))  # infinite for those
    gain = value
    for _ in range(min(k, len(grid))):
        place = first_best(gain)
        places.append(place)
        gains.append(float(gain[place] if len(places) > 1 else relevant[place]))
        against.append(int(rival[place]) if weight < 1.0 else NONE)
        picked[place] = np.inf
        cosines = grid @ grid[place]
        liker = cosines > likest
        np.copyto(rival, place, where=liker)
        np.maximum(likest, cosines, out=likest)
        gain = relevant - (1.0 - weight) * likest
        gain -= picked
    return picks(places, gains, against)


@dataclass(frozen=True)
class MmrOptions:
    """See `mmr`.

    Attributes:
        weight: The share of relevance, 0 to 1; the rest is that of being unlike the picks.
        scaling: How relevance is brought to a scale: `raw` or `min-max`.
    """

    weight: float = 0.5
    scaling: Scaling = "raw"

    def __post_init__(self) -> None:
        check_range("weight", self.weight, 0.0, 1.0)


def _pick(candidates: Candidates, k: int, options: MmrOptions) -> Picks:
    relevance, scaling = candidates.on_one_scale(options.scaling)
    return mmr(relevance, candidates.vectors, k, weight=options.weight, scaling=scaling)


MMR = Strategy(pick=_pick, options=MmrOptions)
