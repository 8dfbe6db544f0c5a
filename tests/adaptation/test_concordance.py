"""Concordance of logged prompts: what it counts, how sure it says it is, and that it is, and what it takes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from retriever.adaptation.concordance import Standings, agreements
from retriever.adaptation.validation import Compared


def by_pairs(scores, standing, parts):
    """Of each prompt the right pairs and all pairs, pair by pair."""
    agreed, pairs = np.zeros(len(scores)), np.zeros(len(scores))
    for i in range(len(scores)):
        for j in range(len(scores)):
            if parts[i] == parts[j] and scores[i] != scores[j]:
                pairs[i] += 1
                agreed[i] += 0.5 + 0.5 * np.sign(scores[i] - scores[j]) * np.sign(standing[i] - standing[j])
    return agreed, pairs


def concordance(scores, standing, parts):
    agreed, pairs = by_pairs(scores, standing, parts)
    return agreed.sum() / pairs.sum()


def standings(scores, values, queries=None, parts=None):
    values = np.asarray(values, dtype=np.float64)
    count = len(scores)
    return Standings(
        np.asarray(scores, dtype=np.float64),
        np.arange(count) if queries is None else np.asarray(queries),
        np.zeros(count, dtype=np.int64) if parts is None else np.asarray(parts),
        values[:, np.newaxis] if values.ndim == 1 else values,
    )


def graded(seed, count=60, levels=5, places=12):
    """Prompts of several parts, with equal outcomes and equal standings among them; three or so of each query."""
    chance = np.random.default_rng(seed)
    queries = np.sort(chance.integers(0, count // 3, count))
    scores = chance.integers(0, levels, count) / 4 - 0.5
    return scores, chance.integers(0, places, count).astype(float), queries, queries % 3


def test_a_prompt_agrees_with_those_of_another_outcome_that_stand_on_their_side():
    """Right ones stand at 3 and 1, wrong ones at 2 and 1: of four pairs two agree, one is tied, one does not."""
    agreed, pairs = agreements(np.array([1, 1, 0, 0]), np.array([3.0, 1.0, 2.0, 1.0]), np.zeros(4, dtype=int))
    assert agreed.tolist() == [2.0, 0.5, 1.0, 1.5] and pairs.tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("levels", [1, 2, 3, 5, 60])
@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_counted_as_one_by_one(seed, levels):
    scores, standing, _, parts = graded(seed, levels=levels)
    agreed, pairs = agreements(scores, standing, parts)
    expected = by_pairs(scores, standing, parts)
    assert agreed.tolist() == expected[0].tolist() and pairs.tolist() == expected[1].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_values_are_those_of_leaving_out_each_query_in_turn(seed):
    """Their mean is the concordance; their standard error is the root of (n - 1) / n times the squared deviations."""
    scores, standing, queries, parts = graded(seed)
    values = standings(scores, standing, queries, parts).by_query()[:, 0]
    assert values.mean() == pytest.approx(concordance(scores, standing, parts))
    left = []
    for query in np.unique(queries):
        others = queries != query
        left.append(concordance(scores[others], standing[others], parts[others]))
    count = len(left)
    assert len(values) == count
    error = np.sqrt((count - 1) / count * np.square(np.array(left) - np.mean(left)).sum())
    assert values.std(ddof=1) / np.sqrt(count) == pytest.approx(error)


def delong(right, wrong):
    """The standard error of the difference of two areas under curves on the same prompts, as DeLong et al. give it.

    Args:
        right: Where right prompts stand by either way, shape (2, m).
        wrong: The same of wrong ones, shape (2, n).
    """
    wins = np.array([(np.sign(np.subtract.outer(a, b)) + 1) / 2 for a, b in zip(right, wrong, strict=True)])
    apart = wins[1] - wins[0]
    components = apart.mean(axis=1), apart.mean(axis=0)
    return np.sqrt(sum(one.var(ddof=1) / len(one) for one in components))


def test_one_prompt_of_each_query_right_or_wrong_gives_the_error_of_delong():
    chance = np.random.default_rng(5)
    scores = (chance.random(300) < 0.3).astype(float)
    base = chance.normal(size=300)
    ways = np.stack([base + chance.normal(size=300), base + 0.5 * scores + chance.normal(size=300)], axis=1)
    values = standings(scores, ways).by_query()
    found = Compared.of("concordance", values[:, 0], values[:, 1])
    assert found.error == pytest.approx(delong(ways[scores == 1].T, ways[scores == 0].T), rel=0.01)


def test_queries_without_a_pair_are_left_out_and_one_that_has_them_all_tells_nothing():
    """The second part holds wrong prompts only."""
    parts = np.array([0, 0, 0, 0, 1, 1])
    assert len(standings([1, 0, 1, 0, 0, 0], range(6), parts=parts).by_query()) == 4
    assert standings([1, 0, 0, 0], range(4)).by_query().shape == (0, 1)
    assert standings([1, 1, 1], range(3)).by_query().shape == (0, 1)


def beyond(share, repeats, count=240, tried=500):
    """How often two ways that are equally good are told apart by two standard errors, up and down.

    Prompts of one query share most of what decides outcome and standing.
    """
    chance = np.random.default_rng([round(100 * share), repeats])
    queries = np.repeat(np.arange(count // repeats), repeats)
    up = down = 0
    for _ in range(tried):
        own = chance.normal(size=(3, count // repeats))[:, queries]
        noise = chance.normal(size=(3, count))
        difficulty, base, after = (2 * own + noise) if repeats > 1 else noise
        scores = (difficulty > np.quantile(difficulty, 1 - share)).astype(float)
        values = standings(scores, np.stack([base, 0.5 * base + after], axis=1), queries, queries % 3).by_query()
        found = Compared.of("concordance", values[:, 0], values[:, 1])
        up, down = up + (found.gain > 2 * found.error), down + (found.gain < -2 * found.error)
    return up / tried, down / tried


@pytest.mark.parametrize(("share", "repeats"), [(0.5, 1), (0.1, 1), (0.8, 1), (0.5, 4), (0.2, 4)])
def test_chance_is_beyond_two_standard_errors_about_as_often_as_they_promise(share, repeats):
    """2.3 % either way of a normal distribution, a little more of 60 clusters; shares of prompts gave 15 to 28 %."""
    for found in beyond(share, repeats):
        assert found <= 0.055


def test_twenty_thousand_prompts_need_no_table_of_all_pairs():
    chance = np.random.default_rng(0)
    many = standings(chance.random(20_000), chance.random(20_000))
    tracemalloc.start()
    try:
        values = many.by_query()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(values) == 20_000 and peak < 32 * 2**20
