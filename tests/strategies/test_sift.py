"""Query-variance selection against the posterior variance solved anew, and against numbers worked out by hand."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategy_cases import (
    ZERO,
    dot,
    first_best,
    fractions,
    gaussian,
    is_selection,
    many,
    matrices,
    some,
    vectors,
    wanted,
)

from retriever.errors import InvalidInput
from retriever.ranking.strategies.sift import Stop, left_open, sift

noises = st.sampled_from([0.0078125, 0.125, 1.0])
queries = vectors.map(lambda row: np.array(row, dtype=np.float32))


def solved(matrix, right):
    """The solution of a positive definite system, by elimination in fractions."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i in range(len(rows)):
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for j in range(len(rows)):
            if j != i:
                rows[j] = [a - rows[j][i] * b for a, b in zip(rows[j], rows[i], strict=True)]
    return [row[-1] for row in rows]


def posterior_variance(query, rows, members, noise):
    """k(q, q) − k_q (K + noise)⁻¹ k_q, over the observations at `members`."""
    kernel = [[dot(rows[a], rows[b]) + (noise if a == b else 0) for b in members] for a in members]
    with_query = [dot(query, rows[a]) for a in members]
    return dot(query, query) - dot(with_query, solved(kernel, with_query))


def remaining_after(query, matrix, k, noise):
    """What is open after each pick."""
    return left_open(query, matrix[sift(query, matrix, k, noise=noise).places], noise=noise)[1:]


def numeric_variance(query, rows, members, noise):
    chosen = rows[members]
    kernel = chosen @ chosen.T + noise * np.eye(len(members))
    return float(query @ query - (chosen @ query) @ np.linalg.solve(kernel, chosen @ query))


@many
@given(queries, matrices(6), st.integers(0, 8), noises)
def test_sift_lowers_the_posterior_variance_most_at_every_step(query, matrix, k, noise):
    chosen = sift(query, matrix, k, noise=noise)
    assert is_selection(chosen.places.tolist(), len(matrix), k)
    remaining = left_open(query, matrix[chosen.places], noise=noise)
    goal, rows, exact_noise = fractions([query])[0], fractions(matrix), Fraction(noise)
    for step, place in enumerate(chosen.places[:4].tolist()):
        before = chosen.places[:step].tolist()
        variance = posterior_variance(goal, rows, before, exact_noise)
        gain = {
            other: variance - posterior_variance(goal, rows, [*before, other], exact_noise)
            for other in range(len(rows))
            if other not in before
        }
        assert place == first_best(gain)
        assert chosen.gains[step] == pytest.approx(float(gain[place]), abs=1e-12)
        assert remaining[step + 1] == pytest.approx(float(variance - gain[place]), abs=1e-12)


@many
@given(queries, matrices(5), st.randoms(use_true_random=False), noises)
def test_what_any_observations_leave_open_is_the_posterior_variance(query, matrix, random, noise):
    order = list(range(len(matrix)))
    random.shuffle(order)
    goal, rows = fractions([query])[0], fractions(matrix)
    expected = [posterior_variance(goal, rows, order[:n], Fraction(noise)) for n in range(len(order) + 1)]
    assert left_open(query, matrix[order], noise=noise) == pytest.approx([float(one) for one in expected], abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_sift_agrees_with_linear_algebra_on_larger_cases(seed):
    rows, noise = gaussian(41, 12, seed), 0.1
    query, rows = rows[0], rows[1:]
    wide, goal, places = rows.astype(np.float64), query.astype(np.float64), []
    for _ in range(10):
        free = [place for place in range(40) if place not in places]
        variances = [numeric_variance(goal, wide, [*places, place], noise) for place in free]
        places.append(free[int(np.argmin(variances))])
    chosen = sift(query, rows, 10, noise=noise)
    assert chosen.places.tolist() == places
    remaining = left_open(query, rows[places], noise=noise)
    assert remaining[-1] == pytest.approx(numeric_variance(goal, wide, places, noise), abs=1e-6)


def test_the_second_copy_is_worth_noise_over_two_plus_noise_of_the_first():
    query = np.array([1, 0], dtype=np.float32)
    copies = np.array([[1, 0], [1, 0]], dtype=np.float32)
    chosen = sift(query, copies, 2, noise=0.5)
    # First 1 / 1.5; then c = v = 1 − 1 / 1.5 = 1/3 and the gain (1/9) / (1/3 + 1/2) = 2/15.
    assert chosen.gains == pytest.approx([2 / 3, 2 / 15])
    assert chosen.gains[1] / chosen.gains[0] == pytest.approx(0.5 / 2.5)
    assert left_open(query, copies, noise=0.5) == pytest.approx([1, 1 / 3, 1 / 5])
    assert chosen.against.tolist() == [-1, 0]


def test_a_second_direction_of_the_query_beats_a_copy_of_the_first():
    # q = (.8, .6). (1, 0) gives .64 / 1.25, its copy then .64 · (.2)² / (.2 + .25) = .057, (0, 1) gives .36 / 1.25.
    query = np.array([0.8, 0.6], dtype=np.float32)
    chosen = sift(query, np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32), 3, noise=0.25)
    assert chosen.places.tolist() == [0, 2, 1]
    assert chosen.gains == pytest.approx([0.512, 0.288, 0.64 * 0.04 / 0.45], abs=1e-7)
    assert chosen.against.tolist() == [-1, -1, 0]


def test_an_opposite_counts_as_explained():
    # Given (1, 0), of (-.8, .6) the share .64 / 1.25 is explained, though with a negative sign; of (0, 1) nothing.
    rows = np.array([[1, 0], [-0.8, 0.6], [0, 1]], dtype=np.float32)
    chosen = sift(rows[0], rows, 3, noise=0.25)
    assert chosen.places.tolist() == [0, 1, 2]
    assert chosen.against.tolist() == [-1, 0, 1]


@some
@given(queries, matrices(), wanted, noises)
def test_the_remaining_variance_never_rises_and_is_never_negative(query, matrix, k, noise):
    remaining = remaining_after(query, matrix, k, noise)
    assert (np.diff(remaining) <= 1e-12).all()
    assert (remaining >= -1e-12).all()


@some
@given(queries, matrices().filter(len), noises)
def test_the_first_pick_is_the_nearest_or_the_most_opposite(query, matrix, noise):
    lengths = np.linalg.norm(matrix, axis=1) > 0
    cosines = np.abs(matrix.astype(np.float64) @ query.astype(np.float64)) * lengths
    assert cosines[sift(query, matrix, 1, noise=noise).places[0]] >= cosines.max() - 1e-3


def test_nothing_can_be_gained_at_a_zero_query():
    query = np.array(ZERO, dtype=np.float32)
    chosen = sift(query, np.eye(4, dtype=np.float32), 3)
    assert chosen.places.tolist() == [0, 1, 2]
    assert chosen.gains.tolist() == [0, 0, 0]
    assert left_open(query, np.eye(4, dtype=np.float32)).tolist() == [0, 0, 0, 0, 0]


@some
@given(queries, matrices(), wanted, noises)
def test_a_smaller_k_gives_the_first_picks_of_a_larger(query, matrix, k, noise):
    larger = sift(query, matrix, k + 3, noise=noise).places.tolist()
    assert sift(query, matrix, k, noise=noise).places.tolist() == larger[:k]


def test_the_confidence_rule_keeps_a_pick_while_its_deviation_is_at_most_one_over_alpha_i():
    # Copies of the query at noise 1 leave the variance 1 / (1 + i): deviations .71, .58, .5, .45, .41 …; with alpha .8
    # the limits are 1.25, .63, .42: the third is too many.
    copies = np.tile(np.array([1, 0], dtype=np.float32), (6, 1))
    assert left_open(copies[0], copies, noise=1.0) == pytest.approx([1 / (1 + i) for i in range(7)])
    assert len(sift(copies[0], copies, 6, noise=1.0, stop=Stop(alpha=0.8))) == 2
    assert len(sift(copies[0], copies, 6, noise=1.0, stop=Stop(alpha=0.8, least=4))) == 4
    assert len(sift(copies[0], copies, 6, noise=1.0, stop=Stop(alpha=100))) == 1


def test_the_drop_rule_keeps_a_pick_while_it_lowers_the_variance_by_that_share():
    # The i-th copy lowers 1 / i to 1 / (1 + i), by 1 / (1 + i) of it: .5, .33, .25, .2.
    copies = np.tile(np.array([1, 0], dtype=np.float32), (6, 1))
    assert len(sift(copies[0], copies, 6, noise=1.0, stop=Stop(drop=0.3))) == 2
    assert len(sift(copies[0], copies, 6, noise=1.0, stop=Stop(drop=0.22))) == 3


@some
@given(
    queries,
    matrices(),
    wanted,
    st.builds(Stop, alpha=st.none() | st.floats(0.1, 10), drop=st.floats(0, 1), least=st.integers(0, 4)),
)
def test_an_early_stop_only_cuts_the_end(query, matrix, k, stop):
    whole, cut = sift(query, matrix, k), sift(query, matrix, k, stop=stop)
    assert cut.places.tolist() == whole.places[: len(cut)].tolist()
    assert len(cut) >= min(stop.least, k, len(matrix))


def test_copies_tie_wherever_they_stand():
    matrix = np.repeat(gaussian(1, 384), 331, axis=0)
    assert sift(gaussian(1, 384, 5)[0], matrix, 20).places.tolist() == list(range(20))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stop(alpha=0.0), "alpha = 0.0"),
        (lambda: Stop(drop=1.5), "drop = 1.5"),
        (lambda: Stop(least=-1), "least = -1"),
        (lambda: sift(np.ones(1, dtype=np.float32), np.ones((1, 1), dtype=np.float32), 1, noise=0.0), "noise = 0.0"),
        (lambda: sift(np.ones(2, dtype=np.float32), np.ones((1, 1), dtype=np.float32), 1), "query of shape"),
    ],
)
def test_settings_out_of_range_are_errors(make, message):
    with pytest.raises(InvalidInput, match=message):
        make()
