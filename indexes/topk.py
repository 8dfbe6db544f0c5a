"""The best of many scores, without sorting them, and often without looking at most of them twice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GROUP = 64


def kth_largest(scores: NDArray[np.floating], k: int) -> np.floating:
    """The k-th largest of some scores, repeats counted.

    Where k is small beside their number, they are split into groups, and the k-th largest of the groups' maxima is a
    bound that at least k scores reach. The answer is among these, which are few.

    Args:
        scores: Shape (n,), no NaN.
        k: From 1 to n.
    """
    groups = len(scores) // _GROUP
    if k < groups:
        # Group i is every score whose place is i modulo their number: maxima of whole rows are fast.
        maxima = scores[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
        scores = scores[scores >= _kth(maxima, k)]
    return _kth(scores, k)


def _kth(scores: NDArray[np.floating], k: int) -> np.floating:
    largest: np.floating = scores.max() if k == 1 else np.partition(scores, len(scores) - k)[len(scores) - k]
    return largest


def top(rows: NDArray[np.int64], scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """The places of the k best by (−score, row); all of them when there are fewer.

    Args:
        rows: Row numbers, shape (n,), each once.
        scores: Shape (n,), no NaN.
        k: How many.
    """
    if k <= 0:
        return np.empty(0, np.int64)
    # All that tie with the k-th stay in, so that the row numbers decide among them.
    places = np.flatnonzero(scores >= kth_largest(scores, k)) if k < len(rows) else np.arange(len(rows))
    order = np.lexsort((rows[places], -scores[places]))[:k]
    return places[order]


def possible(scores: NDArray[np.floating], k: int, margin: float) -> NDArray[np.int64]:
    """The places that can be among the k best when each score may be off by `margin`, ascending."""
    if k >= len(scores):
        return np.arange(len(scores))
    if k <= 0:
        return np.empty(0, np.int64)
    return np.flatnonzero(scores >= float(kth_largest(scores, k)) - 2.0 * margin)
