"""The benchmark of search, small enough to run with the tests. No peer has to be installed, and no model is loaded."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from indexes.lexical import BM25Index
from indexes.postings import Postings
from tests.support import BENCHMARKS, benchmark

search = benchmark("search")
synthetic = search.synthetic
SMALL = search.Size(examples=60, dim=16, queries=3, repeats=2)


@pytest.fixture(autouse=True)
def no_peer_installed(monkeypatch):
    monkeypatch.setattr(search, "installed", lambda peer: False)


def test_texts_are_seeded_and_their_words_follow_zipf():
    texts = synthetic.texts(2000)
    assert texts == synthetic.texts(2000) != synthetic.texts(2000, seed=1)
    words = [word for text in texts for word in text.split()]
    assert len(words) == 2000 * 12
    # The sum of 1 / i up to 50,000 is 11.4: the shares of the first two words are 8.8 % and 4.4 %.
    assert words.count("w0") / len(words) == pytest.approx(0.088, abs=0.006)
    assert words.count("w1") / len(words) == pytest.approx(0.044, abs=0.006)


def test_a_vector_has_unit_length_depends_on_its_text_alone_and_is_near_that_of_a_text_with_the_same_words():
    embed = synthetic.Embedder(16)
    vectors = embed(["w7 w900 w31", "w31 w7 w900", "w7 w900 w12", "where is my card"])
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-6)
    assert np.array_equal(vectors[2:3], synthetic.Embedder(16)(["w7 w900 w12"]))
    assert vectors[0] @ vectors[1] == pytest.approx(1.0, abs=1e-6)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert embed([]).shape == (0, 16)


def test_sentences_are_seeded_all_different_and_of_one_length():
    sentences = synthetic.sentences(500)
    assert sentences == synthetic.sentences(500)
    assert len(set(sentences)) == 500
    assert {len(sentence.split()) for sentence in sentences} == {synthetic.SENTENCE_TOKENS - 2}
    paragraphs = synthetic.paragraphs(100)
    assert len(set(paragraphs)) == 100
    assert {len(paragraph.split()) for paragraph in paragraphs} == {synthetic.PARAGRAPH_TOKENS - 2}


def test_callers_take_turns_in_an_order_that_is_reversed_every_time():
    called = []
    calls = {name: lambda n, name=name: called.append((name, n)) for name in ("a", "b")}
    times = synthetic.alternate(calls, [5, 6, 7], warm=False)
    assert called == [("a", 5), ("b", 5), ("b", 6), ("a", 6), ("a", 7), ("b", 7)]
    assert {name: len(one) for name, one in times.items()} == {"a": 3, "b": 3}
    assert min(*times["a"], *times["b"]) >= 0


def test_a_call_that_is_to_be_warm_is_made_once_without_being_timed():
    called = []
    times = synthetic.alternate({"a": called.append}, [3, 4])
    assert called == [0, 3, 4]
    assert len(times["a"]) == 2


def test_garbage_is_collected_again_after_a_call_that_fails():
    def fails(number):
        assert not synthetic.gc.isenabled()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        synthetic.alternate({"a": fails}, [1], warm=False)
    assert synthetic.gc.isenabled()


def test_ratio_and_verdicts_are_of_medians():
    row = synthetic.Row(
        "work",
        {"ours": [1.0, 2.0, 90.0], "slow": [4.0, 4.0, 4.0], "fast": [1.0, 1.0, 1.0], "other": [1.0]},
        {"ours": 2.0, "slow": 0.5, "fast": 1.9},
        {"same rows": True, "same scores": False, "for the reader": None},
    )
    assert row.ratio("slow") == 0.5
    assert [row.verdict(name) for name in row.times] == ["met", "met", "missed", ""]
    lines = list(synthetic.printed(row))
    assert lines[0].split() == ["work", "2.00", "1.00", "90.00", "≤", "2", "ms", "met"]
    assert lines[2].split() == ["fast", "1.00", "1.00", "1.00", "2", "≤", "1.9", "×", "missed"]
    assert [line.strip() for line in lines[4:]] == ["same rows: met", "same scores: missed", "for the reader"]


def test_the_product_in_numpy_gives_the_best_rows_in_order():
    vectors = np.eye(4, dtype=np.float32)
    query = np.array([0.1, 0.9, 0.4, 0.0], np.float32)
    assert synthetic.numpy_top(vectors, query, 3).tolist() == [1, 2, 0]


def test_the_check_of_the_best_passes_ties_and_finds_another_row(monkeypatch):
    index = BM25Index([Postings.from_documents([["a"]] * 11 + [["b", "a"], ["c"]])])
    monkeypatch.setattr(search, "bm25s_top", lambda peer, terms, k: peer)
    ties, another = np.arange(1, 11), np.array([*range(9), 12])
    assert search.same_best(index, ties, [["a"]]) == {"same best": True}
    assert search.same_best(index, another, [["a"]]) == {"same best": False}


def test_the_table_names_every_work_and_what_is_not_installed(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(search.kernels, "_compiled", lambda: None)
    monkeypatch.setattr(search, "by_itself", search.measured)  # another process would know of no patch
    out = tmp_path / "out.json"
    options = [f"--{name}={value}" for name, value in vars(SMALL).items()]
    search.main([*options, "--only", "bm25", "build", "dense", "select", "open", "--json", str(out)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("peers not installed: bm25s with numba, rank-bm25, FAISS, flat, LangChain")
    numpy = next(line for line in printed if line.startswith("    NumPy")).split()
    assert "same rows for 3 of 3: met" in [line.strip() for line in printed]
    rows = json.loads(out.read_text())["rows"]
    works = [row["work"].split(",")[0].split(" 60")[0] for row in rows]
    assert works == ["BM25 top-10"] * 4 + ["BM25 build"] + ["exact dense top-50"] * 3 + ["select"] + ["open"] * 3
    assert [len(row["times"]["ours"]) for row in rows] == [3, 3, 6, 2, 2, 6, 6, 6, 6, 2, 2, 2]
    assert rows[5]["verdicts"] == {"ours": "", "NumPy": next(word for word in numpy if word in ("met", "missed"))}


def test_the_program_measures_each_work_in_a_process_of_its_own(tmp_path):
    out = tmp_path / "out.json"
    options = [f"--{name}={value}" for name, value in vars(SMALL).items()]
    program = [sys.executable, BENCHMARKS / "search.py", *options, "--only", "open", "dense", "--json", out]
    subprocess.run(program, check=True, capture_output=True, timeout=300)
    rows = json.loads(out.read_text())["rows"]
    assert list(dict.fromkeys(row["work"].split()[0] for row in rows)) == ["open", "exact"]


@pytest.mark.parametrize(
    ("rows", "sizes", "timed"), [(search.query_rows, [1] * 64, [6, 6]), (search.pool_rows, [60] * 3 + [15] * 3, [2, 2])]
)
def test_embedding_is_timed_with_whatever_the_default_is(monkeypatch, tmp_path, rows, sizes, timed):
    asked = []

    class Default:
        name, dim = "default", 16

        def encode(self, texts):
            asked.append(len(texts))
            return synthetic.Embedder(16)(texts)

    monkeypatch.setattr(search, "load_embedder", lambda settings, note, pool_texts: Default())
    monkeypatch.setattr(search, "has_bfloat16", lambda: False)
    monkeypatch.setattr(search, "OPENED", 0.0)
    assert [len(row.times["ours"]) for row in rows(SMALL, tmp_path)] == timed
    assert asked == sizes


def test_a_process_gives_what_it_prints_and_its_failure_is_an_error():
    assert search.process("import sys; print(sys.argv[1])", "here") == "here\n"
    with pytest.raises(search.subprocess.CalledProcessError):
        search.process("raise SystemExit(3)")
