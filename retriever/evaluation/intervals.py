"""Confidence intervals of means by the bootstrap, paired: every column is resampled by the same queries.

Percentile intervals (Efron 1979), their tails widened for small samples as the t-distribution widens those of the
normal (Hesterberg 2015, "What Teachers Should Know About the Bootstrap"). The resamples are seeded, and the sums are in
one order, so that the same numbers give the same interval, whatever the number of threads. A column of equal values has
an interval without width: the sample holds nothing that says otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from retriever.errors import InvalidInput

_BLOCK = 1 << 22
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Interval:
    """Where a mean lies, as far as a sample of queries can tell.

    Attributes:
        low: Its lower end.
        high: Its upper end.
    """

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether the value is in it; sums of floats may miss an end by their rounding."""
        return self.low - _ROUNDING <= value <= self.high + _ROUNDING


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are worked out.

    Attributes:
        resamples: How many resamples, at least 100.
        level: The share of such intervals that cover the truth, over 0 and under 1.
        seed: Of the resamples.

    Raises:
        InvalidInput: A value is not one of those.
    """

    resamples: int = 10_000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 100:
            raise InvalidInput(f"resamples = {self.resamples}", expected="100 or more")
        if not 0 < self.level < 1:
            raise InvalidInput(f"level = {self.level}", expected="a number between 0 and 1, such as 0.95")
        if self.seed < 0:
            raise InvalidInput(f"seed = {self.seed}", expected="0 or more")


def intervals(columns: NDArray[np.float64], settings: Bootstrap) -> list[Interval | None]:
    """The interval of the mean of each column.

    Args:
        columns: A row for each query, float64, shape (queries, columns).
        settings: How many resamples, and of which level.

    Returns:
        One for each column; None for fewer than two queries, which say nothing of how queries differ.
    """
    queries, count = columns.shape
    if queries < 2:
        return [None] * count
    means = _resampled_means(np.ascontiguousarray(columns.T), settings)
    tail = _tail(queries, settings.level)
    low, high = np.quantile(means, [tail, 1 - tail], axis=1)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _tail(queries: int, level: float) -> float:
    """The share of the resampled means beyond either end: Φ(−√(n/(n−1)) t), t being that of the level and n−1."""
    from scipy.special import stdtrit

    t = float(stdtrit(queries - 1, (1 + level) / 2))
    return NormalDist().cdf(-math.sqrt(queries / (queries - 1)) * t)


def _resampled_means(rows: NDArray[np.float64], settings: Bootstrap) -> NDArray[np.float64]:
    """The mean of each row over each resample of its columns.

    Args:
        rows: Shape (rows, queries).
        settings: How many resamples.

    Returns:
        Shape (rows, resamples).
    """
    queries = rows.shape[1]
    # The raw stream, which NumPy guarantees; the methods of a Generator may change between its versions.
    stream = np.random.PCG64(settings.seed)
    means = np.empty((len(rows), settings.resamples))
    block = max(1, _BLOCK // queries)
    for start in range(0, settings.resamples, block):
        size = min(block, settings.resamples - start)
        # The upper 32 bits of each number, scaled to the queries: uneven by less than one part in a million.
        raw = stream.random_raw(size * queries) >> np.uint64(32)
        drawn = ((raw * np.uint64(queries)) >> np.uint64(32)).astype(np.int64)
        drawn += np.repeat(np.arange(size) * queries, queries)
        counts = np.bincount(drawn, minlength=size * queries).astype(np.float64).reshape(size, queries)
        for number, row in enumerate(rows):
            # einsum adds in one order; a matrix product splits the sum by the number of threads.
            means[number, start : start + size] = np.einsum("bn,n->b", counts, row) / queries
    return means
