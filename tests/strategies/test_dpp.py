"""Greedy DPP against determinants in whole numbers, and against numbers worked out by hand."""

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategy_cases import dot, first_best, fractions, gaussian, is_selection, many, ranked, some, wanted

from retriever.errors import InvalidInput
from retriever.ranking.strategies.dpp import dpp

scales = st.sampled_from([0.01, 0.05, 0.1, 1.0, 100.0])


def determinant(matrix):
    """By fraction-free elimination (Bareiss) over whole numbers; no pivot is 0 in the kernels of independent picks."""
    rows, before = [row[:] for row in matrix], 1
    for i in range(len(rows) - 1):
        if rows[i][i] == 0:
            return 0
        for j in range(i + 1, len(rows)):
            for c in range(i + 1, len(rows)):
                rows[j][c] = (rows[j][c] * rows[i][i] - rows[j][i] * rows[i][c]) // before
        before = rows[i][i]
    return rows[-1][-1] if rows else 1


def kernel(vectors):
    """(1 + cosine) / 2 in units of 2⁻⁶⁰, as whole numbers."""
    rows = fractions(vectors)
    return [[int((1 + dot(a, b)) / 2 * 2**60) for b in rows] for a in rows]


def literal(relevance, vectors, k, scale):
    """The definition: the set that grows most in log det L, its determinants worked out anew at each step."""
    whole = kernel(vectors)
    value = [(1 + r) / 2 / scale for r in relevance.tolist()]
    places, gains, volume = [], [], 1
    while len(places) < min(k, len(whole)):
        gain, volumes = {}, {}
        for place in set(range(len(whole))) - set(places):
            members = [*places, place]
            volumes[place] = determinant([[whole[a][b] for b in members] for a in members])
            variance = float(Fraction(volumes[place], volume) / 2**60)
            if variance > 1e-10:
                gain[place] = math.log(variance) + value[place]
        if not gain:
            break
        place = first_best(gain)
        volume = volumes[place]
        places.append(place)
        gains.append(gain[place])
    rest = sorted(set(range(len(whole))) - set(places), key=lambda place: (-relevance[place], place))
    rest = rest[: min(k, len(whole)) - len(places)]
    return places + rest, gains + [-math.inf] * len(rest)


@many
@given(ranked(), wanted, scales)
def test_dpp_is_the_greedy_search_over_determinants_back_filled_by_relevance(case, k, scale):
    relevance, vectors = case
    chosen = dpp(relevance, vectors, k, scale=scale)
    places, gains = literal(relevance, vectors, k, scale)
    assert is_selection(chosen.places.tolist(), len(vectors), k)
    assert chosen.places.tolist() == places
    assert chosen.gains == pytest.approx(gains, abs=1e-5)


@pytest.mark.parametrize("seed", range(40))
def test_dpp_agrees_with_the_log_determinants_of_linear_algebra(seed):
    vectors, relevance = gaussian(14, 8, seed), np.random.default_rng(seed).random(14)
    similar = (1 + vectors.astype(np.float64) @ vectors.astype(np.float64).T) / 2
    weight = np.exp((1 + relevance) / 2 / (2 * 0.1))
    ensemble = weight[:, None] * similar * weight
    places, logs = [], [0.0]
    for _ in range(5):
        free = [place for place in range(14) if place not in places]
        members = [[*places, place] for place in free]
        volumes = [np.linalg.slogdet(ensemble[np.ix_(one, one)])[1] for one in members]
        places.append(free[int(np.argmax(volumes))])
        logs.append(max(volumes))
    chosen = dpp(relevance, vectors, 5, scale=0.1)
    assert chosen.places.tolist() == places
    assert chosen.gains == pytest.approx(np.diff(logs), abs=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_greedy_comes_near_the_best_set_of_all(seed):
    # No bound holds for this kernel; in these cases greedy loses at most half a nat.
    vectors, relevance = gaussian(12, 6, seed), np.zeros(12)
    similar = (1 + vectors.astype(np.float64) @ vectors.astype(np.float64).T) / 2
    best = max(np.linalg.slogdet(similar[np.ix_(one, one)])[1] for one in map(list, combinations(range(12), 4)))
    chosen = dpp(relevance, vectors, 4, scale=1.0)
    assert best - 0.5 <= chosen.gains.sum() - 4 * 0.5 <= best + 1e-9


def test_two_steps_by_hand():
    # r = 1, .9, .5 from cosines 1, .8, 0 and scale .5. First: log 1 + 2 = 2. Its kernel with the others is .9 and .5,
    # so their variances are 1 − .81 = .19 and 1 − .25 = .75: log .19 + 1.8 = .139 and log .75 + 1 = .712.
    # Given both, the second's variance is the determinant of all three over that of the two, .75.
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    chosen = dpp(np.array([1.0, 0.8, 0.0]), vectors, 3, scale=0.5)
    assert chosen.places.tolist() == [0, 2, 1]
    three = np.linalg.det(np.array([[1, 0.9, 0.5], [0.9, 1, 0.8], [0.5, 0.8, 1]]))
    assert chosen.gains == pytest.approx([2, math.log(0.75) + 1, math.log(three / 0.75) + 1.8], abs=1e-6)
    assert chosen.against.tolist() == [-1, 0, 0]


def test_copies_have_no_volume_and_fill_up_by_relevance():
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [1, 0]], dtype=np.float32)
    chosen = dpp(np.array([0.5, 0.4, 0.3, 0.35, 0.2]), vectors, 5)
    assert chosen.places.tolist() == [0, 3, 1, 2, 4]
    assert np.isfinite(chosen.gains).tolist() == [True, True, False, False, False]
    assert chosen.against.tolist() == [-1, 0, 0, 3, 0]


def test_a_tiny_scale_gives_the_most_relevant_and_a_huge_one_the_plain_determinant():
    vectors, relevance = gaussian(30, 16), np.sort(np.random.default_rng(3).random(30))[::-1].copy()
    assert dpp(relevance, vectors, 10, scale=1e-7).places.tolist() == list(range(10))
    assert dpp(relevance, vectors, 10, scale=1e9).places.tolist() == dpp(np.zeros(30), vectors, 10).places.tolist()


def test_no_scale_loses_a_demonstration_to_underflow():
    vectors, relevance = gaussian(100, 384), np.linspace(1, -1, 100)
    for scale in (1e-300, 1e-6, 0.01, 1e300):
        assert is_selection(dpp(relevance, vectors, 20, scale=scale).places.tolist(), 100, 20)


@some
@given(ranked(), wanted, scales)
def test_min_max_takes_relevance_mapped_to_zero_and_one(case, k, scale):
    relevance, vectors = case
    spread = relevance.max() - relevance.min() if len(relevance) else 0
    mapped = (relevance - relevance.min()) / spread if spread else np.zeros(len(relevance))
    chosen = dpp(relevance, vectors, k, scale=scale, scaling="min-max")
    assert chosen.places.tolist() == dpp(2 * mapped - 1, vectors, k, scale=scale).places.tolist()


def test_copies_tie_wherever_they_stand():
    vectors = np.repeat(gaussian(3, 384), [200, 101, 30], axis=0)
    assert dpp(np.full(331, 0.5), vectors, 3).places.tolist()[0] == 0
    assert set(dpp(np.full(331, 0.5), vectors, 3).places.tolist()) == {0, 200, 301}


@some
@given(ranked(), wanted, scales)
def test_a_smaller_k_gives_the_first_picks_of_a_larger(case, k, scale):
    relevance, vectors = case
    larger = dpp(relevance, vectors, k + 3, scale=scale).places.tolist()
    assert dpp(relevance, vectors, k, scale=scale).places.tolist() == larger[:k]


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_not_above_zero_is_an_error(scale):
    with pytest.raises(InvalidInput, match=r"scale = .*; expected a number above 0"):
        dpp(np.zeros(1), np.ones((1, 1), dtype=np.float32), 1, scale=scale)


def test_an_unknown_scaling_is_an_error():
    with pytest.raises(InvalidInput, match="scaling 'z'; expected one of raw, min-max"):
        dpp(np.zeros(1), np.ones((1, 1), dtype=np.float32), 1, scaling="z")
