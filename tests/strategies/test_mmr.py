"""Maximal marginal relevance against its definition in fractions, and against numbers worked out by hand."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from strategy_cases import (
    TIE,
    dot,
    first_best,
    fractions,
    gaussian,
    is_selection,
    many,
    matrices,
    ranked,
    shares,
    some,
    wanted,
)

from retriever.errors import InvalidInput
from retriever.ranking.strategies.mmr import mmr
from tests.support import outputs_by_threads


def literal(relevance, vectors, k, weight):
    """The definition: at each step every candidate is compared with every pick."""
    rows, weight = fractions(vectors), Fraction(weight)
    places, gains, against = [], [], []
    while len(places) < min(k, len(rows)):
        free = [place for place in range(len(rows)) if place not in places]
        if places:
            like = {place: max(dot(rows[place], rows[pick]) for pick in places) for place in free}
            gain = {place: weight * relevance[place] - (1 - weight) * like[place] for place in free}
            place = first_best(gain)
            rival = next(pick for pick in places if dot(rows[place], rows[pick]) == like[place])
            gains.append(gain[place])
        else:
            place, rival = first_best({place: relevance[place] for place in free}), -1
            gains.append(weight * relevance[place])
        places.append(place)
        against.append(rival if weight < 1 else -1)
    return places, gains, against


@many
@given(ranked(), wanted, shares)
def test_mmr_is_the_literal_double_loop(case, k, weight):
    relevance, vectors = case
    chosen = mmr(relevance, vectors, k, weight=weight)
    places, gains, against = literal([Fraction(r) for r in relevance.tolist()], vectors, k, weight)
    assert is_selection(chosen.places.tolist(), len(vectors), k)
    assert chosen.places.tolist() == places
    assert chosen.gains == pytest.approx([float(gain) for gain in gains], abs=1e-12)
    assert chosen.against.tolist() == against


@many
@given(ranked(), wanted, shares)
def test_min_max_is_mmr_over_relevance_mapped_to_zero_and_one(case, k, weight):
    relevance, vectors = case
    exact = [Fraction(r) for r in relevance.tolist()]
    low, high = (min(exact), max(exact)) if exact else (0, 0)
    mapped = [(r - low) / (high - low) if high > low else Fraction(0) for r in exact]
    chosen = mmr(relevance, vectors, k, weight=weight, scaling="min-max")
    assert chosen.places.tolist() == literal(mapped, vectors, k, weight)[0]


def test_a_copy_of_the_first_pick_comes_after_something_new():
    # Relevance .9, .8, .2; the second is a copy of the first, the third orthogonal to both. After the first:
    # .5 · .8 − .5 · 1 = −.1 and .5 · .2 − .5 · 0 = .1.
    vectors = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    chosen = mmr(np.array([0.9, 0.8, 0.2]), vectors, 3, weight=0.5)
    assert chosen.places.tolist() == [0, 2, 1]
    assert chosen.gains == pytest.approx([0.45, 0.1, -0.1])
    assert chosen.against.tolist() == [-1, 0, 0]


def test_against_names_the_nearest_of_several_picks():
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    chosen = mmr(np.array([0.9, 0.8, 0.1]), vectors, 3)
    assert chosen.places.tolist() == [0, 1, 2]
    assert chosen.gains[2] == pytest.approx(0.05 - 0.4)
    assert chosen.against.tolist() == [-1, 0, 1]


@some
@given(ranked(), wanted)
def test_at_weight_one_the_most_relevant_are_chosen_and_nothing_is_traded(case, k):
    relevance, vectors = case
    chosen = mmr(relevance, vectors, k, weight=1.0)
    assert chosen.places.tolist() == np.argsort(-relevance, kind="stable")[:k].tolist()
    assert set(chosen.against.tolist()) <= {-1}


@some
@given(matrices(), wanted)
def test_at_weight_zero_each_pick_is_farthest_from_those_before(vectors, k):
    chosen = mmr(np.zeros(len(vectors)), vectors, k, weight=0.0).places.tolist()
    assert chosen[:1] == [0][: min(k, len(vectors))]
    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    for step in range(1, len(chosen)):
        nearest = cosines[:, chosen[:step]].max(axis=1)
        free = np.setdiff1d(np.arange(len(vectors)), chosen[:step])
        assert nearest[chosen[step]] <= nearest[free].min() + TIE


@some
@given(ranked(), wanted, shares)
def test_a_smaller_k_gives_the_first_picks_of_a_larger(case, k, weight):
    relevance, vectors = case
    assert (
        mmr(relevance, vectors, k, weight=weight).places.tolist()
        == mmr(relevance, vectors, k + 3, weight=weight).places.tolist()[:k]
    )


def test_the_order_of_distinct_candidates_does_not_change_the_choice():
    vectors, relevance = gaussian(60, 16), np.random.default_rng(1).random(60)
    shuffled = np.random.default_rng(2).permutation(60)
    chosen = mmr(relevance, vectors, 10).places
    assert shuffled[mmr(relevance[shuffled], vectors[shuffled], 10).places].tolist() == chosen.tolist()


def test_copies_tie_wherever_they_stand():
    # Position in a matrix changes the rounding of a library's product; 331 rows leave remainders in every block size.
    vectors = np.repeat(gaussian(1, 384), 331, axis=0)
    assert mmr(np.full(331, 0.5), vectors, 20).places.tolist() == list(range(20))


def test_any_number_of_threads_gives_the_same_bits():
    code = (
        "import sys; sys.path.insert(0, 'tests/strategies')\n"
        "from strategy_cases import gaussian\n"
        "from retriever.ranking.strategies.mmr import mmr\n"
        "vectors = gaussian(700, 384)\n"
        "chosen = mmr(vectors[:, 0].astype('f8'), vectors, 40)\n"
        "print(chosen.places.tolist(), [gain.hex() for gain in chosen.gains.tolist()])"
    )
    assert len(outputs_by_threads(code, 1, 2, 4)) == 1


def test_relevance_of_another_shape_is_an_error():
    with pytest.raises(InvalidInput, match=r"relevance of shape \(2,\); expected \(3,\)"):
        mmr(np.zeros(2), np.zeros((3, 4), dtype=np.float32), 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_errors(bad):
    vectors = np.array([[1, 0], [0, 1]], dtype=np.float32)
    with pytest.raises(InvalidInput, match="relevance that is not finite"):
        mmr(np.array([0.5, bad]), vectors, 1)
    with pytest.raises(InvalidInput, match="vector 1 has squared length"):
        mmr(np.zeros(2), np.array([[1, 0], [0, bad]], dtype=np.float32), 1)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"weight": 1.5}, "weight = 1.5"), ({"weight": float("nan")}, "weight = nan"), ({"scaling": "z"}, "scaling 'z'")],
)
def test_settings_out_of_range_are_errors(setting, message):
    with pytest.raises(InvalidInput, match=message):
        mmr(np.zeros(1), np.ones((1, 1), dtype=np.float32), 1, **setting)


def test_a_negative_k_is_an_error():
    with pytest.raises(InvalidInput, match="k = -1; expected 0 or more"):
        mmr(np.zeros(0), np.zeros((0, 4), dtype=np.float32), -1)


def test_vectors_must_be_a_matrix_of_unit_or_zero_vectors():
    with pytest.raises(InvalidInput, match="vector 0 has squared length 4; expected unit or zero vectors"):
        mmr(np.zeros(1), np.full((1, 1), 2, dtype=np.float32), 1)
    with pytest.raises(InvalidInput, match="vectors of shape"):
        mmr(np.zeros(1), np.zeros(1, dtype=np.float32), 1)
