"""The map: exact products, so that a row's bits depend on nothing but the row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from retriever.adaptation.linear_map import check_matrix, mapped, on_grid, toward_identity
from retriever.errors import InvalidInput


def unit(seed, rows, dim):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def a_map(seed, dim):
    return on_grid(np.eye(dim) + 0.3 * np.random.default_rng(seed).standard_normal((dim, dim)))


def test_the_map_is_a_matrix_product_and_unit_length_again():
    matrix = on_grid(np.array([[3.0, 0.0], [0.0, 4.0]]))
    vectors = np.array([[1.0, 0.0], [2**-0.5, 2**-0.5]], dtype=np.float32)
    assert mapped(matrix, vectors) == pytest.approx(np.array([[1.0, 0.0], [0.6, 0.8]]), abs=1e-7)


def test_it_agrees_with_the_product_in_double_precision():
    matrix, vectors = a_map(1, 24), unit(2, 50, 24)
    sent = vectors.astype(np.float64) @ matrix.astype(np.float64).T
    assert mapped(matrix, vectors) == pytest.approx(sent / np.linalg.norm(sent, axis=1, keepdims=True), abs=1e-6)


@given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 60))
def test_a_row_alone_has_the_bits_that_it_has_among_others(seed, rows, dim):
    matrix, vectors = a_map(seed, dim), unit(seed, rows, dim)
    together = mapped(matrix, vectors)
    alone = np.concatenate([mapped(matrix, vectors[row : row + 1]) for row in range(rows)])
    assert together.tobytes() == alone.tobytes()


def test_the_bits_do_not_depend_on_the_number_of_threads_nor_on_the_layout_in_memory():
    matrix, vectors = a_map(3, 384), unit(4, 5000, 384)
    with threadpool_limits(1):
        one = mapped(matrix, vectors)
    assert mapped(matrix, vectors).tobytes() == one.tobytes()
    assert mapped(matrix, np.asfortranarray(vectors)).tobytes() == one.tobytes()
    assert mapped(np.asfortranarray(matrix), vectors).tobytes() == one.tobytes()


def test_a_zero_row_stays_zero_and_so_does_one_that_is_sent_to_zero():
    matrix = on_grid(np.array([[1.0, 0.0], [0.0, 0.0]]))
    assert mapped(matrix, np.array([[0, 0], [0, 1]], np.float32)).tolist() == [[0, 0], [0, 0]]


def test_the_identity_changes_no_vector_by_more_than_its_rounding():
    vectors = unit(5, 20, 30)
    assert np.abs(mapped(on_grid(np.eye(30)), vectors) - vectors).max() < 2e-7


def test_half_the_way_from_the_identity_is_the_mean_of_both():
    matrix = on_grid(np.array([[3.0, 1.0], [0.0, 1.0]]))
    assert toward_identity(matrix, 0.5).tolist() == [[2.0, 0.5], [0.0, 1.0]]
    assert toward_identity(matrix, 0.0).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    "matrix",
    [
        np.eye(3),
        np.ones((2, 3), np.float32),
        np.array([[np.nan]], np.float32),
        np.array([[9.0]], np.float32),
        np.array([[2.0**-21]], np.float32),
    ],
    ids=["double", "not square", "NaN", "too large", "off the grid"],
)
def test_a_matrix_that_cannot_be_applied_exactly_is_refused(matrix):
    with pytest.raises(InvalidInput):
        check_matrix(matrix)


def test_vectors_of_another_dimension_are_refused():
    with pytest.raises(InvalidInput, match="3 components"):
        mapped(on_grid(np.eye(3)), np.zeros((2, 4), np.float32))
