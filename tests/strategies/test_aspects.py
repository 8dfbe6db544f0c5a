"""What candidates cover of a query: n-grams, token vectors and names, against literal definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategy_cases import many, some, vectors

from indexes.late_interaction import TokenVectors, recall
from retriever.errors import InvalidInput
from retriever.ranking.strategies.aspects import Aspects, named_aspects, term_aspects, token_aspects

texts = st.lists(st.integers(0, 3), max_size=8)


def arrays(candidates):
    """Candidates' sequences as one array and its offsets."""
    offsets = np.cumsum([0, *map(len, candidates)])
    return np.array([term for one in candidates for term in one], dtype=np.int64), offsets


def grams(text, longest):
    return {tuple(text[i : i + n]) for n in range(1, longest + 1) for i in range(len(text) - n + 1)}


@many
@given(texts, st.lists(texts, max_size=6), st.integers(1, 5))
def test_a_candidate_covers_the_query_ngrams_it_contains(query, candidates, longest):
    aspects = term_aspects(np.array(query, dtype=np.int64), *arrays(candidates), longest=longest)
    wanted = grams(query, longest)
    assert aspects.covered.shape == (len(candidates), len(wanted))
    shared = [len(wanted & grams(one, longest)) for one in candidates]
    assert aspects.covered.sum(axis=1).tolist() == shared
    # Parts are numbered alike for all candidates: two share exactly the parts that are n-grams of both.
    both = aspects.covered @ aspects.covered.T
    assert both.tolist() == [
        [len(wanted & grams(a, longest) & grams(b, longest)) for b in candidates] for a in candidates
    ]
    assert aspects.weights.tolist() == [1.0] * len(wanted)


@some
@given(texts.filter(len), st.integers(1, 5))
def test_an_ngram_is_worth_the_mean_of_its_terms(query, longest):
    weight = {term: 2.0**term for term in query}
    aspects = term_aspects(
        np.array(query), *arrays([query]), longest=longest, weights=np.array([weight[term] for term in query])
    )
    expected = sorted(sum(weight[term] for term in gram) / len(gram) for gram in grams(query, longest))
    assert sorted(aspects.weights.tolist()) == pytest.approx(expected)


def test_an_ngram_does_not_reach_over_the_end_of_a_candidate():
    aspects = term_aspects(np.array([1, 2]), np.array([0, 1, 2, 1, 2]), np.array([0, 2, 3, 5]), longest=2)
    # Parts: 1, 2, and 1 2, which only the third contains; the first ends with 1 where the second begins with 2.
    assert aspects.covered.tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 1]]


def test_term_numbers_may_be_hashes():
    query = np.array([2**62, -(2**62), 7])
    aspects = term_aspects(query, np.array([7, 2**62, -(2**62)]), np.array([0, 3]), longest=3)
    assert aspects.covered.sum() == 3 + 1  # the three terms, and the first two in a row


def tokens(rows, width=4):
    return np.array(rows, dtype=np.float32).reshape(len(rows), width)


@many
@given(st.lists(vectors, max_size=4), st.lists(st.lists(vectors, max_size=4), max_size=5))
def test_a_token_is_covered_as_far_as_the_most_similar_token_is_like_it(query, candidates):
    flat, offsets = [row for one in candidates for row in one], np.cumsum([0, *map(len, candidates)])
    aspects = token_aspects(recall(tokens(query), TokenVectors(tokens(flat), offsets)))
    literal = [[max([0.0, *(float(np.dot(a, b)) for b in one)]) for a in query] for one in candidates]
    assert aspects.covered == pytest.approx(
        np.minimum(np.array(literal).reshape(len(candidates), len(query)), 1), abs=1e-9
    )


def test_named_aspects_by_hand():
    names = [{"date", "place"}, set(), {"name"}]
    assert named_aspects(names, {"place": 2.0, "name": 1.0, "time": 1.0}).covered.tolist() == [
        [1, 0, 0],
        [0, 0, 0],
        [0, 1, 0],
    ]
    every = named_aspects(names)
    assert every.covered.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert every.weights.tolist() == [1, 1, 1]
    assert named_aspects([]).covered.shape == (0, 0)


@pytest.mark.parametrize("offsets", [[], [1, 2], [0, 1], [0, 2, 1, 2]])
def test_offsets_that_do_not_fit_are_errors(offsets):
    with pytest.raises(InvalidInput, match="offsets that do not fit; expected offsets rising from 0 to 2"):
        term_aspects(np.array([1]), np.array([1, 2]), np.array(offsets, dtype=np.int64))


def test_shapes_and_numbers_that_cannot_be_used_are_errors():
    with pytest.raises(InvalidInput, match="weights of shape"):
        Aspects(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(InvalidInput, match="covered with a number below 0"):
        Aspects(np.full((1, 1), -0.5), np.ones(1))
    with pytest.raises(InvalidInput, match="weights with a number below 0 or not finite"):
        Aspects(np.zeros((1, 1)), np.array([np.nan]))
    with pytest.raises(InvalidInput, match="weights of shape"):
        term_aspects(np.array([1, 2]), np.array([1]), np.array([0, 1]), weights=np.ones(3))
    with pytest.raises(InvalidInput, match="longest = 0"):
        term_aspects(np.array([1]), np.array([1]), np.array([0, 1]), longest=0)
