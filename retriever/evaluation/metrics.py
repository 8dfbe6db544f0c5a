"""Metrics of a selection that need no language model: one pure function each.

Sets of labels make single-label and multi-label pools alike: two examples agree when they share a label.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from indexes.analyzers import identifiers
from retriever.ranking.guard import jaccard

TokenSet = frozenset[str]

_TOKEN = re.compile(r"\w+|[^\w\s]")


def hit(query: TokenSet, chosen: Sequence[TokenSet]) -> float:
    """1 when any demonstration shares a label with the query, else 0."""
    return float(any(labels & query for labels in chosen))


def precision(query: TokenSet, chosen: Sequence[TokenSet]) -> float:
    """Share of the demonstrations that share a label with the query (P@k); 0 when there are none."""
    return sum(bool(labels & query) for labels in chosen) / len(chosen) if chosen else 0.0


def best_overlap(query: TokenSet, chosen: Sequence[TokenSet]) -> float:
    """The largest overlap of a demonstration's output with the query's own; 0 when there are none."""
    return max((jaccard(query, tokens) for tokens in chosen), default=0.0)


def mean_overlap(query: TokenSet, chosen: Sequence[TokenSet]) -> float:
    """The mean overlap (Jaccard index) of a demonstration's labels with the query's; P@k where each has one label."""
    return sum(jaccard(query, labels) for labels in chosen) / len(chosen) if chosen else 0.0


def union_overlap(query: TokenSet, chosen: Sequence[TokenSet]) -> float:
    """Share of the query's output tokens that stand in some demonstration's output; 1 when it has none."""
    return len(query & frozenset().union(*chosen)) / len(query) if query else 1.0


def ndcg(ranked: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    """Normalised discounted cumulative gain at k (Järvelin and Kekäläinen 2002): linear gain, log₂ discount.

    Args:
        ranked: Document ids, best first.
        grades: Relevance by document id; ids that are not in it have 0.
        k: How many of the ranked count.
    """
    ideal = _dcg(sorted(grades.values(), reverse=True)[:k])
    return _dcg([grades.get(document, 0.0) for document in ranked[:k]]) / ideal if ideal > 0 else 0.0


def _dcg(gains: Sequence[float]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def output_tokens(text: str) -> TokenSet:
    """The token set of an output: identifiers, split at case and underscores, so that code and SQL compare well."""
    return frozenset(identifiers(text))


def ngrams(text: str, longest: int = 4) -> frozenset[tuple[str, ...]]:
    """The distinct n-grams of 1 to `longest` tokens, words and signs, in text order."""
    tokens = _TOKEN.findall(text)
    return frozenset(
        tuple(tokens[start : start + size]) for size in range(1, longest + 1) for start in range(len(tokens) - size + 1)
    )


def ngram_coverage(output: str, demonstrations: Sequence[str], longest: int = 4) -> float:
    """The share of the n-grams of the true output that stand in some demonstration's output; 1 for an empty output."""
    wanted = ngrams(output, longest)
    if not wanted:
        return 1.0
    shown = frozenset[tuple[str, ...]]().union(*(ngrams(text, longest) for text in demonstrations))
    return len(wanted & shown) / len(wanted)


def redundancy(vectors: NDArray[np.float32]) -> float:
    """The mean cosine of two demonstrations, over all pairs; 0 for fewer than two.

    Args:
        vectors: Unit or zero rows, shape (k, dim).
    """
    count = len(vectors)
    if count < 2:
        return 0.0
    wide = vectors.astype(np.float64)
    return float(((wide.sum(axis=0) ** 2).sum() - (wide**2).sum()) / (count * (count - 1)))
