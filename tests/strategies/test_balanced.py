"""Label balance against literal definitions, exhaustive search over small sets, and cases worked out by hand."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategy_cases import is_selection, many, some, wanted

from retriever.errors import InvalidInput
from retriever.ranking.strategies.balanced import balanced

MODES = ["soft", "strict", "round-robin"]
single = st.lists(st.sampled_from("abcd"), max_size=8).map(lambda labels: [{label} for label in labels])
several = st.lists(st.sets(st.sampled_from("abcd"), max_size=3), max_size=9)
quotas = st.none() | st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3))


def chosen(labels, k, mode, quotas=None):
    return balanced(labels, np.linspace(1, 0, len(labels)), k, mode=mode, quotas=quotas).places.tolist()


def counts(labels, places):
    return Counter(label for place in places for label in labels[place])


def by_label(labels):
    """For single labels: the rank of each candidate within its label, and of its label among the labels."""
    order = list(dict.fromkeys(label for mine in labels for label in mine))
    seen, ranks = Counter(), []
    for (label,) in labels:
        ranks.append((seen[label], order.index(label), label))
        seen[label] += 1
    return ranks, order


@many
@given(several, wanted, st.sampled_from(MODES), quotas)
def test_every_mode_fills_k_without_a_repeat(labels, k, mode, quotas):
    places = chosen(labels, k, mode, quotas)
    assert is_selection(places, len(labels), k)


@many
@given(single, wanted, quotas)
def test_soft_is_the_best_set_that_has_every_labels_least_number(labels, k, quotas):
    available, present = counts(labels, range(len(labels))), len(by_label(labels)[1])
    least = quotas if quotas is not None else dict.fromkeys(available, 1) if present <= k else {}
    if sum(min(number, available[label]) for label, number in least.items()) > k:
        return
    balanced_sets = [
        places
        for places in combinations(range(len(labels)), min(k, len(labels)))
        if all(counts(labels, places)[label] >= min(number, available[label]) for label, number in least.items())
    ]
    # The best: no candidate of the set can be exchanged for a better one. In this order of sets it is the first.
    assert chosen(labels, k, "soft", quotas) == list(min(balanced_sets))


@many
@given(single, wanted, quotas)
def test_strict_takes_the_first_of_each_label_up_to_its_quota_then_fills_up(labels, k, quotas):
    ranks, order = by_label(labels)
    k = min(k, len(labels))
    equal = {label: k // len(order) + (number < k % len(order)) for number, label in enumerate(order)}
    quota = equal if quotas is None else quotas
    within = [place for place, (rank, _, label) in enumerate(ranks) if rank < quota.get(label, 0)][:k]
    rest = [place for place in range(len(labels)) if place not in within]
    assert chosen(labels, k, "strict", quotas) == (within + rest)[:k]


@many
@given(single, wanted, quotas)
def test_round_robin_goes_by_the_rank_within_the_label_then_by_the_label(labels, k, quotas):
    ranks, _ = by_label(labels)
    turns = sorted(range(len(labels)), key=lambda place: ranks[place][:2])
    within = [place for place in turns if ranks[place][0] < (quotas or {}).get(ranks[place][2], 99)]
    rest = [place for place in range(len(labels)) if place not in within]
    assert chosen(labels, k, "round-robin", quotas) == (within + rest)[:k]


@some
@given(several, wanted)
def test_soft_shows_every_label_where_k_is_enough_even_if_candidates_have_several(labels, k):
    every = set().union(*labels)
    places = chosen(labels, k, "soft")
    if len(every) <= k:
        assert set().union(*(labels[place] for place in places)) == every
    else:
        assert places == list(range(min(k, len(labels))))


@some
@given(several, wanted, quotas.filter(lambda quotas: quotas is not None))
def test_strict_exceeds_no_quota_before_it_has_to(labels, k, quotas):
    left, within = Counter(quotas), []
    for place, mine in enumerate(labels):
        if mine and len(within) < k and min(left[label] for label in mine) > 0:
            within.append(place)
            left.subtract(mine)
    places = chosen(labels, k, "strict", quotas)
    assert places[: len(within)] == within
    assert places[len(within) :] == sorted(places[len(within) :])


def test_three_modes_by_hand():
    labels = [{"a"}, {"a"}, {"a"}, {"b"}, {"a"}, {"c"}, set()]
    assert chosen(labels, 4, "soft") == [0, 1, 3, 5]
    assert chosen(labels, 2, "soft") == [0, 1]
    assert chosen(labels, 4, "strict") == [0, 1, 3, 5]
    assert chosen(labels, 6, "strict") == [0, 1, 3, 5, 2, 4]
    assert chosen(labels, 5, "round-robin") == [0, 3, 5, 1, 2]
    assert chosen(labels, 3, "strict", {"b": 1, "c": 1}) == [3, 5, 0]
    assert chosen(labels, 3, "soft", {"c": 1}) == [0, 1, 5]


def test_a_candidate_counts_for_each_of_its_labels():
    labels = [{"a", "b"}, {"a"}, {"b"}, {"c"}]
    picks = balanced(labels, np.array([0.9, 0.8, 0.7, 0.6]), 3, mode="strict", quotas={"a": 1, "b": 1, "c": 1})
    assert picks.places.tolist() == [0, 3, 1]
    assert picks.gains.tolist() == [0.9, 0.6, 0.8]
    assert picks.against.tolist() == [-1, -1, 0]


def test_the_order_within_a_set_of_labels_does_not_matter():
    first = [("b", "a"), ("c",), ("a",), ("b",)]
    second = [("a", "b"), ("c",), ("a",), ("b",)]
    assert chosen(first, 4, "round-robin") == chosen(second, 4, "round-robin") == [0, 3, 1, 2]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([{"a"}], {"quotas": {"a": -1}}, "quotas"),
        ([{"a"}], {"mode": "hard"}, "mode 'hard'; expected one of soft, strict, round-robin"),
        (["ab"], {}, "a text for labels"),
    ],
)
def test_settings_that_cannot_be_used_are_errors(labels, options, message):
    with pytest.raises(InvalidInput, match=message):
        balanced(labels, np.zeros(1), 1, **options)
