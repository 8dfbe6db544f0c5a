"""Dense retrieval against exact sums, and FAISS as a proposer that may miss rows but never invents any."""

import math

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes.ann import AnnIndex, one_thread
from indexes.channels import Fusion, Query
from indexes.dense import NO_DIRECTION, DenseIndex, Segment, error_bound, exact_scores
from indexes.errors import InvalidInput
from indexes.hybrid import HybridIndex
from indexes.lexical import BM25Index
from indexes.postings import Postings
from indexes.vector_storage import VectorRows

FACTORIES = ["Flat", "HNSW32", "IVF4,Flat"]
NESTED_FACTORIES = ["IVF4_HNSW8,Flat", "PCA8,Flat", "PCA8,IVF4,Flat", "PCA8,HNSW8", "IVF4,SQ8,RFlat"]


def unit(seed, rows, dim):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def bits(scores):
    return scores.view(np.uint64).tolist()


POOL = unit(1, 200, 16)
QUERIES = unit(2, 10, 16)
ELIGIBLE = np.random.default_rng(3).random(200) < 0.3
ZERO = np.zeros(16, np.float32)


@pytest.fixture(scope="module", params=FACTORIES)
def ann(request):
    return AnnIndex.build(request.param, VectorRows(POOL))


def test_exact_scores_of_short_vectors_agree_with_hand_arithmetic():
    rows = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], np.float32)
    expected = [0.6, 0.8, 1.0, -0.6]
    assert exact_scores(rows, np.array([0.6, 0.8], np.float32)) == pytest.approx(expected, abs=1e-7)


@given(st.integers(0, 2**32 - 1), st.integers(1, 1200))
@settings(max_examples=30)
def test_exact_scores_agree_with_a_correctly_rounded_sum(seed, dim):
    rows, query = unit(seed, 3, dim), unit(seed + 1, 1, dim)[0]
    expected = [math.fsum(float(a) * float(b) for a, b in zip(row, query, strict=True)) for row in rows]
    assert exact_scores(rows, query) == pytest.approx(expected, abs=1e-14)


def test_a_zero_row_scores_no_direction_in_both_kinds_of_score():
    rows = POOL.copy()
    rows[[0, 7, 199]] = 0
    index = DenseIndex([Segment.of(rows[:50]), Segment.of(rows[50:])])
    exact, approximate = exact_scores(rows, QUERIES[0]), index.scores(QUERIES[:1])[0]
    assert NO_DIRECTION == -1
    assert np.flatnonzero(exact == -1).tolist() == [0, 7, 199]
    assert np.flatnonzero(approximate == -1).tolist() == [0, 7, 199]


def test_zero_rows_are_told_from_rows_that_only_begin_with_a_zero():
    vectors = np.array([[0, 1, 0], [0, 0, 0], [1, 0, 0], [-0.0, 0, 0], [0, 0, -1]], dtype=np.float32)
    assert Segment.of(vectors).zero_rows.tolist() == [1, 3]
    assert Segment.of(vectors[:0]).zero_rows.tolist() == []


def test_a_zero_query_scores_no_direction_everywhere():
    assert exact_scores(POOL, ZERO).tolist() == [-1.0] * 200
    assert DenseIndex([Segment.of(POOL)]).scores(np.stack([ZERO, QUERIES[0]]))[0].tolist() == [-1.0] * 200
    assert DenseIndex([Segment.of(POOL)]).exact(np.array([3, 5]), ZERO).tolist() == [-1.0, -1.0]


def test_a_row_at_right_angles_scores_zero_and_not_no_direction():
    assert exact_scores(np.eye(2, dtype=np.float32), np.array([1, 0], np.float32)).tolist() == [1.0, 0.0]


def test_no_rows_give_no_scores():
    assert exact_scores(np.empty((0, 16), np.float32), QUERIES[0]).shape == (0,)


@pytest.mark.parametrize("dim", [1, 2, 7, 8, 9, 127, 128, 129, 384, 1000])
def test_the_bits_of_an_exact_score_do_not_depend_on_the_batch_or_the_memory_layout(dim):
    rows, query = unit(4, 40, dim), unit(5, 1, dim)[0]
    together = bits(exact_scores(rows, query))
    alone = [bits(exact_scores(rows[i : i + 1], query))[0] for i in range(40)]
    backwards = bits(exact_scores(rows[::-1], query))[::-1]
    by_columns = bits(exact_scores(np.asfortranarray(rows), query))
    every_other = bits(exact_scores(np.repeat(rows, 2, axis=0)[::2], query))
    among_zeros = bits(exact_scores(np.concatenate([np.zeros((3, dim), np.float32), rows]), query))[3:]
    assert together == alone == backwards == by_columns == every_other == among_zeros


def test_the_bits_of_an_exact_score_are_the_same_on_both_sides_of_a_block_border():
    rows = np.tile(unit(6, 1, 24), (4100, 1))
    assert len(set(bits(exact_scores(rows, unit(7, 1, 24)[0])))) == 1


@given(st.lists(st.integers(0, 199), max_size=30), st.integers(1, 199), st.integers(0, 9))
def test_the_bits_of_an_exact_score_do_not_depend_on_segments_or_neighbours(rows, cut, query):
    whole = exact_scores(POOL, QUERIES[query])
    split = DenseIndex([Segment.of(POOL[:cut]), Segment.of(POOL[cut:])])
    assert bits(split.exact(np.array(rows, np.int64), QUERIES[query])) == bits(whole[rows])


@given(st.lists(st.integers(0, 199), max_size=3).map(sorted))
def test_an_index_of_several_segments_equals_an_index_of_one(cuts):
    one = DenseIndex([Segment.of(POOL)])
    several = DenseIndex([Segment.of(part) for part in np.split(POOL, cuts)])
    rows = np.array([199, 0, 100, 0, 57])
    assert (len(several), several.dim) == (len(one), one.dim) == (200, 16)
    assert several.vectors(rows).tobytes() == one.vectors(rows).tobytes() == POOL[rows].tobytes()
    assert bits(several.exact(rows, QUERIES[0])) == bits(one.exact(rows, QUERIES[0]))
    assert np.abs(several.scores(QUERIES) - one.scores(QUERIES)).max() <= 2 * error_bound(16)
    assert several.propose(QUERIES[0], 3, ELIGIBLE).tolist() == one.propose(QUERIES[0], 3, ELIGIBLE).tolist()


def test_vectors_are_copies():
    source = POOL.copy()
    index = DenseIndex([Segment.of(source)])
    index.vectors(np.arange(200))[:] = 0
    assert source.tobytes() == POOL.tobytes()


@given(st.integers(0, 2**32 - 1), st.integers(1, 800), st.integers(1, 6), st.booleans())
@settings(max_examples=60)
def test_scores_lie_within_the_error_bound_of_a_float64_product(seed, dim, rows, same_sign):
    vectors, queries = unit(seed, rows, dim), unit(seed + 1, 3, dim)
    if same_sign:  # nothing cancels, so every rounding error counts
        vectors, queries = np.abs(vectors), np.abs(queries)
    scores = DenseIndex([Segment.of(vectors)]).scores(queries)
    oracle = queries.astype(np.float64) @ vectors.astype(np.float64).T
    assert scores.dtype == np.float32
    assert np.abs(scores - oracle).max() <= error_bound(dim)


def test_the_error_bound_grows_with_the_dimension_and_is_never_zero():
    assert error_bound(0) == error_bound(1) == 2.0**-23
    assert error_bound(384) == 384 * 2.0**-23


@pytest.mark.parametrize(
    "vectors",
    [
        POOL,
        np.zeros((3, 4), np.float32),
        np.empty((0, 4), np.float32),
        np.eye(3, dtype=np.float32) * np.float32(1.0004),
    ],
    ids=["unit", "zero", "none", "rounded"],
)
def test_unit_and_zero_rows_are_accepted(vectors):
    before = vectors.tobytes()
    VectorRows(vectors).check("v")
    assert vectors.tobytes() == before


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.eye(3), "dtype float64"),
        (np.eye(3, dtype=np.int64), "dtype int64"),
        (np.ones(1, np.float32), r"shape \(1,\)"),
        (np.ones((1, 1, 1), np.float32), r"shape \(1, 1, 1\)"),
        (np.array([[1, 0], [np.nan, 0]], np.float32), "row 1 has length nan"),
        (np.array([[1, 0], [np.inf, 0]], np.float32), "row 1 has length inf"),
        (np.array([[1, 0], [0, 0], [3, 4]], np.float32), "row 2 has length 5.0"),
        (np.array([[0.5, 0]], np.float32), "row 0 has length 0.5"),
        (np.array([[1e-30, 0]], np.float32), "row 0 has length"),
        (np.array([[3e38, 3e38]], np.float32), "row 0 has length"),
    ],
)
def test_vectors_that_are_not_unit_float32_rows_are_refused_by_name(vectors, message):
    with pytest.raises(InvalidInput, match=f"pool.npy: .*{message}"):
        VectorRows(vectors).check("pool.npy")


def test_a_wrong_row_after_the_first_block_is_named_by_its_own_number():
    vectors = np.tile(np.array([[1, 0]], np.float32), (5000, 1))
    vectors[4999] = 2
    with pytest.raises(InvalidInput, match="row 4999 "):
        VectorRows(vectors).check("v")


@pytest.mark.parametrize("count", [1, 10, 200, 500])
@pytest.mark.parametrize("eligible", [None, ELIGIBLE, ~ELIGIBLE], ids=["all", "some", "others"])
def test_faiss_proposes_distinct_eligible_rows_and_never_a_placeholder(ann, count, eligible):
    allowed = np.arange(200) if eligible is None else np.flatnonzero(eligible)
    for query in QUERIES:
        rows = ann.search(query, count, eligible)
        assert rows.dtype == np.int64
        assert 1 <= len(rows) <= min(count, len(allowed))
        assert len(set(rows.tolist())) == len(rows)
        assert set(rows.tolist()) <= set(allowed.tolist())
        assert (np.diff(exact_scores(POOL[rows], query)) <= 2 * error_bound(16)).all()


@pytest.mark.parametrize("count", [0, -1])
def test_faiss_asked_for_no_rows_gives_none(ann, count):
    assert ann.search(QUERIES[0], count, None).tolist() == []


def test_faiss_with_no_eligible_row_gives_none(ann):
    assert ann.search(QUERIES[0], 5, np.zeros(200, bool)).tolist() == []


@pytest.mark.parametrize("eligible", [None, ELIGIBLE], ids=["all", "some"])
def test_a_flat_index_proposes_exactly_the_best_eligible_rows(eligible):
    ann = AnnIndex.build("Flat", VectorRows(POOL))
    allowed = np.arange(200) if eligible is None else np.flatnonzero(eligible)
    for query in QUERIES:
        best = allowed[np.argsort(-exact_scores(POOL[allowed], query))[:10]]
        assert ann.search(query, 10, eligible).tolist() == best.tolist()


@pytest.mark.parametrize("factory", NESTED_FACTORIES)
def test_a_filter_holds_in_an_index_made_of_several(factory):
    ann = AnnIndex.build(factory, VectorRows(POOL))
    for query in QUERIES:
        rows = ann.search(query, 10, ELIGIBLE)
        assert len(rows) and ELIGIBLE[rows].all()


@pytest.mark.parametrize("factory", FACTORIES)
def test_two_builds_of_one_pool_give_the_same_bytes(factory):
    assert (
        AnnIndex.build(factory, VectorRows(POOL)).to_bytes()
        == AnnIndex.build(factory, VectorRows(POOL.copy())).to_bytes()
    )


def test_faiss_is_held_to_one_thread_and_then_has_as_many_as_before():
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(2)
        with one_thread():
            assert faiss.omp_get_max_threads() == 1
        assert faiss.omp_get_max_threads() == 2
        AnnIndex.build("HNSW32", VectorRows(POOL))
        with pytest.raises(InvalidInput):
            AnnIndex.build("no such index", VectorRows(POOL))
        assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(before)


def test_a_serialised_index_comes_back_with_the_same_bytes_and_answers(ann):
    kept = ann.to_bytes()
    for serialized in (kept, bytes(kept)):
        back = AnnIndex.from_bytes(serialized)
        assert back.to_bytes() == kept
        for eligible in (None, ELIGIBLE):
            there = [back.search(query, 10, eligible).tolist() for query in QUERIES]
            assert there == [ann.search(query, 10, eligible).tolist() for query in QUERIES]


@pytest.mark.parametrize("factory", ["", "no such index", "IVF4,", "PQ5", "IVF1000,Flat"])
def test_a_factory_string_that_does_not_fit_the_vectors_is_refused_by_name(factory):
    with pytest.raises(InvalidInput, match=f"FAISS refuses '{factory}' for \\(200, 16\\) vectors"):
        AnnIndex.build(factory, VectorRows(POOL))


def test_without_faiss_every_eligible_row_is_proposed():
    index = DenseIndex([Segment.of(POOL)])
    assert index.propose(QUERIES[0], 1, None).tolist() == list(range(200))
    assert index.propose(QUERIES[0], 1, ELIGIBLE).tolist() == np.flatnonzero(ELIGIBLE).tolist()


def test_rows_appended_after_the_faiss_index_was_built_are_always_proposed(ann):
    index = DenseIndex([Segment.of(POOL), Segment.of(unit(8, 5, 16))], ann)
    eligible = np.append(ELIGIBLE, [True, False, True, False, True])
    for query in QUERIES:
        everything = index.propose(query, 3, None)
        assert everything.tolist() == [*sorted(ann.search(query, 3, None)), 200, 201, 202, 203, 204]
        # So few eligible rows are all proposed.
        assert index.propose(query, 3, eligible).tolist() == [*np.flatnonzero(ELIGIBLE), 200, 202, 204]


@pytest.mark.parametrize("eligible", [None, ELIGIBLE], ids=["all", "some"])
@pytest.mark.parametrize(
    "fusion", [Fusion("dense"), Fusion("lexical"), Fusion(), Fusion(weight=0.8), Fusion(rule="rrf")], ids=repr
)
def test_a_hybrid_index_with_faiss_finds_the_exact_best_rows_of_a_small_pool(ann, eligible, fusion):
    postings = [Postings.from_documents([f"w{row % 7}", f"w{row % 11}"] for row in range(200))]
    exact = HybridIndex(DenseIndex([Segment.of(POOL)]), BM25Index(postings))
    proposing = HybridIndex(DenseIndex([Segment.of(POOL)], ann), BM25Index(postings))
    for query in [Query(vector, ("w3", "w9")) for vector in QUERIES] + [Query(ZERO, ("w3",)), Query(QUERIES[0])]:
        expected = exact.rank(next(exact.score([query], [eligible])), 8, fusion)
        hits = proposing.rank(next(proposing.score([query], [eligible], mode=fusion.mode)), 8, fusion)
        assert len(hits.rows) == 8
        assert hits.rows.tolist() == expected.rows.tolist()
        assert hits.lexical.tobytes() == expected.lexical.tobytes()


def test_a_dense_search_with_faiss_scores_no_row_lexically_that_is_not_proposed(ann, monkeypatch):
    postings = [Postings.from_documents([f"w{row % 7}"] for row in range(200))]
    index = HybridIndex(DenseIndex([Segment.of(POOL)], ann), BM25Index(postings))
    monkeypatch.setattr(index.lexical, "scores", lambda terms: pytest.fail("every row was scored"))
    monkeypatch.setattr("indexes.hybrid.PROPOSALS", 20)
    [scores] = index.score([Query(QUERIES[0], ("w3",))], mode="dense")
    assert scores.rows.tolist() == index.dense.propose(QUERIES[0], 20, None).tolist()
    assert ((scores.lexical > 0) == (scores.rows % 7 == 3)).all()
