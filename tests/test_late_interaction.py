"""Late interaction: MaxSim and recall against loops, and their bits against threads, blocks and neighbours."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from indexes import late_interaction
from indexes.errors import InvalidInput
from indexes.late_interaction import TokenVectors, inverse_frequencies, maxsim, recall


def units(rng: np.random.Generator, count: int, dim: int, dtype: type = np.float32, zeros: float = 0.0) -> np.ndarray:
    vectors = rng.normal(size=(count, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[rng.random(count) < zeros] = 0.0
    return vectors.astype(dtype)


def ragged(rng: np.random.Generator, lengths: list[int], dim: int, dtype: type = np.float32, zeros: float = 0.0):
    return TokenVectors.of([units(rng, length, dim, dtype, zeros) for length in lengths], dim, dtype)


def recall_by_loops(query: np.ndarray, tokens: TokenVectors) -> np.ndarray:
    table = np.full((len(tokens), len(query)), -1.0)
    for row in range(len(tokens)):
        for i, asked in enumerate(query):
            for token in tokens.text(row):
                if asked.any() and token.any():
                    cosine = math.fsum(float(a) * float(b) for a, b in zip(asked, token, strict=True))
                    table[row, i] = max(table[row, i], cosine)
    return table


def test_a_case_by_hand():
    east, north, diagonal = [1, 0], [0, 1], [0.6, 0.8]
    query = np.array([east, diagonal], dtype=np.float32)
    tokens = TokenVectors.of([np.array([north], np.float32), np.array([north, east], np.float32)], 2)
    np.testing.assert_allclose(recall(query, tokens), [[0.0, 0.8], [1.0, 0.8]], atol=1e-7)
    np.testing.assert_allclose(maxsim(query, tokens), [0.4, 0.9], atol=1e-7)
    np.testing.assert_allclose(maxsim(query, tokens, np.array([3.0, 1.0])), [0.2, 0.95], atol=1e-7)


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**32),
    lengths=st.lists(st.integers(0, 6), max_size=8),
    asked=st.integers(0, 5),
    dim=st.integers(1, 7),
    dtype=st.sampled_from([np.float16, np.float32]),
    block=st.integers(1, 9),
)
def test_recall_and_maxsim_are_the_loops_whatever_the_blocks(seed, lengths, asked, dim, dtype, block):
    rng = np.random.default_rng(seed)
    query, tokens = units(rng, asked, dim, dtype, 0.2), ragged(rng, lengths, dim, dtype, 0.2)
    weights = rng.random(asked)
    expected = recall_by_loops(query, tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(late_interaction, "_BLOCK_TOKENS", block)
        patch.setattr(late_interaction, "_BLOCK_TEXTS", block)
        found, scores = recall(query, tokens), maxsim(query, tokens, weights)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert found.tobytes() == recall(query, tokens).tobytes()
    assert scores.tobytes() == maxsim(query, tokens, weights).tobytes()
    by_loops = [
        math.fsum(w * c for w, c in zip(weights, row, strict=True)) / max(sum(weights), 1e-300) for row in expected
    ]
    np.testing.assert_allclose(scores, by_loops if asked else [-1.0] * len(tokens), atol=1e-7)


def test_bits_do_not_depend_on_threads_neighbours_or_order():
    rng = np.random.default_rng(7)
    tokens = ragged(rng, rng.integers(0, 40, size=300).tolist(), 384)
    query = units(rng, 17, 384)
    whole = maxsim(query, tokens)
    for threads in (1, 2, 4):
        with threadpool_limits(threads):
            assert maxsim(query, tokens).tobytes() == whole.tobytes()
    order = rng.permutation(300)
    assert maxsim(query, tokens.take(order)).tobytes() == whole[order].tobytes()
    for row in (0, 123, 299):
        assert maxsim(query, tokens.take(np.array([row])))[0] == whole[row]


def test_a_text_finds_itself_whole_and_nothing_finds_a_better_match():
    rng = np.random.default_rng(3)
    tokens = ragged(rng, [5, 9, 4], 64)
    for row in range(3):
        scores = maxsim(tokens.text(row), tokens)
        assert scores.argmax() == row
        assert abs(scores[row] - 1.0) < 1e-6


def test_half_precision_moves_a_score_by_less_than_a_thousandth():
    rng = np.random.default_rng(5)
    wide = ragged(rng, [12] * 50, 384)
    half = TokenVectors(wide.vectors.astype(np.float16), wide.offsets)
    query = units(rng, 10, 384)
    assert np.abs(maxsim(query, wide) - maxsim(query, half)).max() < 1e-3


def test_a_text_without_tokens_is_like_nothing_and_so_is_a_token_without_direction():
    east, zero = np.array([[1, 0]], dtype=np.float32), np.zeros((1, 2), dtype=np.float32)
    tokens = TokenVectors.of([np.empty((0, 2), np.float32), zero, -east, np.concatenate([zero, -east])], 2)
    assert recall(np.concatenate([east, zero]), tokens).tolist() == [[-1, -1]] * 4
    assert maxsim(east, tokens).tolist() == [-1, -1, -1, -1]
    assert maxsim(east[:0], tokens).tolist() == [-1, -1, -1, -1]
    assert recall(east[:0], tokens).shape == (4, 0)
    assert maxsim(east, TokenVectors.of([], 2)).shape == (0,)


def test_weights_that_are_all_zero_count_every_token_the_same():
    rng = np.random.default_rng(1)
    tokens, query = ragged(rng, [3, 4], 8), units(rng, 5, 8)
    assert maxsim(query, tokens, np.zeros(5)).tobytes() == maxsim(query, tokens).tobytes()


@pytest.mark.parametrize("size", [1e-300, 1e300])
def test_weights_of_any_size_are_shares(size):
    rng = np.random.default_rng(2)
    tokens, query = ragged(rng, [3, 4], 8), units(rng, 2, 8)
    shares = np.array([1.0, 0.5])
    np.testing.assert_allclose(maxsim(query, tokens, shares * size), maxsim(query, tokens, shares), rtol=1e-12)


@given(lengths=st.lists(st.integers(0, 4), min_size=1, max_size=6), data=st.data())
def test_taking_rows_is_taking_their_texts(lengths, data):
    tokens = ragged(np.random.default_rng(0), lengths, 3, np.float16)
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=9))
    taken = tokens.take(np.array(rows, dtype=np.int64))
    assert (len(taken), taken.vectors.dtype) == (len(rows), np.float16)
    assert [taken.text(i).tolist() for i in range(len(rows))] == [tokens.text(row).tolist() for row in rows]


@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_that_is_not_there_is_refused(row):
    with pytest.raises(InvalidInput, match="rows from 0 to 1"):
        ragged(np.random.default_rng(0), [1, 1], 3).take(np.array([0, row]))


@pytest.mark.parametrize(
    ("vectors", "offsets"),
    [
        (np.zeros((2, 3)), [0, 2]),
        (np.zeros(2, np.float32), [0, 2]),
        (np.zeros((2, 3), np.float32), [0, 1]),
        (np.zeros((2, 3), np.float32), [1, 2]),
        (np.zeros((2, 3), np.float32), [0, 2, 1, 2]),
        (np.zeros((2, 3), np.float32), []),
    ],
)
def test_vectors_and_offsets_that_do_not_fit_are_refused(vectors, offsets):
    with pytest.raises(InvalidInput):
        TokenVectors(vectors, np.array(offsets, dtype=np.int64))


def test_what_is_no_unit_vector_or_of_another_dimension_is_refused():
    tokens = ragged(np.random.default_rng(0), [2], 3)
    with pytest.raises(InvalidInput, match="squared length 4"):
        recall(np.array([[2, 0, 0]], dtype=np.float32), tokens)
    with pytest.raises(InvalidInput, match="squared length nan"):
        recall(np.array([[np.nan, 0, 0]], dtype=np.float32), tokens)
    with pytest.raises(InvalidInput, match=r"expected \(tokens, 3\)"):
        recall(np.array([[1, 0]], dtype=np.float32), tokens)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, np.inf], [1.0, np.nan]])
def test_impossible_weights_are_refused(weights):
    rng = np.random.default_rng(0)
    with pytest.raises(InvalidInput, match="weights"):
        maxsim(units(rng, 2, 3), ragged(rng, [2], 3), np.array(weights))


def test_inverse_frequencies_by_hand():
    expected = [math.log(4 / 3), math.log(4 / 2), math.log(4), 0.0]
    np.testing.assert_allclose(inverse_frequencies(np.array([2, 1, 0, 3]), 3), expected)
    assert inverse_frequencies(np.array([0, 0]), 0).tolist() == [0, 0]
