"""Adaptive k: how many demonstrations the scores speak for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.errors import InvalidInput
from retriever.ranking.adaptive import Adaptive, by_confidence, by_elbow, by_threshold
from retriever.ranking.strategies.sift import left_open


def scores(*values):
    return np.array(values, dtype=np.float64)


@pytest.mark.parametrize(
    ("given_", "least", "most", "kept"),
    [
        (scores(0.9, 0.8, 0.4, 0.3), 0, 4, 2),
        (scores(0.9, 0.8, 0.4, 0.3), 3, 4, 3),
        (scores(0.9, 0.8, 0.4, 0.3), 0, 1, 1),
        (scores(0.4, 0.9), 0, 2, 0),  # what is kept is the beginning
        (scores(0.5, 0.5 - 1e-9), 0, 2, 2),  # equal up to rounding
        (scores(0.9), 3, 5, 1),
        (scores(), 1, 5, 0),
    ],
)
def test_a_threshold_keeps_what_comes_before_the_first_score_below_it(given_, least, most, kept):
    assert by_threshold(given_, least, most, 0.5) == kept


@pytest.mark.parametrize(
    ("given_", "least", "most", "kept"),
    [
        (scores(0.9, 0.8, 0.3, 0.2), 1, 4, 2),
        (scores(0.9, 0.2, 0.1, 0.05), 1, 4, 1),
        (scores(0.9, 0.2, 0.1, 0.05), 2, 4, 2),  # of the drops after 2 and 3 the first is larger
        (scores(0.9, 0.8, 0.7, 0.1), 1, 3, 3),  # the drop after the third counts, though the fourth is not shown
        (scores(0.9, 0.6, 0.3), 1, 3, 2),  # equal drops: more is kept
        (scores(0.5, 0.5, 0.5), 1, 2, 2),  # no drop
        (scores(0.9, 0.1), 0, 5, 1),  # never nothing
        (scores(0.9), 1, 5, 1),
        (scores(), 0, 5, 0),
        (scores(0.9, 0.1), 0, 0, 0),
    ],
)
def test_an_elbow_is_the_largest_drop(given_, least, most, kept):
    assert by_elbow(given_, least, most) == kept


@pytest.mark.parametrize(
    ("confidence", "least", "most", "kept"),
    [(0.4, 0, 4, 1), (0.5, 0, 4, 2), (0.75, 0, 4, 3), (0.9, 0, 4, 4), (0.4, 3, 4, 3), (0.75, 0, 2, 2), (0.0, 0, 4, 0)],
)
def test_confidence_keeps_the_fewest_that_explain_enough(confidence, least, most, kept):
    assert by_confidence(scores(1.0, 0.6, 0.5, 0.25, 0.2), least, most, confidence) == kept


def test_nothing_is_needed_where_enough_is_explained_before():
    assert by_confidence(scores(0.25, 0.2), 0, 1, 0.75) == 0
    assert by_confidence(scores(0.25, 0.2), 1, 1, 0.75) == 1
    assert by_confidence(scores(0.25), 1, 1, 0.9) == 0  # there is none


values = st.lists(st.floats(0, 1), max_size=12).map(lambda one: np.array(one, dtype=np.float64))
bounds = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted)


@given(values, bounds, st.floats(0, 1))
def test_what_is_kept_lies_between_the_bounds_as_far_as_there_are_any(given_, bound, level):
    least, most = bound
    for kept in (
        by_threshold(given_, least, most, level),
        by_elbow(given_, least, most),
        by_confidence(np.array([1.0, *given_]), least, most, level),
    ):
        assert min(least, len(given_)) <= kept <= min(most, len(given_))


@given(values, st.integers(0, 5), st.floats(0, 1))
def test_a_higher_threshold_never_keeps_more(given_, least, level):
    assert by_threshold(given_, least, 12, level) <= by_threshold(given_, least, 12, level / 2)


@given(st.lists(st.integers(0, 20), min_size=2, max_size=10).map(lambda one: sorted(one, reverse=True)))
def test_the_elbow_equals_a_search_over_all_cuts(whole):
    given_ = np.array(whole, dtype=np.float64)
    drops = {cut: whole[cut - 1] - whole[cut] for cut in range(1, len(whole))}
    largest = max(drops.values())
    expected = max(cut for cut, drop in drops.items() if drop == largest) if largest else len(whole)
    assert by_elbow(given_, 1, len(whole)) == expected


def test_confidence_reads_what_sift_leaves_open():
    query = (np.array([0.8, 0.6, 0.0])).astype(np.float32)
    open_variance = left_open(query, np.eye(3, dtype=np.float32), noise=0.1)
    # The gains are .64 / 1.1 = .582 and .36 / 1.1 = .327.
    assert by_confidence(open_variance, 0, 3, 0.55) == 1
    assert by_confidence(open_variance, 0, 3, 0.9) == 2
    assert by_confidence(open_variance, 0, 3, 0.95) == 3


@pytest.mark.parametrize("bound", [(-1, 2), (3, 2)])
def test_impossible_bounds_are_refused(bound):
    with pytest.raises(InvalidInput, match="0 ≤ least ≤ most"):
        by_elbow(scores(1.0), *bound)


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(InvalidInput, match="one finite number"):
        by_threshold(scores(np.nan), 0, 1, 0.5)


def test_the_settings_say_which_rule_holds_and_when():
    given_ = scores(0.9, 0.8, 0.3, 0.2)
    assert Adaptive().before(given_, 4) == 4
    assert Adaptive("threshold", threshold=0.85).before(given_, 4) == 1
    assert Adaptive("elbow").before(given_, 4) == 2
    assert Adaptive("elbow", k_min=9).before(given_, 4) == 4
    assert Adaptive("confidence").before(given_, 4) == 4
    assert Adaptive("confidence", confidence=0.6).after(lambda: given_, 3, 4) == 2
    assert Adaptive("confidence", confidence=0.6, k_min=9).after(lambda: given_, 3, 4) == 3
    assert Adaptive("elbow").after(lambda: pytest.fail("not asked"), 3, 4) == 3


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"by": "guess"}, "adaptive.by"),
        ({"k_min": -1}, "adaptive.k_min"),
        ({"threshold": float("nan")}, "adaptive.threshold"),
        ({"confidence": 1.5}, "adaptive.confidence"),
    ],
)
def test_settings_that_cannot_be_used_are_named(options, key):
    with pytest.raises(InvalidInput, match=key):
        Adaptive(**options)
