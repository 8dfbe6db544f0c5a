"""The join of near copies finds what a comparison of all texts with all texts finds."""

from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from indexes.analyzers import character_ngrams
from retriever.curation.similar import Cluster, Pair, clusters, near_matches
from retriever.errors import InvalidInput
from retriever.example import Example
from retriever.ranking.guard import Guard, leak, normalised

WORDS = [
    "card",
    "cards",
    "Card!",
    "lost",
    "lose",
    "my",
    "Straße",
    "STRASSE",
    "a",
    "aa",
    "aaaaaa",
    "カード",
    "1",
    "2",
    "-",
]
sentences = st.lists(
    st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join) | st.text("ab ", max_size=6), max_size=9
)
thresholds = st.sampled_from([0.07, 0.3, 0.5, 0.6, 0.75, 0.9, 1.0]) | st.floats(0.01, 1.0)


def alike(first, second):
    first, second = normalised(first), normalised(second)
    if sorted(first.split()) == sorted(second.split()):
        return 1.0
    ours, theirs = (set(character_ngrams(text, 4)) for text in (first, second))
    return len(ours & theirs) / len(ours | theirs)


def pairs_by_force(texts, threshold):
    pairs = (
        Pair(first, second, alike(texts[first], texts[second])) for first, second in combinations(range(len(texts)), 2)
    )
    return [pair for pair in pairs if pair.likeness >= threshold]


def components_by_force(texts, threshold):
    components = [{place} for place in range(len(texts))]
    for pair in pairs_by_force(texts, threshold):
        joined = [one for one in components if pair.first in one or pair.second in one]
        components = [one for one in components if one not in joined] + [set().union(*joined)]
    return sorted(tuple(sorted(one)) for one in components if len(one) > 1)


@given(sentences, thresholds)
@example(["", "?", "x"], 0.5)
@example(["abcdef", "abcdeg"], 3 / 7)
def test_texts_matched_with_themselves_are_the_pairs_of_a_comparison_of_all_with_all(texts, threshold):
    matched = [pair for pairs in near_matches(texts, texts, threshold) for pair in pairs]
    assert sorted(pair for pair in matched if pair.first < pair.second) == pairs_by_force(texts, threshold)


@given(sentences, sentences, thresholds)
def test_a_query_matches_the_texts_that_the_leak_guard_keeps_from_it(queries, texts, threshold):
    guard = Guard("near", threshold)
    expected = [
        [
            Pair(q, t, alike(query, text))
            for t, text in enumerate(texts)
            if leak(Example("q", query), Example("t", text), guard)
        ]
        for q, query in enumerate(queries)
    ]
    assert list(near_matches(queries, texts, threshold)) == expected


@given(sentences, thresholds)
def test_clusters_are_the_connected_components_in_the_order_of_their_first_members(texts, threshold):
    found = clusters(texts, threshold)
    assert [one.members for one in found] == components_by_force(texts, threshold)
    assert all(threshold <= one.likeness <= 1 for one in found)


@pytest.mark.parametrize("count", [15, 16, 17, 80])
@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_large_clusters_in_which_most_comparisons_are_skipped_are_whole(count, threshold):
    texts = [f"my order {place * 7919 % 1000} has not been delivered to me yet" for place in range(count)]
    texts += ["something else entirely", *(f"{text} please" for text in texts[:5])]
    assert [one.members for one in clusters(texts, threshold)] == components_by_force(texts, threshold)


def test_a_cluster_is_held_together_by_texts_that_are_not_all_alike():
    texts = ["abcdefgh", "abcdefghi", "abcdefghij", "zzz"]
    grams = [set(character_ngrams(text, 4)) for text in texts]
    steps = [len(grams[i] & grams[i + 1]) / len(grams[i] | grams[i + 1]) for i in range(2)]
    # 7 and 8 four-grams, 6 shared; 8 and 9, 7 shared; the outer two 7 and 9, 6 shared.
    assert steps == [6 / 9, 7 / 10]
    assert clusters(texts, 0.65) == [Cluster((0, 1, 2), 6 / 9)]
    assert clusters(texts, 0.7) == [Cluster((1, 2), 7 / 10)]


def test_texts_that_say_the_same_are_alike_by_1():
    texts = ["Where is my card?", "other", "where IS my card", "my card, where is"]
    assert list(near_matches(texts[:1], texts, 1.0)) == [[Pair(0, 0, 1.0), Pair(0, 2, 1.0), Pair(0, 3, 1.0)]]
    assert clusters(texts, 1.0) == [Cluster((0, 2, 3), 1.0)]


def test_many_copies_of_one_text_are_one_cluster_without_a_comparison_of_all():
    assert clusters(["Hello!", "hello"] * 50_000, 0.9) == [Cluster(tuple(range(100_000)), 1.0)]


def test_no_texts_and_one_text_have_no_copies():
    for texts in ([], ["alone"]):
        assert clusters(texts, 0.9) == []
        assert list(near_matches(texts, [], 0.9)) == [[] for _ in texts]
        assert list(near_matches([], texts, 0.9)) == []


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.1, float("nan")])
def test_a_threshold_that_finds_everything_or_nothing_is_refused(threshold):
    for call in (
        lambda: clusters(["a"], threshold),
        lambda: list(near_matches(["a"], ["a"], threshold)),
    ):
        with pytest.raises(InvalidInput, match="over 0, up to 1"):
            call()


def test_progress_is_told_in_distinct_texts_and_in_queries():
    told = []
    clusters(["a b", "b c", "A B"], 0.9, lambda done, total: told.append((done, total)))
    list(near_matches(["x", "y", "z"], ["a"], 0.9, lambda done, total: told.append((done, total))))
    assert told == [(1, 2), (2, 2), (1, 3), (2, 3), (3, 3)]
