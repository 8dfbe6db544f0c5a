"""Adaptive k: as many demonstrations as the scores speak for, between a least number and k.

    threshold     as long as the score is high enough
    elbow         up to the largest drop between neighbours
    confidence    until what is shown explains enough of the query (`sift` tells what it leaves open)

Each is a pure function from one number per demonstration, in the order in which they are taken, to how many of them to
keep; `confidence` has one more, for none. What is kept is always the beginning. Constraints hold within the k that
`threshold` and `elbow` leave; `confidence`, which must see the picks first, never cuts off what `at_least` and
`every_label` need. The token budget bounds the number too, later and by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from retriever.errors import InvalidInput
from retriever.ranking.strategies.picks import TIE, Reals, check_range


def by_threshold(scores: Reals, least: int, most: int, threshold: float) -> int:
    """How many come before the first score below the threshold.

    Args:
        scores: Float64, shape (n,), in the order in which they are taken.
        least: So many are kept whatever the scores say, as far as there are.
        most: The most that are kept.
        threshold: A score that is enough; one that is equal up to `TIE` is.

    Raises:
        InvalidInput: A negative number, least above most, or a score that is no finite number.
    """
    _check(scores, least, most)
    below = np.flatnonzero(scores < threshold - TIE)
    return _between(int(below[0]) if len(below) else len(scores), least, most, len(scores))


def by_elbow(scores: Reals, least: int, most: int) -> int:
    """How many come before the largest drop.

    The drop after c is scores[c − 1] − scores[c]. Those are compared for max(least, 1) ≤ c ≤ most where a score
    follows, so a drop right after the `most`-th counts too if its score is given. Of drops within `TIE` of the largest,
    the last is taken: more is kept. Where none is above `TIE`, all are kept, up to `most`.

    Args:
        scores: As of `by_threshold`.
        least: As of `by_threshold`.
        most: As of `by_threshold`.

    Raises:
        InvalidInput: As of `by_threshold`.
    """
    _check(scores, least, most)
    first, last = max(least, 1), min(most, len(scores) - 1)
    drops = scores[first - 1 : last] - scores[first : last + 1] if first <= last else np.zeros(0)
    if not len(drops) or drops.max() <= TIE:
        return min(most, len(scores))
    return first + int(np.flatnonzero(drops >= drops.max() - TIE)[-1])


def by_confidence(open_variance: Reals, least: int, most: int, confidence: float) -> int:
    """How many it takes to explain a share of the query's variance.

    Args:
        open_variance: The share of the variance that is open before the first pick and after each of n, float64,
            shape (n + 1,).
        least: As of `by_threshold`.
        most: As of `by_threshold`; taken where the share is never reached.
        confidence: The share, 0 to 1; one that is equal up to `TIE` is enough.

    Raises:
        InvalidInput: As of `by_threshold`, or a confidence out of range.
    """
    _check(open_variance, least, most)
    check_range("confidence", confidence, 0.0, 1.0)
    enough = np.flatnonzero(1.0 - open_variance >= confidence - TIE)
    return _between(int(enough[0]) if len(enough) else most, least, most, len(open_variance) - 1)


@dataclass(frozen=True)
class Adaptive:
    """When fewer than k are shown.

    Attributes:
        by: `none`, `threshold`, `elbow` or `confidence`; the last needs the strategy `sift`.
        k_min: The least number, as far as there are candidates; above k, k.
        threshold: For `threshold`: the fused score that is enough.
        confidence: For `confidence`: the share of the query's variance to explain, 0 to 1.

    Raises:
        InvalidInput: A value out of range.
    """

    by: Literal["none", "threshold", "elbow", "confidence"] = "none"
    k_min: int = 1
    threshold: float = 0.5
    confidence: float = 0.5

    def __post_init__(self) -> None:
        if self.by not in ("none", "threshold", "elbow", "confidence"):
            raise InvalidInput(f"adaptive.by = {self.by!r}", expected="one of none, threshold, elbow, confidence")
        if self.k_min < 0:
            raise InvalidInput(f"adaptive.k_min = {self.k_min}", expected="0 or more")
        if not np.isfinite(self.threshold):
            raise InvalidInput(f"adaptive.threshold = {self.threshold}", expected="a finite number")
        check_range("adaptive.confidence", self.confidence, 0.0, 1.0)

    def before(self, scores: Reals, k: int) -> int:
        """How many to choose, from the candidates' scores, best first; k where these do not decide."""
        least = min(self.k_min, k)
        if self.by == "threshold":
            return by_threshold(scores, least, k, self.threshold)
        return by_elbow(scores, least, k) if self.by == "elbow" else k

    def after(self, open_variance: Callable[[], Reals], picked: int, k: int) -> int:
        """How many picks to keep, by what is open before the first and after each; all where that does not decide."""
        if self.by != "confidence":
            return picked
        return by_confidence(open_variance(), min(self.k_min, k), k, self.confidence)


def _check(scores: Reals, least: int, most: int) -> None:
    if not 0 <= least <= most:
        raise InvalidInput(f"between {least} and {most}", expected="0 ≤ least ≤ most")
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise InvalidInput(f"scores {scores}", expected="one finite number for each")


def _between(count: int, least: int, most: int, available: int) -> int:
    return min(max(count, least), most, available)
