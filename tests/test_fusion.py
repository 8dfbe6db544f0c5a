"""Fusion rules against numbers worked out by hand, and the properties the papers state."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexes.fusion import BM25_INFIMUM, COSINE_INFIMUM, convex, reciprocal_rank, theoretical_min_max

weights = st.floats(0, 1)
shares = st.floats(0, 1)
columns = st.lists(st.tuples(shares, shares), min_size=1, max_size=20).map(lambda rows: np.array(rows).T)
whole = st.lists(st.integers(-1000, 1000), min_size=1, max_size=20)
permutations = st.integers(1, 20).flatmap(
    lambda n: st.tuples(st.permutations(range(1, n + 1)), st.permutations(range(1, n + 1)))
)


def best_first(scores):
    return np.argsort(-scores, kind="stable").tolist()


def test_reciprocal_rank_of_first_and_third_is_one_sixty_first_plus_one_sixty_third():
    fused = reciprocal_rank(np.array([1, 2, 3]), np.array([3, 1, 2]), 0.5, 60)
    expected = [Fraction(1, 61) + Fraction(1, 63), Fraction(1, 62) + Fraction(1, 61), Fraction(1, 63) + Fraction(1, 62)]
    assert expected[0] == Fraction(124, 3843)
    assert fused == pytest.approx([float(one) for one in expected], rel=1e-15)
    assert best_first(fused) == [1, 0, 2]


def test_reciprocal_rank_counts_a_channel_by_twice_its_weight():
    # 2 · 3/4 / (10 + 2) + 2 · 1/4 / (10 + 6) = 1/8 + 1/32
    assert reciprocal_rank(np.array([2]), np.array([6]), 0.75, 10).tolist() == [0.15625]


def test_theoretical_min_max_maps_the_infimum_to_zero_and_the_maximum_to_one():
    assert theoretical_min_max(np.array([-1.0, 0.0, 0.5, 1.0]), COSINE_INFIMUM, 1.0).tolist() == [0, 0.5, 0.75, 1]
    assert theoretical_min_max(np.array([0.0, 3.0, 12.0]), BM25_INFIMUM, 12.0).tolist() == [0, 0.25, 1]


def test_theoretical_min_max_takes_the_maximum_of_the_pool_not_of_the_scores_at_hand():
    assert theoretical_min_max(np.array([2.0, 4.0]), BM25_INFIMUM, 8.0).tolist() == [0.25, 0.5]


def test_convex_combination_of_theoretical_min_max_agrees_with_hand_arithmetic():
    dense = theoretical_min_max(np.array([0.5, 0.0, -1.0]), COSINE_INFIMUM, 0.5)  # 1, 2/3, 0
    lexical = theoretical_min_max(np.array([0.0, 6.0, 12.0]), BM25_INFIMUM, 12.0)  # 0, 1/2, 1
    fused = convex(dense, lexical, 0.25)  # 1/4, 1/6 + 3/8, 3/4
    assert fused == pytest.approx([1 / 4, 13 / 24, 3 / 4], rel=1e-15)


@pytest.mark.parametrize(
    ("infimum", "scores"), [(BM25_INFIMUM, [0.0] * 3), (COSINE_INFIMUM, [-1.0] * 3), (BM25_INFIMUM, [])]
)
def test_a_channel_that_never_leaves_its_infimum_contributes_zero(infimum, scores):
    normalised = theoretical_min_max(np.array(scores), infimum, infimum)
    assert normalised.dtype == np.float64
    assert normalised.tolist() == [0.0] * len(scores)


def test_a_channel_that_is_constant_above_its_infimum_cannot_change_the_order():
    lexical = theoretical_min_max(np.array([7.0, 7.0, 7.0]), BM25_INFIMUM, 7.0)
    assert lexical.tolist() == [1, 1, 1]
    assert best_first(convex(np.array([0.2, 0.9, 0.5]), lexical, 0.5)) == [1, 2, 0]


@given(whole, st.integers(1, 1000), st.integers(-1000, 1000), st.integers(-2000, -1000))
def test_normalised_scores_are_invariant_to_rescaling_when_the_infimum_is_rescaled_too(scores, a, b, infimum):
    plain = np.array(scores, float)
    rescaled = a * plain + b  # whole numbers, so that nothing is rounded before the one division
    expected = theoretical_min_max(plain, infimum, plain.max())
    assert theoretical_min_max(rescaled, a * infimum + b, rescaled.max()).tolist() == expected.tolist()


@given(whole, st.integers(1, 1000), st.integers(-1000, 1000), weights, st.data())
def test_fused_ranks_are_invariant_to_rescaling_one_channel_with_its_infimum(scores, a, b, weight, data):
    plain = np.array(scores, float)
    other = np.array(data.draw(st.lists(shares, min_size=len(scores), max_size=len(scores))))
    rescaled = a * plain + b
    before = convex(theoretical_min_max(plain, -1000, plain.max()), other, weight)
    after = convex(theoretical_min_max(rescaled, b - 1000 * a, rescaled.max()), other, weight)
    assert best_first(after) == best_first(before)


def test_rescaling_a_channel_without_its_infimum_can_change_the_order():
    lexical = np.array([0.0, 0.4])
    dense = np.array([2.0, 1.0])
    right = convex(theoretical_min_max(dense, 0.0, 2.0), lexical, 0.5)
    wrong = convex(theoretical_min_max(dense + 100, 0.0, 102.0), lexical, 0.5)
    assert (best_first(right), best_first(wrong)) == ([0, 1], [1, 0])


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_normalising_stays_between_zero_and_one_and_never_swaps_two_scores(scores):
    plain = np.array(scores)
    normalised = theoretical_min_max(plain, COSINE_INFIMUM, plain.max())
    assert ((normalised >= 0) & (normalised <= 1)).all()
    assert (np.diff(normalised[np.argsort(plain)]) >= 0).all()


@given(columns, shares, weights)
def test_convex_never_falls_when_either_channel_rises(channels, rise, weight):
    dense, lexical = channels
    before = convex(dense, lexical, weight)
    assert (convex(dense + rise, lexical, weight) >= before).all()
    assert (convex(dense, lexical + rise, weight) >= before).all()


@given(columns, st.floats(0.01, 0.99))
def test_convex_rises_strictly_with_each_channel_inside_the_interval(channels, weight):
    dense, lexical = channels
    before = convex(dense, lexical, weight)
    assert (convex(dense + 0.01, lexical, weight) > before).all()
    assert (convex(dense, lexical + 0.01, weight) > before).all()


@given(columns, weights)
def test_convex_lies_between_its_parents(channels, weight):
    fused = convex(*channels, weight)
    assert (fused >= channels.min(axis=0) - 1e-15).all()
    assert (fused <= channels.max(axis=0) + 1e-15).all()


@given(permutations, weights, st.integers(1, 1000))
def test_reciprocal_rank_never_falls_when_a_rank_improves(ranks, weight, k):
    dense, lexical = map(np.array, ranks)
    before = reciprocal_rank(dense, lexical, weight, k)
    assert (reciprocal_rank(np.maximum(dense - 1, 1), lexical, weight, k) >= before).all()
    assert (reciprocal_rank(dense, np.maximum(lexical - 1, 1), weight, k) >= before).all()


@given(columns)
def test_convex_at_weight_one_is_the_dense_channel_and_at_zero_the_lexical_one(channels):
    dense, lexical = channels
    assert convex(dense, lexical, 1.0).tolist() == dense.tolist()
    assert convex(dense, lexical, 0.0).tolist() == lexical.tolist()


@given(permutations, st.integers(1, 1000))
def test_reciprocal_rank_at_weight_one_orders_as_dense_and_at_zero_as_lexical(ranks, k):
    dense, lexical = map(np.array, ranks)
    assert best_first(reciprocal_rank(dense, lexical, 1.0, k)) == np.argsort(dense).tolist()
    assert best_first(reciprocal_rank(dense, lexical, 0.0, k)) == np.argsort(lexical).tolist()


@given(permutations, st.integers(1, 1000))
def test_reciprocal_rank_at_one_half_treats_the_channels_alike(ranks, k):
    dense, lexical = map(np.array, ranks)
    there = reciprocal_rank(dense, lexical, 0.5, k)
    assert there.tolist() == reciprocal_rank(lexical, dense, 0.5, k).tolist()
    assert there.tolist() == (1.0 / (k + dense) + 1.0 / (k + lexical)).tolist()
