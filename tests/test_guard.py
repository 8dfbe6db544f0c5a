"""The leak guard: which examples would give away the query's answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.example import Example
from retriever.ranking.guard import LEVELS, jaccard, leak, normalised
from retriever.ranking.recipe import Guard

QUERY = Example("q", "Where is my card?", meta={"author": "ann"})
CASES = {
    "itself": (Example("q", "something else altogether"), "self", "the query itself"),
    "copy": (Example("e", "Where is my card?"), "exact", "same input as the query"),
    "retyped": (Example("e", "WHERE  is my card!!"), "normalised", "but for case, punctuation or white space"),
    "full width": (Example("e", "ｗｈｅｒｅ is my card"), "normalised", "but for case"),
    "permuted": (Example("e", "my card, where is"), "near", "same words as the query in another order"),
    "alike": (Example("e", "Where is my cards?"), "near", "near copy of the query (0."),
    "a sign": (Example("e", "Where is my card? \U0001f622"), "near", "near copy of the query (0."),
    "other": (Example("e", "How do I close an account?"), None, None),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", CASES)
def test_each_level_finds_what_it_names_and_what_the_levels_before_it_find(case, level):
    example, found_from, reason = CASES[case]
    said = leak(QUERY, example, Guard(level, threshold=0.7))
    if found_from is None or LEVELS.index(level) < LEVELS.index(found_from):
        assert said is None
    else:
        assert reason in said


def test_near_is_the_jaccard_index_of_character_4_grams():
    # " abcdef " has 5 four-grams, " abcdeg " has 5; 3 are shared (" abc", "abcd", "bcde"): 3 / 7.
    query, example = Example("q", "abcdef"), Example("e", "abcdeg")
    assert leak(query, example, Guard("near", threshold=3 / 7)) == "near copy of the query (0.43)"
    assert leak(query, example, Guard("near", threshold=0.43)) is None


def test_a_threshold_of_0_finds_everything_and_of_1_only_equal_sets_of_4_grams():
    query, example = Example("q", "abc"), Example("e", "xyz")
    assert leak(query, example, Guard("near", threshold=0.0)) is not None
    assert leak(query, example, Guard("near", threshold=1.0)) is None
    # Both have the 4-grams of a's run and of its two ends.
    assert leak(Example("q", "a" * 9), Example("e", "a" * 12), Guard("near", threshold=1.0)) is not None


def test_words_count_as_often_as_they_occur():
    guard = Guard("near", threshold=1.0)
    assert leak(Example("q", "no no yes"), Example("e", "yes no no"), guard) is not None
    assert leak(Example("q", "no no yes"), Example("e", "no yes yes"), guard) is None


@pytest.mark.parametrize("level", LEVELS)
def test_a_group_is_left_out_at_every_level(level):
    same = Example("e", "unrelated", meta={"author": "ann"})
    assert leak(QUERY, same, Guard(level, group="author")) == "same author as the query"
    assert leak(QUERY, same, Guard(level, group="meta.author")) == "same meta.author as the query"
    assert leak(QUERY, Example("e", "unrelated", meta={"author": "bob"}), Guard(level, group="author")) is None


def test_groups_are_equal_as_values_of_json_are():
    def shares(first, second):
        query, example = (Example(name, name, meta={"g": value}) for name, value in (("q", first), ("e", second)))
        return leak(query, example, Guard("off", group="g")) is not None

    assert shares(1, 1.0) and shares({"a": 1, "b": [2]}, {"b": [2.0], "a": 1})
    assert not shares(1, True) and not shares(1, "1")


def test_a_query_without_the_group_shares_it_with_nobody():
    assert leak(Example("q", "x"), Example("e", "unrelated"), Guard("off", group="author")) is None


def test_inputs_that_are_no_text_are_compared_as_json():
    query = Example("q", {"a": 1, "b": "X"})
    assert leak(query, Example("e", {"a": 1, "b": "X"}), Guard("exact")) == "same input as the query"
    assert leak(query, Example("e", {"a": 1, "b": "x"}), Guard("exact")) is None
    assert "but for case" in leak(query, Example("e", {"a": 1, "b": "x"}), Guard("normalised"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ""),
        ("?!", ""),
        ("Hello,  World!", "hello world"),
        ("snake_case-word", "snake case word"),
        ("STRASSE straße", "strasse strasse"),
        ("ﬁne ①", "fine 1"),
        ("a\u2028b\u00a0c\t", "a b c"),
        ("3 + 5 <= 9 - 1?", "3 + 5 <= 9 1"),
        ("क\u093f, क\u0940!", "क\u093f क\u0940"),
        ("great \U0001f44d!! bad \U0001f44e", "great \U0001f44d bad \U0001f44e"),
        ("10 € – ok…", "10 € ok"),
    ],
)
def test_normalised_text_by_hand(text, wanted):
    assert normalised(text) == wanted


def test_jaccard_by_hand():
    assert jaccard(frozenset("abc"), frozenset("bcd")) == 0.5
    assert jaccard(frozenset(), frozenset()) == 1.0
    assert jaccard(frozenset("a"), frozenset()) == 0.0


words = st.lists(st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8), min_size=1, max_size=8)
separators = st.text(" ,.;:!?-_\t\n\"'()", min_size=1, max_size=3)


@given(words, st.data())
def test_changes_of_case_and_punctuation_are_found_by_normalised(given_words, data):
    changed = data.draw(separators).join(
        "".join(letter.upper() if data.draw(st.booleans()) else letter for letter in word) for word in given_words
    )
    query = Example("q", " ".join(given_words))
    example = Example("e", data.draw(separators) + changed + data.draw(separators))
    assert leak(query, example, Guard("normalised")) is not None
    assert leak(query, example, Guard("near")) is not None


@given(words, st.randoms(use_true_random=False))
def test_permuted_words_are_found_by_near(given_words, random):
    shuffled = list(given_words)
    random.shuffle(shuffled)
    query, example = Example("q", " ".join(given_words)), Example("e", " ".join(shuffled))
    assert leak(query, example, Guard("near", threshold=1.0)) is not None
    assert (leak(query, example, Guard("normalised")) is None) is (shuffled != given_words)


@given(st.text("aB. "), st.text("aB. "), st.sampled_from("qe"), st.floats(0, 1))
def test_what_a_level_finds_every_later_level_finds(query, example, identity, threshold):
    pair = Example("q", query), Example(identity, example)
    found = [leak(*pair, Guard(level, threshold)) is not None for level in LEVELS]
    assert found == sorted(found)


@given(st.text(), st.text(), st.floats(0, 1))
def test_the_guard_does_not_depend_on_which_is_the_query(first, second, threshold):
    guard = Guard("near", threshold)
    there = leak(Example("q", first), Example("e", second), guard)
    back = leak(Example("q", second), Example("e", first), guard)
    assert there == back


@given(st.text())
def test_normalising_twice_changes_nothing_more(text):
    once = normalised(text)
    assert normalised(once) == once
