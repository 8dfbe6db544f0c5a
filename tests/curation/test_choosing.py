"""Vote-k, k-center and facility location against their definitions, worked out anew at every step."""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.curation import chosen
from retriever.curation.facility import facility
from retriever.curation.kcenter import kcenter
from retriever.curation.neighbours import nearest_rows
from retriever.curation.votek import votek
from retriever.errors import InvalidInput
from retriever.ranking.strategies.exact import exact_vectors
from tests.strategies.strategy_cases import TIE, dot, first_best, fractions, gaussian, is_selection, many, matrices

METHODS = [votek, kcenter, facility]
budgets = st.integers(0, 12)


def apart(a, b):
    return dot(a, a) - 2 * dot(a, b) + dot(b, b)


@many
@given(matrices(), budgets, st.integers(0, 3))
def test_kcenter_takes_the_farthest_from_all_that_it_holds(vectors, budget, held):
    rows, taken = fractions(vectors), list(range(min(held, len(vectors))))
    places, gains = [], []
    while len(places) < min(budget, len(rows) - min(held, len(rows))):
        free = [i for i in range(len(rows)) if i not in taken]
        if taken:
            merit = {i: min(apart(rows[i], rows[j]) for j in taken) for i in free}
        else:
            mean = [Fraction(round(sum(column) / len(rows) * 2**26), 2**26) for column in zip(*rows, strict=True)]
            merit = {i: 2 * dot(rows[i], mean) - dot(rows[i], rows[i]) for i in free}
        place = first_best(merit)
        gains.append(float(merit[place]) ** 0.5 if taken else float("inf"))
        places.append(place)
        taken.append(place)
    found = kcenter(vectors, budget, held=range(min(held, len(vectors))))
    assert found.places.tolist() == places
    assert found.gains == pytest.approx(gains, abs=1e-6)


@many
@given(matrices(), budgets, st.integers(0, 3))
def test_facility_takes_what_adds_most_to_the_cover(vectors, budget, held):
    rows, taken = fractions(vectors), list(range(min(held, len(vectors))))

    def cover(members):
        return sum((max([Fraction(0), *(dot(row, rows[j]) for j in members)]) for row in rows), Fraction(0))

    places, gains = [], []
    while len(places) < min(budget, len(rows) - min(held, len(rows))):
        merit = {i: cover([*taken, i]) - cover(taken) for i in range(len(rows)) if i not in taken}
        place = first_best(merit)
        gains.append(float(merit[place]))
        places.append(place)
        taken.append(place)
    found = facility(vectors, budget, held=range(min(held, len(vectors))))
    assert found.places.tolist() == places
    assert found.gains == pytest.approx(gains, abs=1e-6)


@pytest.mark.parametrize("block", [1 << 30, 7 * 8 * 150])
@pytest.mark.parametrize("held", [0, 30])
@pytest.mark.parametrize("seed", range(3))
def test_gains_of_facility_are_to_the_bit_those_of_sums_worked_out_anew(seed, held, block, monkeypatch):
    monkeypatch.setattr(chosen, "BLOCK_BYTES", block)
    vectors = gaussian(150, 6, seed)
    whole = cosines_in_whole_numbers(vectors)
    taken = list(range(held))
    covered = np.maximum(whole[:, :held].max(axis=1, initial=0), 0)
    found = facility(vectors, 60, held=taken)
    for place, gain in zip(found.places.tolist(), found.gains.tolist(), strict=True):
        gains = np.maximum(whole - covered[:, None], 0).sum(axis=0)
        gains[taken] = -1
        assert place == int(np.argmax(gains >= gains.max() - float(TIE) * 2**32))
        assert gain == int(gains[place]) / 2**32
        taken.append(place)
        covered = np.maximum(covered, whole[:, place])
    assert len(taken) == held + 60


def cosines_in_whole_numbers(vectors):
    """In units of 2⁻³², from sums of whole numbers; int64, shape (n, n)."""
    whole = np.rint(vectors.astype(np.float64) * 2**26).astype(np.int64)
    return np.rint((whole @ whole.T).astype(np.float64) / 2**20).astype(np.int64)


@many
@given(matrices(), budgets, st.integers(1, 4), st.sampled_from([1.0, 2.0, 10.0]), st.integers(0, 3))
def test_votek_takes_the_best_of_the_votes_counted_anew(vectors, budget, neighbours, rho, held):
    # The neighbours are those of the pool; the count of votes is the definition, in fractions.
    grid, squares = exact_vectors(vectors)
    near = literal_neighbours(grid, squares, neighbours)
    taken, places, gains = list(range(min(held, len(vectors)))), [], []
    while len(places) < min(budget, len(vectors) - min(held, len(vectors))):
        score = dict.fromkeys([i for i in range(len(vectors)) if i not in taken], Fraction(0))
        for v in [v for v in near if v not in taken]:
            for u in near[v]:
                if u in score:
                    score[u] += Fraction(int(rho)) ** -len(set(near[v]) & set(taken))
        place = min(i for i, votes in score.items() if votes == max(score.values()))
        gains.append(float(score[place]))
        places.append(place)
        taken.append(place)
    held_rows = range(min(held, len(vectors)))
    found = votek(vectors, budget, neighbours=neighbours, rho=rho, held=held_rows)
    assert found.places.tolist() == places
    assert found.gains == pytest.approx(gains, rel=1e-12)


def literal_neighbours(grid, squares, count):
    """Whom each row votes for: cosines of centred vectors, rounded as the module says, then counted in fractions."""
    real = [i for i in range(len(grid)) if squares[i]]
    if not real:
        return {}
    halves = {i: np.rint((grid[i] - grid.sum(axis=0) / len(real)) / 2 * 2**26) / 2**26 for i in real}
    units = {i: np.rint(h / np.sqrt(h @ h) * 2**26) / 2**26 for i, h in halves.items() if h.any()}
    exact = {i: [Fraction(float(x)) for x in unit] for i, unit in units.items()}
    return {
        i: sorted((j for j in exact if j != i), key=lambda j, i=i: (-dot(exact[i], exact[j]), j))[:count] for i in exact
    }


@pytest.mark.parametrize("seed", range(8))
def test_kcenter_leaves_no_row_farther_than_twice_the_best_radius(seed):
    vectors = gaussian(12, 3, seed).astype(np.float64)
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    best = min(distances[:, list(centres)].min(axis=1).max() for centres in combinations(range(12), 4))
    found = kcenter(vectors.astype(np.float32), 4).places
    assert distances[:, found].min(axis=1).max() <= 2 * best + 1e-6


def test_votek_on_two_far_cliques_goes_from_one_to_the_other():
    vectors = np.array([[1, 0]] * 5 + [[0, 1]] * 5, dtype=np.float32)
    places = votek(vectors, 10, neighbours=4).places
    assert (places[:8] >= 5).tolist() == [False, True] * 4


def test_votek_by_hand():
    # Less their mean, rows 0 and 2 are each nearest to row 1: it has two votes, and nobody has more.
    angles = np.radians([0, 10, 19, 120])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = votek(vectors, 1, neighbours=1)
    assert found.places.tolist() == [1]
    assert found.gains.tolist() == [2.0]


def test_facility_by_hand():
    # Cosines 0.8 and 0.6: row 1 covers .8 + 1 + .6 = 2.4; then row 2 adds .4, row 0 only .2.
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    found = facility(vectors, 3)
    assert found.places.tolist() == [1, 2, 0]
    assert found.gains == pytest.approx([2.4, 0.4, 0.2], abs=1e-6)


@many
@given(matrices(), st.integers(1, 5))
def test_neighbours_are_the_nearest_others_and_equals_go_to_the_lower_row(vectors, count):
    grid = exact_vectors(vectors[vectors.any(axis=1)])[0]
    rows = fractions(grid)
    found, cosines = nearest_rows(grid, count)
    for i, row in enumerate(rows):
        others = sorted((j for j in range(len(rows)) if j != i), key=lambda j, row=row: (-dot(row, rows[j]), j))[:count]
        assert found[i].tolist() == others
        assert cosines[i].tolist() == [float(dot(row, rows[j])) for j in others]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [0, 1, 3, 50])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_min_of_budget_and_rows_are_chosen_none_twice(method, count, budget):
    for vectors in (gaussian(count, 4), np.zeros((count, 4), np.float32), np.tile(gaussian(1, 4), (count, 1))):
        found = method(vectors, budget)
        assert is_selection(found.places.tolist(), count, budget)
        assert len(found) == len(found.gains)


@pytest.mark.parametrize("method", METHODS)
def test_copies_and_zero_vectors_are_taken_in_row_order_once_nothing_else_is_left(method):
    vectors = np.array([[0, 0], [1, 0], [1, 0], [1, 0]], dtype=np.float32)
    assert sorted(method(vectors, 4).places.tolist()[1:]) == sorted(set(range(4)) - {method(vectors, 1).places[0]})
    assert method(np.tile(gaussian(1, 4), (5, 1)), 5).places.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("method", METHODS)
def test_a_smaller_budget_gives_the_first_rows_of_a_larger_and_held_rows_stand_for_choices(method):
    vectors = gaussian(60, 8)
    twelve = method(vectors, 12).places.tolist()
    assert method(vectors, 5).places.tolist() == twelve[:5]
    assert method(vectors, 7, held=twelve[:5]).places.tolist() == twelve[5:]


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_used_is_an_error(method):
    with pytest.raises(InvalidInput, match="k = -1"):
        method(gaussian(3, 2), -1)
    with pytest.raises(InvalidInput, match="held row 3; expected rows from 0 to 2"):
        method(gaussian(3, 2), 1, held=[3])
    with pytest.raises(InvalidInput, match="squared length"):
        method(2 * gaussian(3, 2), 1)


def test_settings_of_votek_out_of_range_are_errors():
    with pytest.raises(InvalidInput, match="neighbours = 0; expected 1 or more"):
        votek(gaussian(3, 2), 1, neighbours=0)
    with pytest.raises(InvalidInput, match=r"rho = 0\.5"):
        votek(gaussian(3, 2), 1, rho=0.5)


def test_votes_that_are_tiny_still_decide():
    # With a large ρ every score is soon far below any absolute margin; the choice must not fall back to row order.
    vectors = gaussian(40, 4, 1)
    found = votek(vectors, 30, neighbours=12, rho=1000.0)
    assert found.gains[-1] < 1e-9
    assert found.places.tolist()[20:] != sorted(found.places.tolist()[20:])


@pytest.mark.parametrize("method", METHODS)
def test_progress_ends_with_all_that_there_is(method):
    told = []
    method(gaussian(20, 4), 5, progress=lambda *one: told.append(one))
    ends = {stage: (done, total) for stage, done, total in told}
    assert ends.pop("choosing") == (5, 5)
    assert ends.pop("comparing", None) == (None if method is kcenter else (20, 20))
    assert all(done == total for done, total in ends.values())
