"""Query variance: pick what leaves least doubt about the query (SIFT, Hübotter et al. 2024; KITE is of the family).

A Gaussian process with the kernel "cosine" and observation noise is asked for its value at the query. Each pick is an
observation; the next one is that which lowers the variance at the query most. With c the covariance of a candidate
with the query and v its variance, both given the picks so far, the gain is

    c² / (v + noise)

so a candidate must be like the query in a way that the picks are not yet. Opposites count as much as likes: they tell
as much. c and v follow by one row of the Cholesky factor per pick, O(m · k²) after O(m · k · d) for the kernel rows.
Selection is eager: marginal gains may rise, so a lazy queue would not be exact. Repeats are not allowed, other than in
the paper: a demonstration shown twice tells a language model nothing new.

The variance that remains after each pick, from 1 down, is a measure of confidence, and can end the selection early.

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
from retriever.ranking.strategies.picks import Picks, Reals, check_k, check_range, first_best, picks


@dataclass(frozen=True)
class Sifted(Picks):
    """Picks and what they leave open.

    Attributes:
        remaining: The variance at the query after each pick, float64, shape (picks,): its squared length, 1 for a unit
            vector, less the gains so far.
    """

    remaining: Reals


@dataclass(frozen=True)
class Stop:
    """When to stop before k.

    Attributes:
        alpha: The i-th pick, from 1, is kept only if the standard deviation it leaves is at most 1 / (alpha · i), the
            stopping rule of SIFT; None for no such rule. The larger, the sooner it stops.
        drop: A pick is kept only if it lowers the remaining variance by at least this share of it, 0 to 1.
        least: So many are picked whatever the rules say, as far as there are candidates.

    Raises:
        InvalidInput: A value out of range.
    """

    alpha: float | None = None
    drop: float = 0.0
    least: int = 1

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0.0 < self.alpha < np.inf:
            raise InvalidInput(f"alpha = {self.alpha}", expected="a number above 0, or none")
        check_range("drop", self.drop, 0.0, 1.0)
        if self.least < 0:
            raise InvalidInput(f"least = {self.least}", expected="0 or more")

    def now(self, step: int, before: float, gain: float) -> bool:
        """Whether the pick of this step, counted from 1, is one too many."""
        if step <= self.least:
            return False
        doubtful = self.alpha is not None and np.sqrt(max(before - gain, 0.0)) > 1.0 / (self.alpha * step)
        return bool(doubtful or gain < self.drop * before)


ALL = Stop()
"""No early stop: all min(k, m)."""


def sift(
    query: NDArray[np.float32], vectors: NDArray[np.float32], k: int, *, noise: float = 0.1, stop: Stop = ALL
) -> Sifted:
    """Picks that together tell most about the query.

    Args:
        query: A unit or zero vector, shape (d,). At a zero vector nothing can be gained: the first k are taken.
        vectors: Unit or zero vectors, shape (m, d).
        k: How many, at most.
        noise: Variance of an observation, above 0. The smaller, the less a near copy of a pick is worth: an exact one
            is worth noise / (2 + noise) of the first. The authors take .01; .1 to 1 suits short texts.
        stop: When to stop before k.

    Returns:
        The picks. A gain is the value above: by how much the variance at the query fell. `against` is the pick that
        explains most of the candidate's own variance, the earlier of equals.

    Raises:
        InvalidInput: A shape, vector or setting that cannot be used.
    """
    check_k(k)
    if not 0.0 < noise < np.inf:
        raise InvalidInput(f"noise = {noise}", expected="a number above 0")
    if query.shape != vectors.shape[1:]:
        raise InvalidInput(f"query of shape {query.shape}", expected=f"{vectors.shape[1:]}")
    grid, squares = exact_vectors(vectors)
    (target,), (open_variance,) = exact_vectors(query[None])
    conditioned, gains = _greedy(grid, squares, target, min(k, len(grid)), noise, stop, float(open_variance))
    against = [conditioned.rival(place, step) for step, place in enumerate(conditioned.places)]
    chosen = picks(conditioned.places, gains, against)
    return Sifted(chosen.places, chosen.gains, chosen.against, open_variance - np.cumsum(chosen.gains))


def _greedy(
    grid: Reals, variance: Reals, target: Reals, count: int, noise: float, stop: Stop, remaining: float
) -> tuple[Conditioned, list[float]]:
    """The picks and their gains, from exact vectors, their squared lengths, the query and its squared length."""
    conditioned = Conditioned(count, len(grid))
    gains: list[float] = []
    covariance = grid @ target
    for step in range(count):
        gain = covariance * covariance / (variance + noise)
        gain[conditioned.places] = -np.inf
        place = first_best(gain)
        gained = float(gain[place])
        if stop.now(step + 1, remaining, gained):
            break
        pivot = float(variance[place]) + noise
        row = conditioned.add(place, grid @ grid[place], pivot)
        covariance = covariance - row * (covariance[place] / np.sqrt(pivot))
        variance = np.maximum(variance - row * row, 0.0)
        gains.append(gained)
        remaining -= gained
    return conditioned, gains


@dataclass(frozen=True)
class SiftOptions(Stop):
    """See `sift` and `Stop`.

    Attributes:
        noise: Variance of an observation.
    """

    noise: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.noise < np.inf:
            raise InvalidInput(f"noise = {self.noise}", expected="a number above 0")


def _pick(candidates: Candidates, k: int, options: SiftOptions) -> Sifted:
    return sift(candidates.reader.query_vector, candidates.vectors, k, noise=options.noise, stop=options)


SIFT = Strategy(pick=_pick, options=SiftOptions, ranked=False)
