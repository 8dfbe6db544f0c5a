"""The best of many scores against sorting all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexes.topk import possible, top


@st.composite
def cases(draw):
    """Scores with many ties, few or many beside k."""
    count = draw(st.integers(1, 2000))
    random = np.random.Generator(np.random.PCG64(draw(st.integers(0, 2**32))))
    kind = draw(st.sampled_from([np.float32, np.float64]))
    scores = random.integers(-5, draw(st.integers(-4, 5000)), size=count).astype(kind)
    return scores, draw(st.integers(1, count))


@given(cases(), st.randoms(use_true_random=False))
def test_top_is_the_beginning_of_the_total_order(case, random):
    scores, k = case
    rows = list(range(len(scores)))
    random.shuffle(rows)
    wanted = sorted(range(len(scores)), key=lambda place: (-scores[place], rows[place]))[:k]
    assert top(np.array(rows), scores.astype(np.float64), k).tolist() == wanted


@given(cases(), st.floats(0, 3))
def test_what_may_be_off_by_the_margin_stays_in(case, margin):
    scores, k = case
    cut = float(np.sort(scores)[-k]) - 2 * margin
    wanted = list(range(len(scores))) if k >= len(scores) else np.flatnonzero(scores >= cut).tolist()
    assert possible(scores, k, margin).tolist() == wanted


@pytest.mark.parametrize("k", [0, -1])
def test_nothing_is_asked_for(k):
    assert top(np.arange(3), np.zeros(3), k).tolist() == []
    assert possible(np.zeros(3), k, 0.1).tolist() == []


def test_infinite_scores_are_scores():
    scores = np.array([-np.inf] * 200 + [np.inf, 0.0])
    assert possible(scores, 1, 0.0).tolist() == [200]
    assert possible(scores, 2, 0.0).tolist() == [200, 201]
    assert len(possible(scores, 3, 0.0)) == 202
    assert top(np.arange(202), scores, 3).tolist() == [200, 201, 0]
