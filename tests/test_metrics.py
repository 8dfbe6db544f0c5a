"""Metrics of a selection, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from retriever.evaluation.metrics import (
    best_overlap,
    hit,
    ndcg,
    output_tokens,
    precision,
    union_overlap,
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
