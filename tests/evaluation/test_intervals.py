"""Intervals of means: that they cover what they say, are paired, and come out the same each time."""

from __future__ import annotations

import numpy as np
import pytest

from retriever.errors import InvalidInput
from retriever.evaluation.intervals import Bootstrap, Interval, intervals

QUICK = Bootstrap(resamples=1000)


def share_covered(draw, truth, *, sets=400, queries=60, settings=QUICK):
    random = np.random.default_rng(7)
    columns = np.stack([draw(random, queries) for _ in range(sets)], axis=1)
    return np.mean([found.holds(truth) for found in intervals(columns, settings)])


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda random, n: random.normal(0.3, 1.0, n), 0.3),
        (lambda random, n: random.binomial(1, 0.4, n).astype(float), 0.4),
        (lambda random, n: random.binomial(8, 0.7, n) / 8, 0.7),
        (lambda random, n: random.beta(0.5, 0.5, n), 0.5),
        # A difference of two recipes that agree on most queries.
        (lambda random, n: random.choice([-1.0, 0.0, 1.0], n, p=[0.15, 0.6, 0.25]), 0.1),
    ],
    ids=["normal", "hits", "shares", "u-shaped", "differences"],
)
def test_intervals_cover_the_truth_at_the_stated_rate(draw, truth):
    assert share_covered(draw, truth) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("level", [0.5, 0.8])
def test_another_level_is_kept_too(level):
    covered = share_covered(lambda random, n: random.normal(0, 1, n), 0.0, settings=Bootstrap(1000, level))
    assert covered == pytest.approx(level, abs=0.06)


def test_small_samples_are_covered_too():
    covered = share_covered(lambda random, n: random.normal(0, 1, n), 0.0, sets=2000, queries=8)
    assert covered == pytest.approx(0.95, abs=0.03)


def test_the_interval_of_many_values_is_that_of_the_normal():
    values = np.random.default_rng(1).normal(5, 2, 1000)
    [found] = intervals(values[:, None], Bootstrap())
    error = 1.96 * values.std(ddof=1) / np.sqrt(1000)
    assert (found.low, found.high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.01)


def test_columns_are_resampled_together_so_that_a_constant_difference_has_no_width():
    first = np.random.default_rng(2).normal(0, 1, 50)
    [_, _, difference] = intervals(np.stack([first, first - 0.25, np.full(50, 0.25)], axis=1), QUICK)
    assert (difference.low, difference.high) == (0.25, 0.25)
    [low, high] = intervals(np.stack([first, first - 0.25], axis=1), QUICK)
    assert (low.low - high.low, low.high - high.high) == pytest.approx((0.25, 0.25), abs=1e-12)


def test_the_same_values_give_the_same_interval_whatever_stands_beside_them():
    columns = np.random.default_rng(3).normal(0, 1, (700, 3))
    together = intervals(columns, QUICK)
    assert [intervals(columns[:, [i]], QUICK)[0] for i in range(3)] == together
    assert intervals(columns, QUICK) == together
    assert intervals(columns, Bootstrap(1000, seed=1)) != together


def test_blocks_of_resamples_change_nothing(monkeypatch):
    columns = np.random.default_rng(4).normal(0, 1, (40, 2))
    whole = intervals(columns, QUICK)
    monkeypatch.setattr("retriever.evaluation.intervals._BLOCK", 333)
    assert intervals(columns, QUICK) == whole


def test_fewer_than_two_queries_have_no_interval():
    assert intervals(np.zeros((1, 2)), QUICK) == [None, None]
    assert intervals(np.zeros((0, 1)), QUICK) == [None]


def test_an_interval_holds_its_ends():
    assert Interval(0.1, 0.2).holds(0.1) and Interval(0.1, 0.2).holds(0.2)
    assert not Interval(0.1, 0.2).holds(0.0)
    assert Interval(1e-17, 0.2).holds(0.0)  # an end that is 0 but for rounding


@pytest.mark.parametrize("wrong", [{"resamples": 99}, {"level": 0.0}, {"level": 1.0}, {"level": 95}, {"seed": -1}])
def test_settings_that_cannot_be_used_are_refused(wrong):
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        Bootstrap(**wrong)
