"""HybridIndex against a float64 oracle that scores every row and sorts by (-score, row)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from indexes.ann import AnnIndex
from indexes.channels import Fusion, Query
from indexes.dense import DenseIndex, Segment, exact_scores
from indexes.hybrid import HybridIndex
from indexes.lexical import BM25, BM25Index
from indexes.postings import Postings
from indexes.vector_storage import VectorRows

DIM = 4
WEIGHTS = [0.0, 1e-12, 0.3, 0.5, 1.0]
# Few distinct vectors make many ties; the last two nearly oppose the first.
PALETTE = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0] * 4, [-1, 0, 0, 0], [-1, 1e-4, 0, 0]], np.float32)
PALETTE[2] /= np.sqrt(np.float32(2))

fusions = st.builds(
    Fusion,
    st.sampled_from(["hybrid", "dense", "lexical"]),
    st.sampled_from(WEIGHTS),
    st.sampled_from(["convex", "rrf"]),
)
rows_of = st.lists(st.tuples(st.integers(0, 5), st.lists(st.sampled_from("abc"), max_size=3)), max_size=12)
asked = st.builds(lambda i, terms: Query(PALETTE[i], tuple(terms)), st.integers(0, 5), st.lists(st.sampled_from("abz")))


def index_of(rows, alive=None):
    vectors = PALETTE[np.array([i for i, _ in rows], dtype=np.int64)]
    return HybridIndex(
        DenseIndex([Segment.of(vectors)]), BM25Index([Postings.from_documents(t for _, t in rows)]), alive
    )


def oracle(rows, query, mask, k, fusion):
    everything = index_of(rows).lexical
    here = [row for row in range(len(rows)) if mask[row]]
    dense = exact_scores(PALETTE[[rows[row][0] for row in here]].reshape(-1, DIM), query.vector)
    lexical = everything.scores(query.terms)[here]
    directed, known = bool(query.vector.any()), everything.knows(query.terms)
    if not (directed or known):
        return here[:k]
    if (fusion.mode == "lexical" and known) or not directed:
        score = lexical
    elif fusion.mode == "dense" or not known:
        score = dense
    elif fusion.rule == "rrf":
        ranks = [np.argsort(np.argsort(-channel, kind="stable")) + 1 for channel in (dense, lexical)]
        score = 2 * fusion.weight / (60 + ranks[0]) + 2 * (1 - fusion.weight) / (60 + ranks[1])
    elif fusion.weight in (0, 1):
        score = dense if fusion.weight else lexical
    else:
        top_dense, top_lexical = max(dense, default=-1), max(lexical, default=0)
        a = (dense + 1) / (top_dense + 1) if top_dense > -1 else 0 * dense
        b = lexical / top_lexical if top_lexical > 0 else 0 * lexical
        score = fusion.weight * a + (1 - fusion.weight) * b
    return [here[i] for i in sorted(range(len(here)), key=lambda i: (-score[i], here[i]))][:k]


@given(rows_of, asked, fusions, st.integers(0, 15), st.data())
def test_rank_equals_the_oracle_and_describe_equals_rank(rows, query, fusion, k, data):
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), dtype=bool)
    index = index_of(rows)
    scores = next(index.score([query], [mask]))
    hits = index.rank(scores, k, fusion)
    assert hits.rows.tolist() == oracle(rows, query, mask, k, fusion)
    assert (np.diff(hits.fused) <= 0).all()
    again = index.describe(scores, hits.rows, fusion)
    for name in ("rows", "fused", "dense", "lexical"):
        np.testing.assert_array_equal(getattr(again, name), getattr(hits, name))
    assert index.rank(scores, 3, fusion).rows.tolist() == index.rank(scores, 8, fusion).rows.tolist()[:3]
    alive = index_of(rows, mask)
    assert alive.rank(next(alive.score([query])), k, fusion).rows.tolist() == hits.rows.tolist()


@given(rows_of, asked, st.data())
def test_the_leaders_are_the_first_rows_of_the_channels_that_speak(rows, query, data):
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), dtype=bool)
    index = index_of(rows)
    scores = next(index.score([query])).restricted(mask)
    speaks = {"dense": query.vector.any(), "lexical": index.lexical.knows(query.terms)}
    first = [oracle(rows, query, mask, 1, Fusion(mode)) for mode, speaking in speaks.items() if speaking]
    assert index.leaders(scores).tolist() == sorted({row for best in first for row in best})


def test_lexical_scores_below_0_are_within_the_bound_of_rounding():
    # "a" is in all texts but one: its Okapi idf is a share of the mean idf, below 0 as epsilon is.
    documents = [["a"] * (1 + i % 3) for i in range(200)] + [["b", "c"]]
    vectors = np.tile(PALETTE[:1], (len(documents), 1))
    lexical = BM25Index([Postings.from_documents(documents)], BM25("okapi", epsilon=-0.25))
    index = HybridIndex(DenseIndex([Segment.of(vectors)]), lexical)
    scores = next(index.score([Query(PALETTE[0], ("a", "b"))]))
    assert scores.lexical.min() < 0
    fused = 0.5 + 0.5 * scores.lexical / scores.lexical.max()
    wanted = sorted(range(len(documents)), key=lambda row: (-fused[row], row))
    assert index.rank(scores, 150, Fusion()).rows.tolist() == wanted[:150]


@given(st.integers(0, 2**32), st.sampled_from([0.1, 0.5, 0.9]), st.integers(1, 20))
def test_scores_that_float32_cannot_tell_apart_are_told_apart(seed, weight, k):
    # Cosines a millionth apart, and BM25 scores below 0, as okapi gives where nearly every text has nearly every term.
    rng = np.random.default_rng(seed)
    vectors = np.repeat(PALETTE[:1], 300, axis=0) + rng.normal(scale=1e-6, size=(300, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    documents = [["a"] * int(n) + ["b"] for n in rng.integers(1, 4, 300)]
    documents[7] = ["c"]
    lexical = BM25Index([Postings.from_documents(documents)], BM25("okapi", epsilon=float(rng.integers(0, 3))))
    index, query = HybridIndex(DenseIndex([Segment.of(vectors)]), lexical), Query(PALETTE[2], ("a", "b"))
    [scores] = index.score([query])
    dense, terms = exact_scores(vectors, query.vector), lexical.scores(query.terms)
    a = (dense + 1) / (dense.max() + 1)
    b = terms / terms.max() if terms.max() > 0 else 0 * terms
    fused = weight * a + (1 - weight) * b
    wanted = sorted(range(300), key=lambda row: (-fused[row], row))[:k]
    assert index.rank(scores, k, Fusion(weight=weight)).rows.tolist() == wanted


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("together", [1, 3, 100])
def test_a_query_alone_in_a_block_or_on_more_threads_has_the_same_hits(threads, together, monkeypatch):
    monkeypatch.setattr("indexes.hybrid._LEXICAL_BYTES", together * 8 * 2000)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2000, 48)).astype(np.float32)
    vectors[1000:] = vectors[:1000]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    terms = [[str(row % 7), "x" * (row % 3)] for row in range(2000)]
    index = HybridIndex(DenseIndex([Segment.of(vectors)]), BM25Index([Postings.from_documents(terms)]))
    block = [Query(vectors[row], (str(row % 7),)) for row in range(20)]
    with threadpool_limits(1):
        alone = [index.rank(next(index.score([query])), 8, Fusion()) for query in block]
    with threadpool_limits(threads):
        in_block = [index.rank(scores, 8, Fusion()) for scores in index.score(block)]
    for a, b in zip(alone, in_block, strict=True):
        assert (a.rows.tolist(), a.fused.tolist()) == (b.rows.tolist(), b.fused.tolist())


def test_a_filter_that_lets_nothing_through_a_faiss_index_gives_no_hits():
    dense = DenseIndex([Segment.of(PALETTE[:3])], AnnIndex.build("HNSW16", VectorRows(PALETTE[:3])))
    index = HybridIndex(dense, BM25Index([Postings.from_documents([["a"]] * 3)]))
    scores = next(index.score([Query(PALETTE[0], ("a",))], [np.zeros(3, dtype=bool)]))
    assert len(index.rank(scores, 2, Fusion())) == 0


@pytest.fixture
def proposing(monkeypatch):
    """300 rows of which FAISS and BM25 propose 10 each, and the exact index over the same rows."""
    for module in ("ann", "hybrid"):
        monkeypatch.setattr(f"indexes.{module}.PROPOSALS", 10)
    monkeypatch.setattr("indexes.ann._FEW_ELIGIBLE", 10)
    vectors = np.random.default_rng(3).normal(size=(300, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    lexical = BM25Index([Postings.from_documents([f"w{row % 7}", f"v{row % 11}"] for row in range(300))])
    ann = AnnIndex.build("HNSW16", VectorRows(vectors))
    query = Query(vectors[0] * np.float32(-1), ("w3", "v5"))
    indexes = [HybridIndex(DenseIndex([Segment.of(vectors)], one), lexical) for one in (ann, None)]
    return *indexes, query


@pytest.mark.parametrize("mask", [None, np.arange(300) % 3 != 1], ids=["all", "some"])
@pytest.mark.parametrize("mode", ["dense", "hybrid", "lexical"])
def test_rows_beside_those_proposed_have_the_scores_of_the_exact_index(proposing, mode, mask):
    index, exact, query = proposing
    [scores], [everything] = index.score([query], [mask], mode=mode), exact.score([query], [mask])
    eligible = np.arange(300) if mask is None else np.flatnonzero(mask)
    assert scores.eligible.tolist() == everything.eligible.tolist() == everything.rows.tolist() == eligible.tolist()
    assert (scores.depth, everything.depth) == (10, len(eligible))
    given = eligible[[150, 3, 77, 3]]
    wider = index.extended(scores, given)
    assert wider.rows.tolist() == sorted({*scores.rows.tolist(), *given.tolist()})
    places = np.searchsorted(eligible, wider.rows)
    assert wider.lexical.tobytes() == everything.lexical[places].tobytes()
    np.testing.assert_allclose(wider.dense, everything.dense[places], rtol=0, atol=2 * index.dense.bound)
    told, expected = (one.describe(said, given, Fusion("dense")) for one, said in ((index, wider), (exact, everything)))
    assert told.fused.tobytes() == expected.fused.tobytes()
    assert index.extended(wider, given) is wider
    assert exact.extended(everything, given) is everything


@pytest.mark.parametrize("mask", [None, np.arange(300) % 3 != 1], ids=["all", "some"])
@pytest.mark.parametrize("fusion", [Fusion("dense"), Fusion(), Fusion("lexical"), Fusion(rule="rrf")], ids=repr)
def test_the_deeper_a_faiss_index_is_asked_the_more_it_proposes_up_to_all(proposing, fusion, mask):
    index, exact, query = proposing
    [scores], [everything] = index.score([query], [mask], mode=fusion.mode), exact.score([query], [mask])
    assert index.deepened(scores, 10, mode=fusion.mode) is scores
    deeper = index.deepened(scores, 20, mode=fusion.mode)
    assert deeper.depth == 20
    assert len(deeper.rows) >= 20
    assert set(scores.rows.tolist()) < set(deeper.rows.tolist()) < set(everything.rows.tolist())
    whole = index.deepened(deeper, 1000, mode=fusion.mode)
    assert (whole.depth, whole.rows.tolist()) == (everything.depth, everything.rows.tolist())
    hits, wanted = index.rank(whole, 300, fusion), exact.rank(everything, 300, fusion)
    assert (hits.rows.tobytes(), hits.fused.tobytes()) == (wanted.rows.tobytes(), wanted.fused.tobytes())


def test_what_was_taken_out_stays_out_of_rows_that_are_added_but_not_of_the_eligible(proposing):
    index, _, query = proposing
    [scores] = index.score([query])
    best = scores.rows[0]
    without = scores.restricted(np.arange(300) != best)
    assert best not in index.extended(without, np.array([0, 299])).rows
    assert without.eligible.tolist() == list(range(300))
    assert index.deepened(without, 300, mode="hybrid").rows.tolist() == list(range(300))


def test_the_bits_of_an_exact_score_do_not_depend_on_neighbours_or_memory_order():
    vectors = np.random.default_rng(1).normal(size=(50, 33)).astype(np.float32)
    together = exact_scores(vectors, vectors[0]).tolist()
    assert exact_scores(np.asfortranarray(vectors), vectors[0]).tolist() == together
    assert [exact_scores(vectors[i : i + 1], vectors[0])[0] for i in range(50)] == together
