"""BM25: hand-computed numbers, a brute-force oracle, rank-bm25, and exact equality with a rebuild."""

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi, BM25Plus

from indexes.analyzers import words
from indexes.errors import InvalidInput
from indexes.lexical import BM25, VARIANTS, BM25Index
from indexes.postings import Postings, check_postings
from indexes.reference import RankBM25Index
from indexes.vocabulary import Vocabulary

BANKING = Path(__file__).resolve().parents[2] / "shared" / "data" / "banking77"

DOCUMENTS = [["cat", "sat", "mat"], ["cat", "cat"], ["dog"], ["dog", "ran", "far", "off", "fast"], []]

documents_of = st.lists(st.sampled_from("abcdef"), max_size=6)
corpora = st.lists(documents_of, min_size=1, max_size=9)
queries = st.lists(st.sampled_from("abcdefz"), max_size=6)
parameters = st.fixed_dictionaries(
    {"k1": st.floats(0.1, 4.0), "b": st.floats(0.0, 0.99)}, optional={"epsilon": st.floats(0.0, 1.0)}
)


def index_of(documents, variant="lucene", **settings):
    return BM25Index([Postings.from_documents(documents)], BM25(variant=variant, **settings))


def brute(documents, query, variant, k1=1.5, b=0.75, delta=None):
    """Each formula of the literature, one document and one term at a time."""
    size, mean = len(documents), sum(map(len, documents)) / len(documents) or 1.0
    scores = []
    for document in documents:
        score = 0.0
        for term in query:
            n, tf = sum(term in other for other in documents), document.count(term)
            if not tf:
                continue
            norm = 1 - b + b * len(document) / mean
            saturated = tf * (k1 + 1) / (tf + k1 * norm)
            if variant == "lucene":
                score += math.log(1 + (size - n + 0.5) / (n + 0.5)) * saturated
            elif variant == "plus":
                score += math.log((size + 1) / n) * (saturated + (1.0 if delta is None else delta))
            else:
                c = tf / norm + (0.5 if delta is None else delta)
                score += math.log((size + 1) / (n + 0.5)) * (k1 + 1) * c / (k1 + c)
        scores.append(score)
    return scores


@pytest.mark.parametrize("variant", VARIANTS)
@given(documents=corpora, query=queries, data=st.data())
def test_the_scores_of_some_rows_have_the_bits_of_those_of_all(variant, documents, query, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(documents)), max_size=2)))
    removed = {row: documents[row] for row in data.draw(st.sets(st.integers(0, len(documents) - 1)))}
    segments = [Postings.from_documents(documents[a:b]) for a, b in pairwise([0, *cuts, len(documents)])]
    index = BM25Index(segments, BM25(variant), removed)
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(documents) - 1)))), dtype=np.int64)
    assert index.scores_of(rows, query).tobytes() == index.scores(query)[rows].tobytes()


def test_one_small_corpus_computed_by_hand():
    # Four documents of 3, 2, 1 and 2 terms (mean 2); "cat" is in two of them, so its lucene idf is ln(1 + 2.5/2.5).
    documents = [["cat", "sat", "mat"], ["cat", "cat"], ["dog"], ["dog", "ran"]]
    # Norms 0.25 + 0.75 · length / 2: 1.375, 1, 0.625, 1. Row 0: 2.5 / (1 + 1.5 · 1.375); row 1: 5 / (2 + 1.5).
    expected = [math.log(2) * 2.5 / 3.0625, math.log(2) * 5 / 3.5, 0, 0]
    assert index_of(documents).scores(["cat"]) == pytest.approx(expected, abs=1e-12)
    assert index_of(documents).scores(["cat"])[:2] == pytest.approx([0.565834, 0.990210], abs=1e-6)
    plus = [math.log(2.5) * (1 + 2.5 / 3.0625), math.log(2.5) * (1 + 5 / 3.5), 0, 0]
    assert index_of(documents, "plus").scores(["cat"]) == pytest.approx(plus, abs=1e-12)
    # l: c = 1 / 1.375 + 0.5 and 2 / 1 + 0.5; 2.5 · c / (1.5 + c); idf ln(5 / 2.5).
    low = 1 / 1.375 + 0.5
    by_l = [math.log(2) * 2.5 * low / (1.5 + low), math.log(2) * 2.5 * 2.5 / 4, 0, 0]
    assert index_of(documents, "l").scores(["cat"]) == pytest.approx(by_l, abs=1e-12)
    # okapi: "cat" is in exactly half of the documents, so its idf is 0; "ran" is in one: ln(3.5 / 1.5).
    assert index_of(documents, "okapi").scores(["cat"]).tolist() == [0, 0, 0, 0]
    ran = [0, 0, 0, math.log(3.5 / 1.5)]
    assert index_of(documents, "okapi").scores(["ran"]) == pytest.approx(ran, abs=1e-12)


def test_a_term_in_most_documents_gets_the_okapi_floor():
    documents = [["a", "b"], ["a", "c"], ["a", "d"]]
    # idf a = ln(0.5 / 3.5); b, c and d have ln(2.5 / 1.5) each; the floor is a quarter of their mean.
    mean = (math.log(0.5 / 3.5) + 3 * math.log(2.5 / 1.5)) / 4
    assert index_of(documents, "okapi").scores(["a"]) == pytest.approx([0.25 * mean] * 3, abs=1e-12)
    assert index_of(documents, "okapi", epsilon=1.0).scores(["a"]) == pytest.approx([mean] * 3, abs=1e-12)


@given(corpora, queries, parameters)
def test_okapi_agrees_with_rank_bm25_wherever_that_is_sound(documents, query, settings):
    assume(any(documents))
    expected = BM25Okapi(documents, **settings).get_scores(query)
    np.testing.assert_allclose(index_of(documents, "okapi", **settings).scores(query), expected, rtol=0, atol=1e-6)


@given(corpora, queries, st.floats(0.1, 4.0), st.floats(0.0, 0.99), st.floats(0.0, 2.0))
def test_plus_agrees_with_rank_bm25_where_a_document_has_the_term(documents, query, k1, b, delta):
    # rank-bm25 adds delta · idf to documents without the term as well; taking that away leaves the published rule.
    assume(any(documents))
    reference = BM25Plus(documents, k1=k1, b=b, delta=delta)
    expected = np.zeros(len(documents))
    for term in query:
        here = np.array([term in document for document in documents])
        expected += np.where(here, reference.get_scores([term]), 0.0)
    mine = index_of(documents, "plus", k1=k1, b=b, delta=delta).scores(query)
    np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-6)


@given(corpora, queries)
def test_plus_differs_from_rank_bm25_by_delta_idf_for_each_query_term_that_a_document_lacks(documents, query):
    assume(any(documents))
    reference = BM25Plus(documents)
    constant = sum(reference.idf.get(term, 0.0) for term in query)
    lacking = [sum(reference.idf.get(t, 0.0) for t in query if t not in document) for document in documents]
    mine = index_of(documents, "plus").scores(query)
    np.testing.assert_allclose(mine + lacking, reference.get_scores(query), rtol=0, atol=1e-6)
    everywhere = [set(query) & reference.idf.keys() <= set(document) for document in documents]
    without_delta = index_of(documents, "plus", delta=0.0).scores(query)
    full = without_delta + constant
    np.testing.assert_allclose(full, reference.get_scores(query), rtol=0, atol=1e-6)
    np.testing.assert_allclose(mine[everywhere], full[everywhere], rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", ["lucene", "plus", "l"])
@given(documents=corpora, query=queries, k1=st.floats(0.1, 4.0), b=st.floats(0.0, 1.0))
def test_each_variant_agrees_with_its_formula_term_by_term(variant, documents, query, k1, b):
    expected = brute(documents, query, variant, k1, b)
    np.testing.assert_allclose(index_of(documents, variant, k1=k1, b=b).scores(query), expected, rtol=1e-12, atol=1e-12)


@given(corpora, queries)
def test_lucene_scores_are_never_negative_and_positive_exactly_where_a_term_occurs(documents, query):
    scores = index_of(documents).scores(query)
    assert (scores > 0).tolist() == [not set(query).isdisjoint(document) for document in documents]
    assert (scores >= 0).all()


@pytest.mark.skipif(not BANKING.is_dir(), reason="the banking77 data set is not beside the repository")
def test_okapi_and_plus_agree_with_rank_bm25_on_ten_thousand_bank_questions():
    def read(name):
        return [words(json.loads(line)["input"]) for line in (BANKING / name).read_text("utf-8").split("\n") if line]

    documents, asked = read("pool.jsonl"), read("queries.jsonl")[::5]
    assert (len(documents), len(asked)) == (10003, 200)
    postings = Postings.from_documents(documents)
    wanted = {term for query in asked for term in query}
    lengths = np.array([len(document) for document in documents])
    norms = 1 - 0.75 + 0.75 * lengths / lengths.mean()
    reference = BM25Okapi(documents)
    rows_of = {term: [] for term in wanted}
    for row, document in enumerate(documents):
        for term, count in Counter(document).items():
            if term in wanted:
                rows_of[term].append((row, count))
    okapi, plus = BM25Index([postings], BM25("okapi")), BM25Index([postings], BM25("plus"))
    plus_idf = BM25Plus(documents).idf
    for number, query in enumerate(asked):
        by_okapi, by_plus = np.zeros(len(documents)), np.zeros(len(documents))
        for term in query:
            for row, count in rows_of[term]:
                part = count * 2.5 / (count + 1.5 * norms[row])
                by_okapi[row] += reference.idf[term] * part
                by_plus[row] += plus_idf[term] * (1 + part)
        if number % 10 == 0:  # rank-bm25 itself takes a tenth of a second a query; the loop above stands in between
            np.testing.assert_allclose(by_okapi, reference.get_scores(query), rtol=0, atol=1e-9)
        np.testing.assert_allclose(okapi.scores(query), by_okapi, rtol=0, atol=1e-6)
        np.testing.assert_allclose(plus.scores(query), by_plus, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@given(documents=corpora, query=queries, data=st.data())
def test_appends_and_removals_give_exactly_the_scores_of_a_rebuild(variant, documents, query, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(documents)), max_size=3)))
    bounds = [0, *cuts, len(documents)]
    segments = [Postings.from_documents(documents[a:b]) for a, b in pairwise(bounds)]
    gone = data.draw(st.sets(st.integers(0, len(documents) - 1)))
    kept = [row for row in range(len(documents)) if row not in gone]
    grown = BM25Index(segments, BM25(variant), {row: documents[row] for row in gone})
    rebuilt = BM25Index([Postings.from_documents([documents[row] for row in kept])], BM25(variant))
    assert len(grown) == len(documents)
    assert grown.scores(query)[kept].tolist() == rebuilt.scores(query).tolist()
    assert grown.knows(query) == rebuilt.knows(query)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_term_repeated_in_the_query_counts_as_often(variant):
    index = index_of(DOCUMENTS, variant)
    twice = index.scores(["sat", "sat"])
    assert twice.any()
    assert twice == pytest.approx(2 * index.scores(["sat"]))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("documents", [[], [[]], [[], []], [["a"]]])
def test_empty_pools_empty_documents_and_unknown_terms_score_zero(variant, documents):
    index = index_of(documents, variant)
    assert index.scores(["unknown"]).tolist() == [0.0] * len(documents)
    assert index.scores([]).tolist() == [0.0] * len(documents)
    assert not index.knows(["unknown"])
    assert not index.knows([])


def test_an_index_of_no_segments_has_no_rows():
    assert len(BM25Index([])) == 0
    assert BM25Index([]).scores(["a"]).shape == (0,)


@pytest.mark.parametrize(
    "settings",
    [{"variant": "bm25"}, {"k1": 0}, {"k1": -1}, {"k1": float("nan")}, {"k1": float("inf")}, {"b": -0.1}, {"b": 1.1}],
)
def test_settings_outside_their_range_are_refused(settings):
    with pytest.raises(InvalidInput, match=r"BM25"):
        BM25(**settings)


@given(corpora)
def test_postings_give_their_documents_back_up_to_order(documents):
    postings = Postings.from_documents(documents)
    assert postings.documents() == [sorted(document) for document in documents]
    assert postings.lengths.tolist() == [len(document) for document in documents]
    check_postings(postings)


@pytest.mark.parametrize(
    ("field", "value", "words_of_it"),
    [
        ("offsets", [1, 2, 3], "posting offsets"),
        ("offsets", [0, 3, 2], "posting offsets"),
        ("offsets", [], "posting offsets"),
        ("offsets", [0, 3], "2 terms, 2 offsets"),
        ("rows", [0, 1, 2], "not there"),
        ("rows", [-1, 1, 1], "not there"),
        ("counts", [1, 0, 2], "counts under 1"),
        ("counts", [1, 1], "2 counts"),
        ("lengths", [2, 3], "lengths"),
    ],
)
def test_arrays_that_do_not_describe_postings_are_refused(field, value, words_of_it):
    good = Postings.from_documents([["a", "b"], ["a"]])
    check_postings(good)
    array = np.array(value, dtype=getattr(good, field).dtype)
    with pytest.raises(InvalidInput, match=words_of_it):
        check_postings(Postings(**{**vars(good), field: array}))


def test_term_offsets_beyond_the_blob_are_refused():
    good = Postings.from_documents([["a", "b"], ["a"]])
    bad = Vocabulary(good.vocabulary.blob, np.array([0, 1, 9]))
    with pytest.raises(InvalidInput, match="term offsets"):
        check_postings(Postings(**{**vars(good), "vocabulary": bad}))


@given(corpora, queries, st.data())
def test_rank_bm25_behind_the_same_interface_gives_the_same_scores(documents, query, data):
    gone = {row: documents[row] for row in data.draw(st.sets(st.integers(0, len(documents) - 1)))}
    cut = data.draw(st.integers(0, len(documents)))
    segments = [Postings.from_documents(documents[:cut]), Postings.from_documents(documents[cut:])]
    mine, theirs = BM25Index(segments, BM25("okapi"), gone), RankBM25Index(segments, None, gone)
    assert len(mine) == len(theirs) == len(documents)
    assert mine.knows(query) == theirs.knows(query)
    kept = [row for row in range(len(documents)) if row not in gone]
    np.testing.assert_allclose(mine.scores(query)[kept], theirs.scores(query)[kept], rtol=0, atol=1e-6)


def test_rank_bm25_survives_the_empty_pool_behind_the_interface():
    index = RankBM25Index([Postings.from_documents([])])
    assert (len(index), index.knows(["a"]), index.scores(["a"]).tolist()) == (0, False, [])


@pytest.mark.parametrize("variant", ["lucene", "plus", "l"])
def test_rank_bm25_is_refused_for_any_variant_but_okapi(variant):
    with pytest.raises(InvalidInput, match=f"{variant}.*expected okapi"):
        RankBM25Index([Postings.from_documents(DOCUMENTS)], BM25(variant))
