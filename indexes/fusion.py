"""Fusion: one pure function per rule, from the channels' scores to one score.

Sources: convex combination with theoretical min-max normalisation ("TM2C2") from Bruch, Gai and Ingber, "An Analysis of
Fusion Functions for Hybrid Retrieval", TOIS 2023, section 3; reciprocal rank fusion from Cormack, Clarke and Büttcher,
SIGIR 2009, equation 1.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Scores: TypeAlias = NDArray[np.float64]

COSINE_INFIMUM = -1.0
"""The least score the dense channel can give."""

BM25_INFIMUM = 0.0
"""The least score the lexical channel can give."""


def theoretical_min_max(scores: Scores, infimum: float, maximum: float) -> Scores:
    """Scores mapped so that the channel's infimum is 0 and this query's maximum is 1: (s − inf) / (max − inf).

    A channel whose maximum is its infimum tells nothing about this query and contributes 0 everywhere.

    Args:
        scores: Shape (n,).
        infimum: The least score that the channel can give, whatever the query.
        maximum: The largest score for this query among the rows under consideration.
    """
    if maximum <= infimum:
        return np.zeros(len(scores))
    return (scores - infimum) / (maximum - infimum)


def convex(dense: Scores, lexical: Scores, weight: float) -> Scores:
    """Convex combination of normalised scores: weight · dense + (1 − weight) · lexical.

    Args:
        dense: Normalised scores, shape (n,).
        lexical: Normalised scores, shape (n,).
        weight: Share of the dense channel, from 0 to 1.
    """
    return weight * dense + (1.0 - weight) * lexical


def reciprocal_rank(dense_ranks: NDArray[np.int64], lexical_ranks: NDArray[np.int64], weight: float, k: int) -> Scores:
    """Weighted reciprocal rank fusion: 2·weight / (k + rank_dense) + 2·(1 − weight) / (k + rank_lexical).

    With weight ½ this is the published rule, in which both channels count once.

    Args:
        dense_ranks: Ranks from 1, shape (n,).
        lexical_ranks: Ranks from 1, shape (n,).
        weight: Share of the dense channel, from 0 to 1.
        k: Smoothing constant; 60 in the paper.
    """
    return 2.0 * weight / (k + dense_ranks) + 2.0 * (1.0 - weight) / (k + lexical_ranks)
