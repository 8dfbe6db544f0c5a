"""Inner products without rounding: equal to fractions, in any order of the dimensions, in any position."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategy_cases import gaussian, many, some

from retriever.ranking.strategies.exact import exact_vectors, on_grid
from retriever.ranking.strategies.picks import first_best


@some
@given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 40))
def test_every_inner_product_is_that_of_fractions(seed, count, dimensions):
    grid, squares = exact_vectors(gaussian(count, dimensions, seed))
    rows = [[Fraction(x) for x in row] for row in grid.tolist()]
    products = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    assert [[Fraction(x) for x in row] for row in (grid @ grid.T).tolist()] == products
    assert [Fraction(x) for x in squares.tolist()] == [products[i][i] for i in range(count)]


@pytest.mark.parametrize("dimensions", [3, 64, 384, 1024])
def test_no_order_of_the_dimensions_changes_a_bit(dimensions):
    vectors = gaussian(50, dimensions)
    order = np.random.default_rng(1).permutation(dimensions)
    plain, shuffled = exact_vectors(vectors)[0], exact_vectors(vectors[:, order])[0]
    assert (plain @ plain.T == shuffled @ shuffled.T).all()
    assert (plain @ plain[0] == (plain * plain[0]).sum(axis=1)).all()


def test_the_grid_moves_a_component_by_at_most_half_a_step():
    vectors = gaussian(20, 384)
    assert np.abs(on_grid(vectors) - vectors).max() <= 2.0**-27
    assert np.abs(exact_vectors(vectors)[0] @ on_grid(vectors[0]) - vectors.astype("f8") @ vectors[0]).max() < 1e-7


@many
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=10))
def test_the_first_of_those_within_a_millionth_of_the_best_is_chosen(whole):
    gains = np.array(whole, dtype=np.float64)
    assert first_best(gains) == whole.index(max(whole))
    nudged = gains + 4e-7 * np.arange(len(gains)) / len(gains)
    assert first_best(nudged) == whole.index(max(whole))


def test_gains_further_apart_are_no_ties():
    assert first_best(np.array([0.0, 2e-6])) == 1
    assert first_best(np.array([-np.inf, -5.0])) == 1
