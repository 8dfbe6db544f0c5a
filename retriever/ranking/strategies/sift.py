"""Query variance: pick what leaves least doubt about the query (SIFT, Hübotter et al. 2024; KITE is of the family).

A Gaussian process with the kernel "cosine" and observation noise is asked for its value at the query. Each pick is an
observation; the next one is that which lowers the variance at the query most. With c the covariance of a candidate
with the query and v its variance, both given the picks so far, the gain is

    c² / (v + noise)

so a candidate must be like the query in a way that the picks are not yet. Opposites count as much as likes: they tell
as much. c and v follow by one row of the Cholesky factor per pick, O(m · k²) after O(m · k · d) for the kernel rows.
Selection is eager: marginal gains may rise, so a lazy queue would not be exact. Repeats are not allowed, other than in
the paper: a demonstration shown twice tells a language model nothing new.

The variance that is left open, from 1 down, is a measure of confidence. It can end the selection early, and `left_open`
tells it of any observations, whoever chose them.

The kernel is exact (see `exact`), its conditioning elementwise, so the picks do not depend on threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retriever.errors import InvalidInput
from retriever.ranking.strategies.base import Candidates, Reader, Strategy
from retriever.ranking.strategies.conditioning import Conditioned
from retriever.ranking.strategies.exact import exact_vectors
from retriever.ranking.strategies.picks import Integers, Picks, Reals, check_k, check_range, first_best, picks


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
) -> Picks:
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
    count = min(k, len(vectors))
    belief = _Belief(query, vectors, noise, count)
    gains: list[float] = []
    remaining = belief.variance
    for step in range(count):
        gain = belief.gains()
        gain[belief.places] = -np.inf
        place = first_best(gain)
        gained = float(gain[place])
        if stop.now(step + 1, remaining, gained):
            break
        belief.observe(place)
        gains.append(gained)
        remaining -= gained
    return picks(belief.places, gains, belief.rivals())


def left_open(query: NDArray[np.float32], vectors: NDArray[np.float32], *, noise: float = 0.1) -> Reals:
    """The variance at the query with nothing observed, and after each of some observations in their order.

    Args:
        query: As of `sift`.
        vectors: What is observed, unit or zero vectors, shape (n, d).
        noise: As of `sift`.

    Returns:
        Float64, shape (n + 1,): the query's squared length, 1 for a unit vector, then what each leaves of it.

    Raises:
        InvalidInput: As of `sift`.
    """
    belief = _Belief(query, vectors, noise, len(vectors))
    gains: list[float] = []
    for place in range(len(vectors)):
        gains.append(float(belief.gains()[place]))
        belief.observe(place)
    return belief.variance - np.cumsum([0.0, *gains])


class _Belief:
    """What is known of the query after some observations.

    Attributes:
        variance: That at the query with nothing observed.
        places: What was observed.
    """

    def __init__(self, query: NDArray[np.float32], vectors: NDArray[np.float32], noise: float, most: int) -> None:
        if not 0.0 < noise < np.inf:
            raise InvalidInput(f"noise = {noise}", expected="a number above 0")
        if query.shape != vectors.shape[1:]:
            raise InvalidInput(f"query of shape {query.shape}", expected=f"{vectors.shape[1:]}")
        self._grid, self._variances = exact_vectors(vectors)
        (target,), (variance,) = exact_vectors(query[None])
        self.variance = float(variance)
        self._covariances = self._grid @ target
        self._noise = noise
        self._conditioned = Conditioned(most, len(vectors))

    @property
    def places(self) -> list[int]:
        return self._conditioned.places

    def gains(self) -> Reals:
        """By how much the variance at the query would fall with each candidate."""
        gains: Reals = self._covariances * self._covariances / (self._variances + self._noise)
        return gains

    def observe(self, place: int) -> None:
        pivot = float(self._variances[place]) + self._noise
        row = self._conditioned.add(place, self._grid @ self._grid[place], pivot)
        self._covariances = self._covariances - row * (self._covariances[place] / np.sqrt(pivot))
        self._variances = np.maximum(self._variances - row * row, 0.0)

    def rivals(self) -> list[int]:
        """For each observation the earlier one that explains most of its own variance."""
        return [self._conditioned.rival(place, step) for step, place in enumerate(self.places)]


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


def _pick(candidates: Candidates, k: int, options: SiftOptions) -> Picks:
    return sift(candidates.reader.query_vector, candidates.vectors, k, noise=options.noise, stop=options)


def _left_open(reader: Reader, rows: Integers, options: SiftOptions) -> Reals:
    return left_open(reader.query_vector, reader.vectors(rows), noise=options.noise)


SIFT = Strategy(pick=_pick, options=SiftOptions, left_open=_left_open, ranked=False)
