"""Determinantal point process: greedy search for the set whose vectors span most, weighted by relevance.

The kernel is that of CEIL (Ye et al. 2023): with r = (1 + cosine to the query) / 2, K = (1 + cosine) / 2 and a scale,
L = W K W where W = diag(exp(r / (2 · scale))). Since det L_S = det K_S · Π exp(r / scale), the greedy step is

    log(variance of the candidate under K, given the picks) + r / scale

and the weights never have to be multiplied out: at a small scale they under- or overflow, their logarithms do not. The
conditional variances come from the incomplete Cholesky recursion of Chen, Zhang and Zhou 2018 ("Fast greedy MAP
inference", algorithm 1), O(m · k²) after O(m · k · d) for the kernel rows of the picks.

A candidate whose conditional variance is below 1e-10 adds nothing: it is a copy, or lies in the span of the picks. Once
no other is left, the rest is filled by relevance; those picks have gain −inf, the logarithm of a determinant of 0.

The kernel is exact (see `exact`), its conditioning elementwise, so the picks do not depend on threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retriever.errors import InvalidInput
from retriever.ranking.strategies.base import Candidates, Strategy
from retriever.ranking.strategies.conditioning import Conditioned
from retriever.ranking.strategies.exact import exact_vectors
from retriever.ranking.strategies.picks import (
    Picks,
    Reals,
    Scaling,
    by_relevance,
    check_relevance,
    first_best,
    picks,
    scaled,
)

LEAST_VARIANCE = 1e-10
"""Conditional variance from which a candidate adds to the span of the picks."""


def dpp(
    relevance: Reals, vectors: NDArray[np.float32], k: int, *, scale: float = 0.1, scaling: Scaling = "raw"
) -> Picks:
    """Picks that are relevant and together span much.

    Args:
        relevance: Shape (m,), float64; cosines to the query under `raw`.
        vectors: Unit or zero vectors, shape (m, d).
        k: How many, at most.
        scale: Above 0. The smaller, the more relevance counts; published values are .01, .05 and .1.
        scaling: `raw` takes r = (1 + relevance) / 2, `min-max` maps relevance to 0 … 1 over the candidates.

    Returns:
        The picks. A gain is the value above: how much log det L_S grew. `against` is the pick that explains most of
        the candidate's variance, the earlier of equals; none for the first.

    Raises:
        InvalidInput: A shape, vector or setting that cannot be used.
    """
    check_relevance(relevance, k, len(vectors))
    if not 0.0 < scale < np.inf:
        raise InvalidInput(f"scale = {scale}", expected="a number above 0")
    grid, squares = exact_vectors(vectors)
    value = (1.0 + relevance) / 2.0 if scaling == "raw" else scaled(relevance, scaling)
    conditioned, gains = _greedy(grid, squares, value / scale, min(k, len(grid)))
    places = conditioned.places
    rest = by_relevance(relevance, np.setdiff1d(np.arange(len(grid)), places))[: min(k, len(grid)) - len(places)]
    chosen = [*places, *rest.tolist()]
    against = [conditioned.rival(place, min(step, len(places))) for step, place in enumerate(chosen)]
    return picks(chosen, gains + [-np.inf] * len(rest), against)


def _greedy(grid: Reals, squares: Reals, value: Reals, count: int) -> tuple[Conditioned, list[float]]:
    """Up to `count` picks, as long as a candidate adds to their span, and their gains."""
    conditioned = Conditioned(count, len(grid))
    gains: list[float] = []
    variance = (1.0 + squares) / 2.0
    for _ in range(count):
        spanning = variance > LEAST_VARIANCE
        spanning[conditioned.places] = False
        if not spanning.any():
            break
        gain = np.log(variance, out=np.full(len(grid), -np.inf), where=spanning) + value
        place = first_best(gain)
        row = conditioned.add(place, (1.0 + grid @ grid[place]) / 2.0, float(variance[place]))
        variance -= row * row
        gains.append(float(gain[place]))
    return conditioned, gains


@dataclass(frozen=True)
class DppOptions:
    """See `dpp`.

    Attributes:
        scale: Above 0; the smaller, the more relevance counts.
        scaling: How relevance is brought to a scale: `raw` or `min-max`.
    """

    scale: float = 0.1
    scaling: Scaling = "raw"

    def __post_init__(self) -> None:
        if not 0.0 < self.scale < np.inf:
            raise InvalidInput(f"scale = {self.scale}", expected="a number above 0")


def _pick(candidates: Candidates, k: int, options: DppOptions) -> Picks:
    relevance, scaling = candidates.on_one_scale(options.scaling)
    return dpp(relevance, candidates.vectors, k, scale=options.scale, scaling=scaling)


DPP = Strategy(pick=_pick, options=DppOptions)
