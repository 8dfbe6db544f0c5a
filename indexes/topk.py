"""The best of many scores, without sorting them, and without looking at most of them twice.

Scores are split into groups. The k-th largest of the groups' maxima is a bound that at least k scores reach, so that
all that matters lies in the few groups whose maximum reaches it. Once `indexes.kernels` has compiled its loops, a small
k takes one pass that holds the best so far, which is faster still and gives the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from indexes import kernels

_GROUP = 64

_COMPILED_K = 128
"""Up to here the compiled loop, which inserts into a sorted list, is the faster one."""


def top(rows: NDArray[np.int64], scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """The places of the k best by (−score, row); all of them when there are fewer.

    Args:
        rows: Row numbers, shape (n,), each once.
        scores: Shape (n,), no NaN.
        k: How many.
    """
    if k <= 0:
        return np.empty(0, np.int64)
    compiled = kernels.current()
    if compiled is not None and k <= min(_COMPILED_K, len(rows)) and len(rows) > _GROUP * k:
        places: NDArray[np.int64] = compiled.best(rows, scores, k)
        return places
    # All that tie with the k-th stay in, so that the row numbers decide among them.
    places = _near(scores, k, 0.0) if k < len(rows) else np.arange(len(rows))
    order = np.lexsort((rows[places], -scores[places]))[:k]
    return places[order]


def possible(scores: NDArray[np.floating], k: int, margin: float) -> NDArray[np.int64]:
    """The places that can be among the k best when each score may be off by `margin`, ascending."""
    if k >= len(scores):
        return np.arange(len(scores))
    if k <= 0:
        return np.empty(0, np.int64)
    return _near(scores, k, 2.0 * margin)


def _near(scores: NDArray[np.floating], k: int, margin: float) -> NDArray[np.int64]:
    """The places of the scores that are at most `margin` below the k-th largest, ascending."""
    groups = len(scores) // _GROUP
    if k == 1 or k >= groups:
        return np.flatnonzero(scores >= _kth(scores, k) - margin)
    # Group i is every score whose place is i modulo their number: maxima of whole rows are fast.
    maxima = scores[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
    places = _reaching(scores, maxima, _kth(maxima, k))
    bound = _kth(scores[places], k)
    if margin:
        return _reaching(scores, maxima, bound - margin)
    return places[scores[places] >= bound]


def _reaching(scores: NDArray[np.floating], maxima: NDArray[np.floating], bound: float) -> NDArray[np.int64]:
    """The places of the scores that reach a bound, ascending, given the maxima of the groups."""
    groups = np.flatnonzero(maxima >= bound)
    if len(groups) > len(maxima) // 8:
        return np.flatnonzero(scores >= bound)
    grouped = (groups + len(maxima) * np.arange(_GROUP)[:, np.newaxis]).ravel()  # ascending
    places = np.concatenate([grouped, np.arange(len(maxima) * _GROUP, len(scores))])
    reached: NDArray[np.int64] = places[scores[places] >= bound]
    return reached


def _kth(scores: NDArray[np.floating], k: int) -> float:
    """The k-th largest, repeats counted."""
    return float(scores.max() if k == 1 else np.partition(scores, len(scores) - k)[len(scores) - k])
