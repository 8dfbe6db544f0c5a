"""The benchmark of what grows with the pool: its data, its exponents, and a run on a pool of fifty."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import scale

from retriever import IndexSettings, Retriever


def test_a_smaller_pool_is_the_beginning_of_a_larger_one(monkeypatch):
    monkeypatch.setattr(scale, "_CHUNK", 8)
    many = list(scale.examples(20))
    assert len(many) == 20
    assert list(scale.examples(11)) == many[:11]
    assert {len(example.input_text.split()) for example in many} == {12}
    assert [example.input for example in scale.examples(20, seed=1)] != [example.input for example in many]


def test_a_text_is_the_sum_of_its_words_whatever_stands_beside_it():
    words = scale.Words(4)
    one, both, again = words.encode(["w1", "w1 w7 w7", "w1"])
    np.testing.assert_array_equal(one, again)
    np.testing.assert_allclose(both, one + 2 * words.encode(["w7"])[0], rtol=1e-6)


def test_exponents_of_a_constant_a_line_and_a_square():
    sizes = [1000, 10_000, 100_000]
    for power in (0, 1, 2):
        assert scale.exponent(sizes, [3.0 * size**power for size in sizes]) == pytest.approx(power, abs=1e-12)


def test_a_run_gives_every_column(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "_ADDS", 2)
    built = scale.build(50, 8, tmp_path / "i", IndexSettings(vectors="int8"))
    used = scale.use(50, 8, tmp_path / "i", 3)
    assert {*built, *used} == set(scale.COLUMNS)
    assert all(value > 0 for value in (built | used).values())


@pytest.mark.parametrize("size", [5, 200])
def test_an_exact_search_finds_all_and_one_of_other_vectors_does_not(tmp_path, monkeypatch, size):
    monkeypatch.setattr(scale, "_CHUNK", 64)
    queries, words = list(scale.examples(6, seed=1)), scale.Words(8)
    with Retriever.build(scale.examples(size), tmp_path / "i", embedder=words, weight=0.5) as index:
        assert scale.recall(size, index, words, queries) == 1.0
    with Retriever.build(scale.examples(size, seed=2), tmp_path / "o", embedder=words, weight=0.5) as other:
        assert scale.recall(size, other, words, queries) < 1.0


def test_equal_figures_give_equal_curves(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [dict.fromkeys(scale.COLUMNS, float(size)) for size in (10, 100)]
    for name in ("a", "b"):
        scale.plot([10, 100], rows, tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
