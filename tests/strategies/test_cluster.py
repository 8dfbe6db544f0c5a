"""k-means and the picks from its clusters: literal definitions, scikit-learn, and cases worked out by hand."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from strategy_cases import TIE, dot, fractions, gaussian, is_selection, many, matrices, some, wanted

from retriever.errors import InvalidInput
from retriever.ranking.strategies.cluster import cluster, simple
from retriever.ranking.strategies.exact import exact_vectors
from retriever.ranking.strategies.kmeans import kmeans, starts
from tests.support import outputs_by_threads

seeds = st.integers(0, 5)
counts = st.integers(1, 6)


def rounded(number):
    return Fraction(round(number * 2**26), 2**26)


def apart(a, b):
    return dot(a, a) - 2 * dot(a, b) + dot(b, b)


def literal_partition(vectors, first):
    """Lloyd's algorithm in fractions from these starting points: the members of each cluster, and the distances."""
    rows = fractions(vectors)
    centres = [rows[place] for place in first]
    while True:
        nearest = [min(range(len(centres)), key=lambda c: (apart(row, centres[c]), c)) for row in rows]
        before = list(centres)
        for c in range(len(centres)):
            mine = [row for row, owner in zip(rows, nearest, strict=True) if owner == c]
            if mine:
                centres[c] = [rounded(sum(column) / len(mine)) for column in zip(*mine, strict=True)]
        if centres == before:
            order = list(dict.fromkeys(nearest))
            return [order.index(c) for c in nearest], [apart(r, centres[c]) for r, c in zip(rows, nearest, strict=True)]


def literal_starts(vectors, count, seed):
    """k-means++ in fractions, with the raw numbers of the generator as draws from 0 to 1."""
    rows = fractions(vectors)
    draws = [Fraction(int(raw) >> 11, 2**53) for raw in np.random.PCG64(seed).random_raw(count)]
    chosen = [int(draws[0] * len(rows))]
    for draw in draws[1:]:
        nearest = [min(apart(row, rows[pick]) for pick in chosen) for row in rows]
        if not sum(nearest):
            break
        chosen.append(next(i for i in range(len(rows)) if sum(nearest[: i + 1]) > draw * sum(nearest)))
    return chosen


def literal_picks(members, distances, preferred, count):
    """Round by round the nearest of each cluster; those not preferred after all others."""
    chosen = []
    for wish in (True, False):
        free = [place for place in range(len(members)) if preferred[place] == wish]
        while free:
            for number in range(max(members) + 1):
                mine = [place for place in free if members[place] == number]
                if mine:
                    best = min(distances[place] for place in mine)
                    chosen.append(next(place for place in mine if distances[place] <= best + TIE))
                    free.remove(chosen[-1])
    return chosen[:count]


@many
@given(matrices(8).filter(len), counts, seeds)
def test_the_starting_points_are_drawn_by_squared_distance(vectors, count, seed):
    assert starts(*exact_vectors(vectors), count, seed) == literal_starts(vectors, count, seed)


@many
@given(matrices(8).filter(len), counts, seeds)
def test_k_means_is_lloyds_algorithm(vectors, count, seed):
    found = kmeans(*exact_vectors(vectors), count, seed)
    members, distances = literal_partition(vectors, literal_starts(vectors, count, seed))
    assert found.members.tolist() == members
    assert found.distances == pytest.approx([float(distance) for distance in distances], abs=1e-12)


@many
@given(matrices(8), wanted, seeds, st.data())
def test_the_picks_are_the_nearest_to_each_centre_round_by_round(vectors, k, seed, data):
    eligible = data.draw(st.lists(st.booleans(), min_size=len(vectors), max_size=len(vectors)))
    chosen = cluster(vectors, k, seed=seed, eligible=np.array(eligible, dtype=np.bool_))
    assert is_selection(chosen.places.tolist(), len(vectors), k)
    expected = []
    if len(vectors) and k:
        first = literal_starts(vectors, min(k, len(vectors)), seed)
        expected = literal_picks(*literal_partition(vectors, first), eligible, k)
    assert chosen.places.tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_k_means_agrees_with_scikit_learn_from_the_same_starting_points(seed):
    vectors = gaussian(200, 8, seed)
    grid, squares = exact_vectors(vectors)
    found = kmeans(grid, squares, 6, seed)
    peer = KMeans(6, init=grid[starts(grid, squares, 6, seed)], n_init=1, tol=0, algorithm="lloyd").fit(grid)
    # The same partition, whatever the numbers: as many pairs of numbers as there are clusters.
    assert len(set(zip(found.members.tolist(), peer.labels_.tolist(), strict=True))) == 6
    assert found.distances.sum() == pytest.approx(peer.inertia_, abs=1e-5)


def test_clusters_that_lie_apart_are_each_seen():
    groups = np.repeat(np.eye(6, dtype=np.float32), [5, 9, 2, 4, 7, 3], axis=0)
    chosen = cluster(groups, 6)
    # Clusters of copies: each is served by its first member.
    assert chosen.places.tolist() == [0, 5, 14, 16, 20, 27]
    assert chosen.gains.tolist() == [0] * 6
    assert chosen.against.tolist() == [-1] * 6


def test_copies_are_one_cluster_and_the_rest_comes_in_order():
    chosen = cluster(np.tile(np.array([1, 0], dtype=np.float32), (4, 1)), 3)
    assert chosen.places.tolist() == [0, 1, 2]
    assert chosen.against.tolist() == [-1, 0, 0]


def test_two_clusters_by_hand():
    # (1, 0), (.8, .6), (1, 0) have the centre (.933, .2), (0, -1) is alone. Squared distances: of (1, 0) .0444, of
    # (.8, .6) .1778.
    vectors = np.array([[0.8, 0.6], [1, 0], [0, -1], [1, 0]], dtype=np.float32)
    chosen = cluster(vectors, 4, clusters=2)
    assert chosen.places.tolist() == [1, 2, 3, 0]
    assert chosen.gains == pytest.approx([-2 / 45, 0, -2 / 45, -8 / 45], abs=1e-6)
    assert chosen.against.tolist() == [-1, -1, 1, 1]


def test_candidates_that_are_not_eligible_come_last():
    groups = np.repeat(np.eye(2, dtype=np.float32), 3, axis=0)
    eligible = np.array([False, True, False, False, False, False])
    assert cluster(groups, 4, clusters=2, eligible=eligible).places.tolist() == [1, 0, 3, 2]


@some
@given(matrices(8), wanted, seeds, st.data())
def test_sorting_by_complexity_keeps_the_set_and_puts_the_most_complex_first(vectors, k, seed, data):
    complexities = np.array(
        data.draw(st.lists(st.integers(0, 4), min_size=len(vectors), max_size=len(vectors))), dtype=np.float64
    )
    plain = cluster(vectors, k, seed=seed)
    chosen = cluster(vectors, k, seed=seed, complexities=complexities)
    assert sorted(chosen.places.tolist()) == sorted(plain.places.tolist())
    assert (np.diff(complexities[chosen.places]) <= 0).all()
    assert dict(zip(chosen.places.tolist(), chosen.gains.tolist(), strict=True)) == dict(
        zip(plain.places.tolist(), plain.gains.tolist(), strict=True)
    )


def test_auto_cot_takes_short_inputs_with_few_steps():
    inputs = ["word " * 60, "word " * 61, "short", "short"]
    assert simple(inputs, [None, None, "a\nb\nc\nd\ne", "a\nb\nc\nd\ne\nf"]).tolist() == [True, False, True, False]


def test_any_number_of_threads_gives_the_same_bits():
    code = (
        "import sys; sys.path.insert(0, 'tests/strategies')\n"
        "from strategy_cases import gaussian\n"
        "from retriever.ranking.strategies.cluster import cluster\n"
        "chosen = cluster(gaussian(700, 384), 20)\n"
        "print(chosen.places.tolist(), [gain.hex() for gain in chosen.gains.tolist()])"
    )
    assert len(outputs_by_threads(code, 1, 2)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed = -1"),
        ({"clusters": 0}, "clusters = 0"),
        ({"eligible": np.ones(2, dtype=np.bool_)}, "eligible of shape"),
        ({"complexities": np.ones(2)}, "complexities of shape"),
        ({"complexities": np.array([np.nan])}, "complexities that are not finite"),
    ],
)
def test_settings_that_cannot_be_used_are_errors(options, message):
    with pytest.raises(InvalidInput, match=message):
        cluster(np.ones((1, 1), dtype=np.float32), 1, **options)


def test_as_many_rationales_as_inputs_are_needed():
    with pytest.raises(InvalidInput, match="1 inputs; expected 2, one for each rationale"):
        simple(["one"], [None, None])
