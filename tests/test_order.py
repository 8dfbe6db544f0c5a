"""Orders, seeding and strategies: pure functions of counts, seeds and ids."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.errors import InvalidInput
from retriever.example import Example
from retriever.ranking.order import ORDERS
from retriever.ranking.recipe import Recipe
from retriever.ranking.seeding import permutation
from retriever.ranking.strategies import STRATEGIES, strategy_names
from retriever.ranking.strategies.base import Candidates
from retriever.ranking.strategies.random import shares
from retriever.selection import Demonstration, Selection

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
    assert list(ORDERS) == ["best-last", "best-first", "edges", "random", "complexity", "label-interleaved"]


def blank(count):
    return [Example(str(rank), "") for rank in range(count)]


examples = st.lists(
    st.builds(
        Example,
        st.just("x"),
        st.sampled_from(["", "one", "two words", "now three words"]),
        rationale=st.sampled_from([None, "", "A. B.", "A\nB\nC"]),
        label=st.sampled_from([None, "a", "b", ["b", "a"], ["c"]]),
    ),
    max_size=12,
)


@given(st.sampled_from(list(ORDERS)), examples, st.integers(), st.text())
def test_every_order_is_a_permutation(name, shown, seed, query_id):
    assert sorted(ORDERS[name](shown, seed, query_id)) == list(range(len(shown)))


@given(counts, st.integers(), st.text())
def test_best_first_is_best_last_reversed(count, seed, query_id):
    assert ORDERS["best-first"](blank(count), seed, query_id) == list(range(count))
    assert ORDERS["best-last"](blank(count), seed, query_id) == ORDERS["best-first"](blank(count), seed, query_id)[::-1]


@pytest.mark.parametrize(
    ("count", "ranks"),
    [(0, []), (1, [0]), (2, [1, 0]), (3, [1, 2, 0]), (4, [1, 3, 2, 0]), (5, [1, 3, 4, 2, 0]), (6, [1, 3, 5, 4, 2, 0])],
)
def test_edges_by_hand(count, ranks):
    assert ORDERS["edges"](blank(count), 0, "") == ranks


@given(st.integers(1, 40))
def test_edges_get_weaker_towards_the_middle(count):
    ranks = ORDERS["edges"](blank(count), 0, "")
    weakest = ranks.index(count - 1)
    assert ranks[: weakest + 1] == sorted(ranks[: weakest + 1])
    assert ranks[weakest:] == sorted(ranks[weakest:], reverse=True)


def test_complexity_goes_from_easy_to_hard_and_of_equals_the_better_is_later():
    rationales = ["A. B. C.", "A.", None, "A. B.", "A. B."]
    shown = [Example(str(rank), "x", rationale=one) for rank, one in enumerate(rationales)]
    assert ORDERS["complexity"](shown, 0, "") == [2, 1, 4, 3, 0]
    words = [Example(str(rank), one) for rank, one in enumerate(["a b", "a", "a b c", "a b"])]
    assert ORDERS["complexity"](words, 0, "") == [1, 3, 0, 2]


def labelled(labels):
    return [Example(str(rank), "x", label=label or None) for rank, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "ranks"),
    [
        ("", []),
        ("a", [0]),
        ("aab", [1, 2, 0]),
        ("abc", [2, 1, 0]),
        ("aabb", [3, 1, 2, 0]),
        ("aaa", [2, 1, 0]),
        ("acbbb", [4, 3, 1, 2, 0]),  # after a the best is c, but then nothing would part the three b
    ],
)
def test_interleaved_labels_by_hand(labels, ranks):
    assert ORDERS["label-interleaved"](labelled(labels), 0, "") == ranks


@given(st.text("abc", min_size=1, max_size=6))
def test_interleaved_labels_have_as_few_equal_neighbours_as_a_best_last_order_can_have(labels):
    def equal(ranks):
        return sum(labels[one] == labels[other] for one, other in pairwise(ranks))

    found = ORDERS["label-interleaved"](labelled(labels), 0, "")
    assert found[-1] == 0
    assert equal(found) == min(equal((*rest, 0)) for rest in permutations(range(1, len(labels))))


def test_within_a_label_the_better_stands_later():
    labels = "abacabcab"
    found = ORDERS["label-interleaved"](labelled(labels), 0, "")
    for label in "abc":
        mine = [rank for rank in found if labels[rank] == label]
        assert mine == sorted(mine, reverse=True)


def selected(by, shared=(), count=4):
    demonstrations = tuple(
        Demonstration(Example(str(i), "x"), i + 1, 1.0, {}, "top", shared=i in shared) for i in range(count)
    )
    recipe = Recipe.of({"order": {"by": by}})
    return Selection(Example("q", "x"), demonstrations, (), count, recipe, "gen-000001", 1)


def shown_ids(selection):
    return "".join(one.example.id for one in selection.in_prompt_order)


def test_what_all_queries_share_comes_first_as_it_was_chosen():
    assert shown_ids(selected("best-last")) == "3210"
    assert shown_ids(selected("best-last", shared=(0, 1))) == "0132"
    assert shown_ids(selected("edges", shared=(0,))) == "0231"


def test_a_caller_can_arrange_the_demonstrations():
    selection = selected("best-last").arranged(lambda shown: [1, 0, *range(2, len(shown))])
    assert shown_ids(selection) == "1023"
    assert selection.ids == ("0", "1", "2", "3")
    assert [one["id"] for one in selection.to_dict()["demonstrations"]] == list("1023")


@pytest.mark.parametrize("ranks", [[0, 1, 2], [0, 1, 2, 2], [0, 1, 2, 4], [-1, 0, 1, 2], []])
def test_an_order_of_a_caller_must_give_each_rank_once(ranks):
    with pytest.raises(InvalidInput, match="each of the ranks 0 to 3 once"):
        selected("best-last").arranged(lambda shown: ranks)


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
    assert ORDERS["random"](blank(10), 0, "q") == GOLDEN[10, 0, "q", "order"]


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
