"""Metrics of a selection that need no language model: one pure function each.

Sets of labels make single-label and multi-label pools alike: two examples agree when they share a label. Demonstrations
and their scores stand best first. Which of these a user asks for by name is in `retriever.evaluation.judged`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from indexes.analyzers import identifiers
from retriever.ranking.guard import jaccard

TokenSet = frozenset[str]

TOKEN = re.compile(r"\w+|[^\w\s]")
"""A word, or a single sign."""


def hit(query: TokenSet, chosen: Sequence[TokenSet]) -> float:
    """1 when any demonstration shares a label with the query, else 0."""
    return float(any(labels & query for labels in chosen))


def precision(query: TokenSet, chosen: Sequence[TokenSet]) -> float:
    """Share of the demonstrations that share a label with the query (P@k); 0 when there are none."""
    return sum(bool(labels & query) for labels in chosen) / len(chosen) if chosen else 0.0


def vote(chosen: Sequence[TokenSet], weights: Sequence[float]) -> str | None:
    """The label that the demonstrations vote for, as the k nearest neighbours classify (Cover and Hart 1967).

    Each demonstration gives its weight to each of its labels. Of labels with equal sums the one that comes first in the
    ranking wins; of those that come first together, the first by name.

    Args:
        chosen: The labels of each demonstration, best first.
        weights: What each vote counts; below 0 it counts nothing.

    Returns:
        The label; None when no demonstration has one.
    """
    given: dict[str, list[float]] = {}
    for labels, weight in zip(chosen, weights, strict=True):
        for label in sorted(labels):
            given.setdefault(label, []).append(max(weight, 0.0))
    # A dict keeps the order in which labels came up, and max the first of equals.
    return max(given, key=lambda label: math.fsum(given[label]), default=None)


def majority_vote(query: TokenSet, chosen: Sequence[TokenSet]) -> float:
    """1 when the label that most demonstrations have is one of the query's, else 0; see `vote`."""
    return float(vote(chosen, [1.0] * len(chosen)) in query)


def weighted_vote(query: TokenSet, chosen: Sequence[TokenSet], scores: Sequence[float]) -> float:
    """1 when the label with the largest sum of scores is one of the query's, else 0 (Dudani 1976); see `vote`."""
    return float(vote(chosen, scores) in query)


def label_entropy(chosen: Sequence[TokenSet]) -> float:
    """The entropy of the demonstrations' labels in bits (Shannon 1948): 0 when all have the same one, or none.

    -Σ p log₂ p over the labels, p being a label's share of all labels that the demonstrations have.
    """
    counts = Counter(label for labels in chosen for label in labels)
    total = counts.total()
    return math.fsum(count / total * math.log2(total / count) for count in counts.values())


def best_overlap(query: TokenSet, chosen: Sequence[TokenSet]) -> float:
    """The largest overlap (Jaccard 1912) of a demonstration's output with the query's own; 0 when there are none."""
    return max((jaccard(query, tokens) for tokens in chosen), default=0.0)


def mean_overlap(query: TokenSet, chosen: Sequence[TokenSet]) -> float:
    """The mean overlap (Jaccard index) of a demonstration's labels with the query's; P@k where each has one label."""
    return sum(jaccard(query, labels) for labels in chosen) / len(chosen) if chosen else 0.0


def union_overlap(query: TokenSet, chosen: Sequence[TokenSet]) -> float:
    """Share of what the query's output has that stands in some demonstration's output; 1 when it has nothing.

    Of n-grams it is the coverage of the output, of labels that of entity or slot types.
    """
    return len(query & frozenset().union(*chosen)) / len(query) if query else 1.0


def diversity(chosen: Sequence[TokenSet]) -> float:
    """Distinct elements of the demonstrations over all that each of them has: 1 when no two share one, 1/k for copies.

    The distinct-n of Li et al. (2016), between texts instead of within one. 1 when there is nothing.
    """
    total = sum(map(len, chosen))
    return len(frozenset().union(*chosen)) / total if total else 1.0


def ndcg(ranked: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    """Normalised discounted cumulative gain at k (Järvelin and Kekäläinen 2002): linear gain, log₂ discount.

    Args:
        ranked: Document ids, best first.
        grades: Relevance by document id; ids that are not in it have 0. One below 0, which marks junk, counts as 0.
        k: How many of the ranked count.
    """
    gains = {document: max(grade, 0.0) for document, grade in grades.items()}
    ideal = _dcg(sorted(gains.values(), reverse=True)[:k])
    return _dcg([gains.get(document, 0.0) for document in ranked[:k]]) / ideal if ideal > 0 else 0.0


def _dcg(gains: Sequence[float]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def recall(ranked: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    """Share of the relevant documents, those with a grade above 0, among the first k; 0 when none is relevant."""
    relevant = {document for document, grade in grades.items() if grade > 0}
    return len(relevant.intersection(ranked[:k])) / len(relevant) if relevant else 0.0


def reciprocal_rank(ranked: Sequence[str], grades: Mapping[str, float], k: int) -> float:
    """1 / the rank of the first relevant document among the first k, else 0; its mean is MRR (Voorhees 1999)."""
    return next((1 / rank for rank, one in enumerate(ranked[:k], start=1) if grades.get(one, 0.0) > 0), 0.0)


def output_tokens(text: str) -> TokenSet:
    """The token set of an output: identifiers, split at case and underscores, so that code and SQL compare well."""
    return frozenset(identifiers(text))


def ngrams(text: str, longest: int = 4) -> TokenSet:
    """The distinct n-grams of 1 to `longest` tokens, words and signs, in text order, with a blank between tokens."""
    tokens = TOKEN.findall(text)
    return frozenset(
        " ".join(tokens[start : start + size])
        for size in range(1, longest + 1)
        for start in range(len(tokens) - size + 1)
    )


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
