"""Metrics of a selection, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import jaccard_score, label_ranking_average_precision_score, ndcg_score, recall_score

from retriever.evaluation.metrics import (
    best_overlap,
    diversity,
    hit,
    label_entropy,
    majority_vote,
    ndcg,
    ngrams,
    output_tokens,
    precision,
    recall,
    reciprocal_rank,
    redundancy,
    union_overlap,
    vote,
    weighted_vote,
)
from retriever.ranking.guard import jaccard

A, B, C, AB, NONE = (frozenset(letters) for letters in ("a", "b", "c", "ab", ""))
sets = st.frozensets(st.sampled_from("abcdef"))


@pytest.mark.parametrize(
    ("query", "chosen", "hits", "share"),
    [
        (A, [A, B, AB, C], 1.0, 0.5),
        (AB, [C, B], 1.0, 0.5),
        (A, [B, C], 0.0, 0.0),
        (A, [], 0.0, 0.0),
        (NONE, [NONE, A], 0.0, 0.0),
        (A, [A] * 8, 1.0, 1.0),
    ],
)
def test_hit_and_precision(query, chosen, hits, share):
    assert hit(query, chosen) == hits
    assert precision(query, chosen) == share


def test_overlap_is_the_jaccard_index():
    assert jaccard(frozenset("abc"), frozenset("bcd")) == 0.5
    assert jaccard(A, B) == 0.0
    assert jaccard(NONE, NONE) == 1.0
    assert jaccard(A, NONE) == 0.0


def test_best_overlap_is_that_of_the_best_demonstration():
    assert best_overlap(AB, [C, A, frozenset("abc")]) == pytest.approx(2 / 3)
    assert best_overlap(AB, []) == 0.0


def test_union_overlap_is_what_all_demonstrations_cover_together():
    assert union_overlap(frozenset("abcd"), [A, B, frozenset("bx")]) == 0.5
    assert union_overlap(AB, []) == 0.0
    assert union_overlap(NONE, []) == 1.0


@given(sets, st.lists(sets, max_size=5))
def test_every_metric_is_a_share(query, chosen):
    for metric in (hit, precision, best_overlap, union_overlap):
        assert 0.0 <= metric(query, chosen) <= 1.0


@given(sets, st.lists(sets, max_size=5), sets)
def test_one_more_demonstration_never_lowers_hit_or_overlap(query, chosen, more):
    for metric in (hit, best_overlap, union_overlap):
        assert metric(query, [*chosen, more]) >= metric(query, chosen)


def test_ndcg_by_hand():
    grades = {"a": 3.0, "b": 2.0, "c": 1.0}
    # gains 2, 0, 3 at ranks 1, 2, 3: 2 / log2(2) + 3 / log2(4) = 3.5; ideal 3 + 2 / log2(3) + 1 / log2(4).
    ideal = 3 + 2 / math.log2(3) + 0.5
    assert ndcg(["b", "x", "a"], grades, 3) == pytest.approx(3.5 / ideal, abs=1e-15)
    assert ndcg(["b", "x", "a"], grades, 1) == pytest.approx(2 / 3, abs=1e-15)
    assert ndcg(["x", "b"], {"b": 1.0}, 10) == pytest.approx(1 / math.log2(3), abs=1e-15)


def test_ndcg_of_the_ideal_order_is_1_and_of_nothing_relevant_0():
    grades = {"a": 3.0, "b": 2.0, "c": 1.0}
    assert ndcg(["a", "b", "c", "x"], grades, 10) == 1.0
    assert ndcg(["x", "y"], grades, 10) == 0.0
    assert ndcg([], grades, 10) == 0.0
    assert ndcg(["a"], {}, 10) == 0.0
    assert ndcg(["a"], {"a": 0.0}, 10) == 0.0
    assert ndcg(["a"], grades, 0) == 0.0
    assert ndcg(["a", "junk", "b"], {"a": 1.0, "b": 1.0, "junk": -2.0}, 2) == ndcg(["a", "x"], {"a": 1.0, "b": 1.0}, 2)
    assert ndcg(["a", "junk"], {"a": 1.0, "junk": -2.0}, 10) == 1.0


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.integers(1, 12), st.randoms(use_true_random=False))
def test_ndcg_agrees_with_scikit_learn(gains, k, random):
    names = [str(i) for i in range(len(gains))]
    grades = {name: float(gain) for name, gain in zip(names, gains, strict=True)}
    ranked = random.sample(names, len(names))
    scores = np.array([[-ranked.index(name) for name in names]])
    assert ndcg(ranked, grades, k) == pytest.approx(ndcg_score(np.array([gains]), scores, k=k), abs=1e-12)


def test_the_tokens_of_an_output_are_its_identifiers_whole_and_in_parts():
    assert output_tokens("SELECT userName FROM t_1;") == {"select", "username", "user", "name", "from", "t_1", "t", "1"}
    assert output_tokens("") == output_tokens(" ;*()") == frozenset()


@pytest.mark.parametrize(
    ("chosen", "weights", "winner"),
    [
        ([A, B, B], [1, 1, 1], "b"),
        ([A, B, B, A], [1, 1, 1, 1], "a"),  # a tie: the better rank
        ([C, B, B, C], [1, 1, 1, 1], "c"),
        ([A, B, B], [0.9, 0.5, 0.3], "a"),
        ([A, B, B], [0.9, 0.5, 0.4], "a"),  # 0.9 each
        ([A, B, B], [0.9, 0.5, 0.41], "b"),
        ([B, AB, A], [1, 1, 1], "b"),  # two each, and b came first
        ([AB, C], [1, 1], "a"),  # came first together: by name
        ([A, B], [-0.5, -0.1], "a"),  # below 0 counts nothing
        ([NONE, B], [5, 1], "b"),
        ([NONE], [1], None),
        ([], [], None),
    ],
)
def test_the_vote_goes_to_the_largest_sum_and_ties_to_the_better_rank(chosen, weights, winner):
    assert vote(chosen, weights) == winner


def test_a_vote_is_right_when_its_label_is_one_of_the_query():
    assert majority_vote(AB, [B, B, C]) == 1.0
    assert majority_vote(A, [B, B, A]) == 0.0
    assert weighted_vote(A, [B, B, A], [0.1, 0.1, 0.9]) == 1.0
    assert majority_vote(A, []) == majority_vote(NONE, [NONE]) == 0.0


@given(st.lists(sets, max_size=8), st.lists(st.integers(0, 50), min_size=8, max_size=8))
def test_the_vote_is_that_of_a_count_by_hand(chosen, weights):
    sums = {one: sum(w for w, labels in zip(weights, chosen, strict=False) if one in labels) for one in "abcdef"}
    first = {one: next((i for i, labels in enumerate(chosen) if one in labels), 99) for one in "abcdef"}
    voted = [one for one in "abcdef" if first[one] < 99]
    expected = min(voted, key=lambda one: (-sums[one], first[one], one), default=None)
    assert vote(chosen, [float(w) for w in weights[: len(chosen)]]) == expected


def test_the_entropy_of_labels_by_hand():
    assert label_entropy([A, B]) == 1.0
    assert label_entropy([A, A]) == label_entropy([]) == label_entropy([NONE]) == 0.0
    assert label_entropy([AB, A]) == pytest.approx(2 / 3 * math.log2(1.5) + math.log2(3) / 3)  # a twice, b once


@given(st.lists(sets, max_size=8))
def test_the_entropy_of_labels_agrees_with_scipy(chosen):
    counts = [sum(one in labels for labels in chosen) for one in "abcdef"]
    expected = entropy(counts, base=2) if sum(counts) else 0.0
    assert label_entropy(chosen) == pytest.approx(expected, abs=1e-12)


def test_diversity_is_what_is_distinct_over_all():
    assert diversity([A, B]) == 1.0
    assert diversity([AB, AB, AB, AB]) == 0.25
    assert diversity([AB, B, C]) == 0.75
    assert diversity([]) == diversity([NONE]) == 1.0


@given(sets, sets)
def test_overlap_agrees_with_scikit_learn(first, second):
    rows = [[one in given_set for one in "abcdefg"] for given_set in (first | {"g"}, second | {"g"})]
    assert best_overlap(first | {"g"}, [second | {"g"}]) == pytest.approx(jaccard_score(*rows), abs=1e-12)


def test_ngrams_are_of_words_and_signs_in_the_order_of_the_text():
    assert ngrams("a = b", 2) == {"a", "=", "b", "a =", "= b"}
    assert ngrams("a b c d e") >= {"a b c d", "b c d e"}
    assert "a b c d e" not in ngrams("a b c d e")
    assert ngrams("b a") != ngrams("a b")
    assert ngrams("  ") == frozenset()


def test_recall_and_reciprocal_rank_by_hand():
    grades = {"a": 2.0, "b": 1.0, "c": 0.0, "d": -1.0}
    assert recall(["x", "a", "b"], grades, 2) == 0.5
    assert recall(["x", "a", "b"], grades, 3) == 1.0
    assert recall(["c", "d"], grades, 2) == recall([], {}, 5) == 0.0
    assert reciprocal_rank(["x", "c", "b", "a"], grades, 4) == pytest.approx(1 / 3)
    assert reciprocal_rank(["x", "c", "b"], grades, 2) == reciprocal_rank([], grades, 5) == 0.0


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.integers(1, 12), st.randoms(use_true_random=False))
def test_recall_agrees_with_scikit_learn(gains, k, random):
    names = [str(i) for i in range(len(gains))]
    ranked = random.sample(names, len(names))
    truth, found = [gain > 0 for gain in gains], [name in ranked[:k] for name in names]
    expected = recall_score(truth, found, zero_division=0.0)
    grades = {name: float(gain) for name, gain in zip(names, gains, strict=True)}
    assert recall(ranked, grades, k) == pytest.approx(expected, abs=1e-12)


@given(st.integers(2, 12), st.data())
def test_the_reciprocal_rank_of_one_relevant_document_agrees_with_scikit_learn(count, data):
    place = data.draw(st.integers(0, count - 1))
    scores = np.arange(count, 0, -1.0)[None]
    truth = np.eye(count, dtype=int)[[place]]
    ranked = [str(i) for i in range(count)]
    expected = label_ranking_average_precision_score(truth, scores)
    assert reciprocal_rank(ranked, {str(place): 1.0}, count) == pytest.approx(expected, abs=1e-12)


def test_redundancy_is_the_mean_cosine_over_all_pairs():
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, 0]], dtype=np.float32)
    pairs = [float(vectors[i] @ vectors[j]) for i in range(4) for j in range(i)]
    assert redundancy(vectors) == pytest.approx(sum(pairs) / 6, abs=1e-7)
    assert redundancy(vectors[:1]) == redundancy(vectors[:0]) == 0.0
