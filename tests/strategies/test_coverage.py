"""Greedy coverage against its definition in fractions, the paper's algorithm, and numbers worked out by hand."""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategy_cases import first_best, is_selection, many, shares, some, wanted

from retriever.errors import InvalidInput
from retriever.ranking.strategies.aspects import Aspects, named_aspects
from retriever.ranking.strategies.coverage import coverage


@st.composite
def cases(draw, most=8):
    """Candidates over a few parts, in eighths, with copies and with candidates that cover nothing."""
    parts = draw(st.integers(0, 4))
    row = st.lists(st.integers(0, 8), min_size=parts, max_size=parts)
    distinct = draw(st.lists(row, min_size=1, max_size=5))
    rows = draw(st.lists(st.sampled_from(distinct), max_size=most))
    weights = draw(st.lists(st.integers(0, 3), min_size=parts, max_size=parts))
    relevance = draw(st.lists(st.integers(-8, 8), min_size=len(rows), max_size=len(rows)))
    if draw(st.booleans()):
        relevance.sort(reverse=True)
    covered = np.array(rows, dtype=np.float64).reshape(len(rows), parts) / 8
    return Aspects(covered, np.array(weights, dtype=np.float64)), np.array(relevance, dtype=np.float64) / 8


def contributions(aspects):
    """c(part, candidate) in fractions, the weights summing to 1."""
    weights = [Fraction(w) for w in aspects.weights.tolist()]
    total = sum(weights) or 1
    return [[Fraction(c) * w / total for c, w in zip(row, weights, strict=True)] for row in aspects.covered.tolist()]


def worth(members, table):
    return sum((max(column) for column in zip(*(table[one] for one in members), strict=True)), Fraction(0))


def literal(aspects, relevance, k, weight):
    """The definition: a set is worth the sum of its best contributions; a complete cover is followed by another."""
    table, exact = contributions(aspects), [Fraction(r) for r in relevance.tolist()]
    places, gains, cover = [], [], []

    def best():
        added = {one: worth([*cover, one], table) - worth(cover, table) for one in free}
        gain = {one: added[one] + Fraction(weight) * exact[one] for one in free}
        place = first_best(gain)
        return place, added, gain[place]

    while len(places) < min(k, len(table)):
        free = [one for one in range(len(table)) if one not in places]
        place, added, gain = best()
        if added[place] <= 1e-9:
            cover = []
            place, added, gain = best()
            if max(added.values()) <= 1e-9:
                break
        places.append(place)
        gains.append(gain)
        cover.append(place)
    rest = sorted(set(range(len(table))) - set(places), key=lambda one: (-exact[one], one))
    rest = rest[: min(k, len(table)) - len(places)]
    return places + rest, gains + [Fraction(weight) * exact[one] for one in rest]


@many
@given(cases(), wanted, shares)
def test_coverage_is_the_greedy_search_with_restarts(case, k, weight):
    aspects, relevance = case
    chosen = coverage(aspects, relevance, k, relevance_weight=weight)
    places, gains = literal(aspects, relevance, k, weight)
    assert is_selection(chosen.places.tolist(), len(relevance), k)
    assert chosen.places.tolist() == places
    assert chosen.gains == pytest.approx([float(gain) for gain in gains], abs=1e-10)


def algorithm_one(table, k):
    """The paper's greedy search over plain numbers, ended where its loop would go on for ever."""
    places, current = [], [-1.0] * len(table[0])
    while len(places) < k:
        free = [one for one in range(len(table)) if one not in places]
        value = {one: sum(map(max, table[one], current)) for one in free}
        place = max(free, key=lambda one: (value[one], -one))
        if value[place] > sum(current):
            places.append(place)
            current = list(map(max, table[place], current))
        else:
            current = [-1.0] * len(table[0])
    return places


@some
@given(st.lists(st.lists(st.integers(1, 8), min_size=3, max_size=3), min_size=1, max_size=8), st.integers(1, 8))
def test_without_relevance_it_is_algorithm_one_of_the_paper(rows, k):
    k = min(k, len(rows))
    aspects = Aspects(np.array(rows, dtype=np.float64) / 8, np.ones(3))
    assert coverage(aspects, np.zeros(len(rows)), k, relevance_weight=0.0).places.tolist() == algorithm_one(rows, k)


@some
@given(cases().filter(lambda case: len(case[1]) >= 3))
def test_greedy_covers_at_least_one_minus_one_over_e_of_the_best_three(case):
    aspects, relevance = case
    table = contributions(aspects)
    best = max(worth(three, table) for three in combinations(range(len(table)), 3))
    chosen = coverage(aspects, relevance, 3, relevance_weight=0.0).places.tolist()
    assert worth(chosen, table) >= (1 - np.exp(-1)) * float(best) - 1e-9


def test_named_aspects_by_hand():
    # Weights 2, 1, 1 of 4. The first covers .5 + .25, the second the same, the third the last quarter. After the third
    # all is covered: a new cover starts, with the second, though the fourth is more relevant than it.
    names = [{"a", "b"}, {"a", "b"}, {"c"}, set()]
    aspects = named_aspects(names, {"a": 2.0, "b": 1.0, "c": 1.0})
    chosen = coverage(aspects, np.array([0.9, 0.5, 0.3, 0.7]), 4, relevance_weight=0.1)
    assert chosen.places.tolist() == [0, 2, 1, 3]
    assert chosen.gains == pytest.approx([0.84, 0.28, 0.8, 0.07])
    assert chosen.against.tolist() == [-1, -1, -1, -1]


def test_against_names_the_member_that_covers_most_of_the_pick():
    # The third shares a (.25) with the first and b, c (.5) with the second, and adds d.
    names = [{"a"}, {"b", "c"}, {"a", "b", "c", "d"}]
    aspects = named_aspects(names, dict.fromkeys("abcd", 1.0))
    chosen = coverage(aspects, np.array([1.0, 0.7, -1.0]), 3, relevance_weight=1.0)
    assert chosen.places.tolist() == [0, 1, 2]
    assert chosen.gains == pytest.approx([1.25, 1.2, 0.25 - 1])
    assert chosen.against.tolist() == [-1, -1, 1]


def test_of_members_that_cover_a_part_alike_the_earlier_holds_it():
    names = [{"a", "b"}, {"a", "c"}, {"a", "d"}]
    chosen = coverage(named_aspects(names), np.zeros(3), 3)
    assert chosen.places.tolist() == [0, 1, 2]
    assert chosen.against.tolist() == [-1, 0, 0]


def test_each_new_cover_starts_with_the_best_that_remains():
    aspects = Aspects(np.array([[0.5], [1.0], [0.75]]), np.ones(1))
    assert coverage(aspects, np.zeros(3), 3, relevance_weight=0.0).places.tolist() == [1, 2, 0]


def test_a_query_that_nothing_covers_is_filled_by_relevance():
    aspects = Aspects(np.zeros((3, 2)), np.ones(2))
    chosen = coverage(aspects, np.array([0.1, 0.3, 0.2]), 5, relevance_weight=0.5)
    assert chosen.places.tolist() == [1, 2, 0]
    assert chosen.gains == pytest.approx([0.15, 0.1, 0.05])


@some
@given(cases(), wanted, shares)
def test_a_smaller_k_gives_the_first_picks_of_a_larger(case, k, weight):
    aspects, relevance = case
    larger = coverage(aspects, relevance, k + 3, relevance_weight=weight).places.tolist()
    assert coverage(aspects, relevance, k, relevance_weight=weight).places.tolist() == larger[:k]


@some
@given(cases(), wanted, st.randoms(use_true_random=False))
def test_the_order_of_the_parts_changes_nothing(case, k, random):
    aspects, relevance = case
    order = list(range(len(aspects.weights)))
    random.shuffle(order)
    shuffled = coverage(Aspects(aspects.covered[:, order], aspects.weights[order]), relevance, k)
    chosen = coverage(aspects, relevance, k)
    assert shuffled.places.tolist() == chosen.places.tolist()
    assert shuffled.gains.tolist() == chosen.gains.tolist()


def test_a_negative_relevance_weight_is_an_error():
    with pytest.raises(InvalidInput, match="relevance_weight = -1"):
        coverage(named_aspects([set()]), np.zeros(1), 1, relevance_weight=-1)
