"""The compiled loops give the bits that NumPy gives, and are compiled only when there is enough to do."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexes import kernels
from indexes.lexical import BM25, VARIANTS, BM25Index
from indexes.postings import Postings
from indexes.topk import top

needs_numba = pytest.mark.skipif(kernels.find_spec("numba") is None, reason="the extra `fast` is not installed")

documents_of = st.lists(st.sampled_from("abcdef"), max_size=6)
corpora = st.lists(documents_of, min_size=1, max_size=9)
queries = st.lists(st.sampled_from("abcdefz"), max_size=6)
parameters = st.fixed_dictionaries(
    {"k1": st.floats(0.1, 4.0), "b": st.floats(0.0, 1.0), "delta": st.none() | st.floats(0.0, 2.0)}
)


@pytest.fixture(scope="module")
def compiled():
    """The loops, compiled once for all tests of this file; elsewhere NumPy goes on working."""
    loader = kernels.Loader()
    loader.load()
    return loader


@pytest.fixture
def loader():
    """One that has done nothing yet, in use."""
    fresh = kernels.Loader()
    with kernels.using(fresh):
        yield fresh


def exactly(documents, query, index):
    """The score of each document by Python's own numbers, in the order in which the query names its terms."""
    bm25 = index.settings
    mean = sum(map(len, documents)) / len(documents) or 1.0
    scores = []
    for document in documents:
        score, norm = 0.0, 1.0 - bm25.b + bm25.b * (len(document) / mean)
        for term, times in Counter(query).items():
            tf = float(document.count(term))
            if not tf:
                continue
            part = tf * (bm25.k1 + 1.0) / (tf + bm25.k1 * norm)
            if bm25.variant == "plus":
                part = bm25.lower_bound + part
            if bm25.variant == "l":
                c = tf / norm + bm25.lower_bound
                part = (bm25.k1 + 1.0) * c / (bm25.k1 + c)
            score += times * (index._idf(sum(term in other for other in documents)) * part)
        scores.append(score)
    return scores


@needs_numba
@pytest.mark.parametrize("variant", VARIANTS)
@given(documents=corpora, asked=st.lists(queries, min_size=1, max_size=4), values=parameters, data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_numpy_the_compiled_loops_and_python_give_the_same_bits(compiled, variant, documents, asked, values, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(documents)), max_size=2)))
    segments = [Postings.from_documents(documents[a:b]) for a, b in pairwise([0, *cuts, len(documents)])]
    by_numpy, by_loops = BM25Index(segments, BM25(variant, **values)), BM25Index(segments, BM25(variant, **values))
    for query in [*asked, *asked, *asked]:  # weights are worked out, then kept, then read
        with kernels.using(kernels.Loader()):
            mine = by_numpy.scores(query)
        with kernels.using(compiled):
            assert by_loops.scores(query).tobytes() == mine.tobytes()
        assert mine.tolist() == exactly(documents, query, by_numpy)


@pytest.fixture(scope="module")
def many():
    """Postings over several of the blocks of rows that are scored together, and what is asked of them."""
    random = np.random.default_rng(5)

    def draw(count):
        return [[f"t{n}" for n in random.zipf(1.3, random.integers(0, 9)) if n < 400] for _ in range(count)]

    return Postings.from_documents(draw(3 * kernels.ROWS + 17)), draw(12)


def three_times(many, loader):
    """The scores of every query by an index that is asked again and again, by one loader."""
    postings, asked = many
    index = BM25Index([postings])
    with kernels.using(loader):
        return np.array([[index.scores(terms) for terms in asked] for _ in range(3)])


@pytest.mark.parametrize("repeats", [1, 8, 9, 200])
@pytest.mark.parametrize("length", [12, 1024, 1025])
@pytest.mark.parametrize("variant", VARIANTS)
def test_long_texts_and_frequent_terms_have_the_bits_of_python(loader, variant, length, repeats):
    documents = [["a"] * repeats + ["b"] * (length - 12) + ["c"], ["a", "c"], ["b"]]
    index = BM25Index([Postings.from_documents(documents)], BM25(variant))
    assert index.scores(["a", "c", "b", "a"]).tolist() == exactly(documents, ["a", "c", "b", "a"], index)


@needs_numba
def test_many_rows_have_the_same_bits(many, compiled):
    by_numpy = three_times(many, kernels.Loader())
    assert np.array_equal(three_times(many, compiled), by_numpy)
    assert np.array_equal(by_numpy[0], by_numpy[2])
    assert by_numpy.any()


@pytest.mark.parametrize("fast", [False, pytest.param(True, marks=needs_numba)])
def test_a_block_of_queries_has_the_bits_of_one_by_one(many, compiled, fast):
    postings, asked = many
    one_by_one, index = BM25Index([postings]), BM25Index([postings])
    wanted = np.array([one_by_one.scores(terms) for terms in asked])
    for _ in range(2):
        with kernels.using(compiled if fast else kernels.Loader()):
            assert np.array_equal(index.block(asked), wanted)
    assert index.block([]).shape == (0, len(postings))


def test_a_term_that_a_block_shares_is_weighed_once(many, loader, monkeypatch):
    postings, _ = many
    index, weighed = BM25Index([postings]), []
    of_some = index._tf_parts

    def noted(counts, lengths):
        weighed.append(len(counts))
        return of_some(counts, lengths)

    monkeypatch.setattr(index, "_tf_parts", noted)
    index.block([["t7", "t9"], ["t9"], ["t9", "t9"]])
    seven, nine = (postings.find(term)[1] for term in ("t7", "t9"))
    assert sum(weighed) == seven.stop - seven.start + nine.stop - nine.start


def test_what_is_asked_for_once_is_not_kept(many, loader):
    postings, _ = many
    index = BM25Index([postings])
    number = postings.find("t9")[0]
    ways = []
    for _ in range(4):
        ways.append(int(index._parts[0].ways[number]))
        index.scores(["t9"])
    assert ways == [kernels.UNKNOWN, kernels.SEEN, kernels.STORED, kernels.STORED]


def test_weights_that_two_threads_have_not_stored_are_not_read(many, loader, monkeypatch):
    postings, _ = many
    index = BM25Index([postings])
    wanted = index.scores(["t9"])
    fresh = BM25Index([postings])

    def beside(part, one, way, scores):  # another thread asks for the term while this one does
        monkeypatch.setattr(fresh, "_add_one", add_fresh)
        fresh.scores(["t9"])
        add_fresh(part, one, way, scores)

    add_fresh = fresh._add_one
    fresh._parts[0].weights.fill(np.nan)
    monkeypatch.setattr(fresh, "_add_one", beside)
    assert np.array_equal(fresh.scores(["t9"]), wanted)
    assert fresh._parts[0].ways[postings.find("t9")[0]] == kernels.SEEN
    assert np.array_equal(fresh.scores(["t9"]), wanted)


@needs_numba
@given(st.integers(1, 3000), st.integers(1, 128), st.integers(1, 40), st.integers(0, 2**32), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_best_in_one_pass_are_the_beginning_of_the_total_order(compiled, count, k, values, seed, ascending):
    random = np.random.default_rng(seed)
    scores = random.integers(0, values, count).astype(np.float64)
    rows = np.sort(random.permutation(2 * count)[:count]) if ascending else random.permutation(2 * count)[:count]
    k = min(k, count)
    wanted = np.lexsort((rows, -scores))[:k]
    assert compiled.kernels.best(rows, scores, k).tolist() == wanted.tolist()


@needs_numba
@pytest.mark.parametrize("k", [1, 10, 128, 129, 6000])
def test_the_best_are_the_same_whoever_finds_them(compiled, k):
    random = np.random.default_rng(k)
    scores, rows = random.integers(0, 900, 10_000) / 7, random.permutation(10_000)
    with kernels.using(kernels.Loader()):
        by_numpy = top(rows, scores, k).tolist()
    with kernels.using(compiled):
        assert top(rows, scores, k).tolist() == by_numpy


def test_nothing_is_compiled_before_as_much_was_done_as_compiling_costs(loader, monkeypatch):
    made = kernels.Kernels(print, print)
    calls = []
    monkeypatch.setattr(kernels, "_compiled", lambda: (calls.append(1), made)[1])
    assert kernels.after(kernels.ENOUGH // 2) is None
    assert kernels.after(kernels.ENOUGH // 2 - 1) is None
    assert kernels.current() is None
    assert kernels.after(1) is made
    assert kernels.after(0) is kernels.current() is kernels.load() is made
    assert calls == [1]


def test_a_service_may_compile_when_it_starts(loader, monkeypatch):
    made = kernels.Kernels(print, print)
    monkeypatch.setattr(kernels, "_compiled", lambda: made)
    assert kernels.load() is kernels.after(1) is made


def test_without_numba_numpy_goes_on_and_numba_is_looked_for_once(loader, monkeypatch):
    looked = []
    monkeypatch.setattr(kernels, "find_spec", looked.append)
    assert kernels.after(kernels.ENOUGH) is None
    assert kernels.after(kernels.ENOUGH) is None
    assert looked == ["numba"]


def test_a_numba_that_cannot_be_imported_is_said_and_does_without(loader, monkeypatch):
    monkeypatch.setattr(kernels, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.warns(RuntimeWarning, match="numba cannot be imported, so that NumPy does its work"):
        assert kernels.after(kernels.ENOUGH) is None


def test_a_few_queries_import_no_numba():
    code = (
        "import sys; from indexes.lexical import BM25Index; from indexes.postings import Postings\n"
        "index = BM25Index([Postings.from_documents([['a', 'b']] * 5000)])\n"
        "for _ in range(50): index.block([['a'], ['b']])\n"
        "assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
