"""Analyzers and the vocabulary: which terms a text has, and where a term is found again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexes.analyzers import analyzer, character_ngrams, identifiers, words
from indexes.errors import InvalidInput
from indexes.vocabulary import Vocabulary

NAMES = ["default", "stem:english", "stem:german", "code", "char:1", "char:3", "char:16"]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        ("  ... !? ", []),
        ("My card hasn't arrived!", ["my", "card", "hasn", "t", "arrived"]),
        ("the cat THE Cat", ["the", "cat", "the", "cat"]),
        ("snake_case_name", ["snake", "case", "name"]),
        ("Über Straße 42", ["über", "straße", "42"]),
        ("ﬁne ＡＢＣ", ["fine", "abc"]),
        ("हिन्दी", ["हिन्दी"]),
        ("信用卡", ["信用", "用卡"]),
        ("卡", ["卡"]),
        ("my信用卡x", ["my", "信用", "用卡", "x"]),
        ("カード 한국어", ["カー", "ード", "한국", "국어"]),
    ],
)
def test_default_takes_unicode_words_in_lower_case_and_cjk_as_bigrams(text, terms):
    assert analyzer("default")(text) == terms


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("getUserName2", ["getusername2", "get", "user", "name", "2"]),
        ("snake_case", ["snake_case", "snake", "case"]),
        ("HTTPServer", ["httpserver", "http", "server"]),
        ("plain", ["plain"]),
        ("__init__", ["init"]),
        ("___", []),
        ("x = foo.barBaz()", ["x", "foo", "barbaz", "bar", "baz"]),
    ],
)
def test_code_keeps_identifiers_whole_and_by_parts(text, terms):
    assert identifiers(text) == terms
    assert analyzer("code")(text) == terms


@pytest.mark.parametrize(
    ("text", "n", "grams"),
    [
        ("ab", 3, [" ab", "ab "]),
        ("A\t\n b", 3, [" a ", "a b", " b "]),
        ("a", 5, [" a "]),
        ("", 3, []),
        (" \n ", 2, []),
        ("ab", 1, [" ", "a", "b", " "]),
    ],
)
def test_character_ngrams_overlap_and_include_one_space_at_both_ends(text, n, grams):
    assert character_ngrams(text, n) == grams
    assert analyzer(f"char:{n}")(text) == grams


def test_stemming_joins_the_forms_of_a_word():
    assert analyzer("stem:english")("Connected connections, connecting") == ["connect"] * 3
    assert analyzer("stem:german")("Häuser") == analyzer("stem:german")("Haus")


@pytest.mark.parametrize(
    "name", ["", "Default", "default:x", "stem", "stem:", "stem:klingon", "char:0", "char:17", "char:x", "char:-1", "c"]
)
def test_an_unknown_analyzer_is_refused_by_name(name):
    with pytest.raises(InvalidInput) as caught:
        analyzer(name)
    assert name.partition(":")[2] in str(caught.value)
    assert caught.value.expected


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_an_analyzer_gives_an_analyzer_of_that_name_back(name):
    assert analyzer(analyzer(name).name).name == name


def test_a_name_with_leading_zeros_is_stored_in_one_spelling():
    assert analyzer("char:03").name == "char:3"


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text(st.characters(codec=None)))
def test_every_analyzer_takes_every_text_and_its_terms_can_be_stored_and_found(name, text):
    terms = analyzer(name)(text)
    assert terms == analyzer(name)(text)
    assert all(terms)
    distinct = sorted(set(terms))
    vocabulary = Vocabulary.from_terms(distinct)
    assert list(vocabulary) == distinct
    assert [vocabulary.find(term) for term in distinct] == list(range(len(distinct)))


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_text_has_the_same_words_in_any_case_and_beside_other_scripts(text):
    assert words(text) == words(text.upper())
    assert words(f"{text} é") == [*words(text), "é"]


@given(st.sets(st.text()), st.text())
def test_the_vocabulary_finds_exactly_the_terms_it_holds(terms, other):
    ordered = sorted(terms)
    vocabulary = Vocabulary.from_terms(ordered)
    assert len(vocabulary) == len(ordered)
    assert list(vocabulary) == ordered
    assert [vocabulary.find(term) for term in ordered] == list(range(len(ordered)))
    assert vocabulary.find(other) == (ordered.index(other) if other in terms else -1)


def test_the_vocabulary_is_two_flat_arrays_from_which_it_can_be_opened_again():
    vocabulary = Vocabulary.from_terms(["a", "bc", "é"])
    assert bytes(vocabulary.blob) == b"abc\xc3\xa9"
    assert vocabulary.offsets.tolist() == [0, 1, 3, 5]
    assert vocabulary.offsets.dtype == np.int64
    assert list(Vocabulary(vocabulary.blob.copy(), vocabulary.offsets.copy())) == ["a", "bc", "é"]
