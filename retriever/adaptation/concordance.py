"""Concordance: how often of two prompts the better one stands higher, and how sure that is.

Of all pairs of prompts with different outcomes it is the share whose better one stands higher, ties counting half:
Harrell's concordance, the area under the ROC curve where outcomes are right and wrong. A prompt is in many pairs, so
that pairs, and prompts' shares of them, depend on each other: their spread says little of how sure the whole is. What
says it is how far the whole moves when a query is left out with all its prompts, the delete-one jackknife of a
U-statistic (Arvesen 1969) by clusters, for prompts of one query are alike (Obuchowski 1997). Where each query has one
prompt, right or wrong, these are the structural components of DeLong et al. (1988), but for factors of n / (n - 1), and
differences of two curves on the same prompts have their covariance in them. Pairs are counted by midranks (Sun and Xu
2014), in time and memory that do not grow with their number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Standings:
    """Where held-out prompts stand.

    Attributes:
        scores: How each did, float64, shape (n,).
        queries: The query of each, int64, shape (n,).
        parts: The part of each, int64, shape (n,); standings in different parts are not compared. A query is in one.
        values: Where each stands, by several ways to place them, float64, shape (n, ways).
    """

    scores: Values
    queries: Numbers
    parts: Numbers
    values: Values

    def by_query(self) -> Values:
        """For each query that has a pair the jackknife's pseudo-value by each way, shape (queries, ways).

        Their mean is the concordance, and their standard error that of the concordance; so for differences of two ways,
        query by query. Empty where fewer than two queries have a pair, or all pairs are of one query, so that nothing
        can be told.
        """
        _, queries = np.unique(self.queries, return_inverse=True)
        each = [self._pseudo_values(queries, way) for way in self.values.T]
        return np.stack(each, axis=1) if each else np.empty((0, 0))

    def _pseudo_values(self, queries: NDArray[np.intp], standing: Values) -> Values:
        def summed(counts: Values) -> Values:
            return np.bincount(queries, counts).astype(np.float64)

        agreed, pairs = map(summed, agreements(self.scores, standing, self.parts))
        # Both prompts of such a pair are counted: left out with their query they would be subtracted twice.
        own_agreed, own_pairs = map(summed, agreements(self.scores, standing, queries))
        speaking = pairs > 0
        left = (pairs.sum() - 2 * pairs + own_pairs)[speaking]
        if len(left) < 2 or not left.all():
            return np.empty(0)
        whole = agreed.sum() / pairs.sum()
        lost = whole - (agreed.sum() - 2 * agreed + own_agreed)[speaking] / left
        found: Values = whole + (len(lost) - 1) * (lost - lost.mean())
        return found


def agreements(scores: Values, standing: Values, parts: NDArray[np.integer]) -> tuple[Values, Values]:
    """For each prompt how many of another outcome in its part it stands on the right side of, and how many there are.

    Two outcomes, written as binary numbers by rank, differ in one highest digit: for each digit those that are equal
    above it are told apart by it alone.

    Args:
        scores: How each did, shape (n,).
        standing: Where each stands, shape (n,); of equal ones a half counts.
        parts: Which are compared: those of equal number, at least 0, shape (n,).
    """
    levels, ranks = np.unique(scores, return_inverse=True)
    digits = max(len(levels) - 1, 0).bit_length()
    codes = (parts.astype(np.int64) << digits) | ranks
    agreed, pairs = np.zeros(len(scores)), np.zeros(len(scores))
    for digit in range(digits):
        more, of = _two_outcomes((codes >> digit) & 1, standing, codes >> (digit + 1))
        agreed += more
        pairs += of
    return agreed, pairs


def _two_outcomes(better: Numbers, standing: Values, groups: Numbers) -> tuple[Values, Values]:
    """The same where each group has two outcomes, 0 and 1: the midrank of each prompt among those of the other one."""
    order = np.lexsort((standing, groups))
    better, standing, groups = better[order], standing[order], groups[order]
    another_group = groups[1:] != groups[:-1]
    first, end = _spans(another_group)
    level_first, level_end = _spans(another_group | (standing[1:] != standing[:-1]))
    ones = np.append(0, better.cumsum())
    zeros = np.arange(len(order) + 1) - ones
    below = (zeros[level_first] + zeros[level_end]) / 2 - zeros[first]
    above = ones[end] - (ones[level_first] + ones[level_end]) / 2
    agreed, pairs = np.empty(len(order)), np.empty(len(order))
    agreed[order] = np.where(better, below, above)
    pairs[order] = np.where(better, zeros[end] - zeros[first], ones[end] - ones[first])
    return agreed, pairs


def _spans(differs: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Of runs of equal values, for each value where its run begins and ends.

    Args:
        differs: Whether each value but the first differs from the one before.
    """
    starts = np.flatnonzero(np.append(True, differs))
    run = np.append(0, differs.cumsum())
    return starts[run], np.append(starts[1:], len(run))[run]
