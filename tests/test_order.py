"""Orders, seeding and strategies: pure functions of counts, seeds and ids."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.ranking.order import ORDERS
from retriever.ranking.seeding import permutation
from retriever.ranking.strategies import STRATEGIES, strategy_names
from retriever.ranking.strategies.base import Candidates
from retriever.ranking.strategies.random import shares

counts = st.integers(0, 40)
GOLDEN = {
    (10, 0, "q", "select"): [2, 6, 0, 7, 8, 4, 9, 1, 3, 5],
    (10, 1, "q", "select"): [7, 3, 0, 9, 6, 4, 8, 2, 1, 5],
    (10, 0, "r", "select"): [5, 0, 3, 2, 9, 7, 6, 4, 1, 8],
    (10, 0, "q", "order"): [8, 5, 2, 6, 7, 9, 4, 3, 0, 1],
    (1, 0, "q", "select"): [0],
    (0, 0, "q", "select"): [],
}


def test_the_orders_have_these_names():
    assert list(ORDERS) == ["best-last", "best-first", "edges", "random"]


@given(st.sampled_from(list(ORDERS)), counts, st.integers(), st.text())
def test_every_order_is_a_permutation(name, count, seed, query_id):
    assert sorted(ORDERS[name](count, seed, query_id)) == list(range(count))


@given(counts, st.integers(), st.text())
def test_best_first_is_best_last_reversed(count, seed, query_id):
    assert ORDERS["best-first"](count, seed, query_id) == list(range(count))
    assert ORDERS["best-last"](count, seed, query_id) == ORDERS["best-first"](count, seed, query_id)[::-1]


@pytest.mark.parametrize(
    ("count", "ranks"),
    [(0, []), (1, [0]), (2, [1, 0]), (3, [1, 2, 0]), (4, [1, 3, 2, 0]), (5, [1, 3, 4, 2, 0]), (6, [1, 3, 5, 4, 2, 0])],
)
def test_edges_by_hand(count, ranks):
    assert ORDERS["edges"](count, 0, "") == ranks


@given(st.integers(1, 40))
def test_edges_get_weaker_towards_the_middle(count):
    ranks = ORDERS["edges"](count, 0, "")
    weakest = ranks.index(count - 1)
    assert ranks[: weakest + 1] == sorted(ranks[: weakest + 1])
    assert ranks[weakest:] == sorted(ranks[weakest:], reverse=True)


@pytest.mark.parametrize(("arguments", "wanted"), GOLDEN.items())
def test_permutations_have_these_fixed_values(arguments, wanted):
    found = permutation(*arguments)
    assert found.dtype == np.int64
    assert found.tolist() == wanted


def test_permutations_are_the_same_in_a_process_with_another_hash_seed():
    code = (
        f"from retriever.ranking.seeding import permutation\nfor a in {list(GOLDEN)!r}: print(permutation(*a).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [str(wanted) for wanted in GOLDEN.values()]


def test_the_random_order_is_the_permutation_for_that_purpose():
    assert ORDERS["random"](10, 0, "q") == GOLDEN[10, 0, "q", "order"]


@given(st.integers(0, 200), st.integers(), st.text(), st.text())
def test_a_permutation_holds_every_number_once(count, seed, query_id, purpose):
    assert sorted(permutation(count, seed, query_id, purpose).tolist()) == list(range(count))


def test_permutations_differ_by_seed_query_and_purpose_and_treat_all_places_alike():
    drawn = {tuple(permutation(20, s, q, p)) for s in range(5) for q in ("a", "b") for p in ("select", "order")}
    assert len(drawn) == 20
    firsts = np.bincount([permutation(4, seed, "q", "select")[0] for seed in range(2000)], minlength=4)
    assert (abs(firsts - 500) < 100).all()  # over five standard deviations


NAMES = ["top", "random", "fixed", "mmr", "dpp", "sift", "coverage", "balanced", "cluster", "complexity"]


def test_the_strategies_have_these_names():
    assert list(STRATEGIES) == NAMES
    assert list(strategy_names())[: len(NAMES)] == NAMES


@given(st.sampled_from(["top", "random", "fixed"]), st.integers(0, 12), st.integers(0, 15))
def test_top_random_and_fixed_take_the_first_k_of_the_candidates(name, count, k):
    strategy = STRATEGIES[name]
    candidates = Candidates(np.arange(count)[::-1].copy(), np.linspace(1, 0, count), reader=None)
    assert len(candidates) == count
    assert strategy.pick(candidates, k, strategy.options()).places.tolist() == list(range(min(k, count)))
    assert strategy.depth(k, 100, strategy.options()) == k


def test_only_random_sees_its_candidates_shuffled_by_query_or_for_all_alike():
    assert [name for name, one in STRATEGIES.items() if one.shuffled_by(one.options(), "q") is not None] == ["random"]
    random = STRATEGIES["random"]
    assert random.shuffled_by(random.options(), "q") == "q"
    assert random.shuffled_by(random.options(static=True), "q") == ""


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 20), min_size=1), st.data())
def test_shares_are_within_one_of_the_exact_share_and_sum_to_k(sizes, data):
    total = sum(sizes.values())
    k = data.draw(st.integers(0, total))
    given_ = shares(Counter(sizes), k)
    assert sum(given_.values()) == k
    for name, size in sizes.items():
        assert abs(given_[name] - size * k / total) < 1
        assert given_[name] <= size


def test_shares_go_to_the_largest_remainders_and_equal_ones_by_name():
    # 10 · (5, 3, 2) / 10 = 5, 3, 2 exactly; of 4: 2.0, 1.2, 0.8, so the last one is rounded up.
    assert shares(Counter(a=5, b=3, c=2), 10) == Counter(a=5, b=3, c=2)
    assert shares(Counter(a=5, b=3, c=2), 4) == Counter(a=2, b=1, c=1)
    assert shares(Counter(b=1, a=1), 1) == Counter(a=1)
