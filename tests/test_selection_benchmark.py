"""The benchmarks of selection and of the budget, small enough to run with the tests. No peer has to be installed."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from retriever.prompting.tokens import Estimate
from retriever.ranking.recipe import Budget
from retriever.ranking.strategies import aspects
from tests.support import benchmark, build, embed

selection, budget = benchmark("selection"), benchmark("budget")
SETTINGS = {"queries": 2, "repeats": 1, "candidates": 30, "k": 5, "dim": 16}


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("pair", [pair for pair in selection.PAIRS if pair[0] in ("dpp", "sift")], ids=lambda p: p[2])
def test_peers_over_vectors_pick_the_same(pair, number):
    _, ours, _, peer = pair
    case = selection.vector_case(number, 40, 16)
    assert peer(case, 6) == ours(case, 6).places.tolist()


@pytest.mark.parametrize("length", [3, 15, 60])
def test_the_literal_cover_picks_the_same_even_where_covers_are_begun_anew(length):
    case = selection.text_case(1, 40, length)
    assert selection.by_sets(case, 12) == selection.our_coverage(case, 12).places.tolist()


@pytest.mark.parametrize("limit", ["_BATCH", "_TABLE"])
def test_texts_in_many_batches_and_numbers_too_large_for_a_table_give_the_same_parts(monkeypatch, limit):
    case = selection.text_case(3, 40, 60)
    whole = selection.term_aspects(case.texts[0], *case.terms)
    monkeypatch.setattr(aspects, limit, 1 if limit == "_TABLE" else 100)
    again = selection.term_aspects(case.texts[0], *case.terms)
    assert np.array_equal(again.covered, whole.covered)
    assert np.array_equal(again.weights, whole.weights)
    assert 0.0 < whole.covered.mean() < 1.0


def test_candidates_are_unit_vectors_that_come_best_first_and_are_the_same_each_time():
    case, again = selection.vector_case(7, 30, 16), selection.vector_case(7, 30, 16)
    assert np.array_equal(case.vectors, again.vectors)
    assert np.linalg.norm(case.vectors, axis=1) == pytest.approx(np.ones(30), abs=1e-6)
    assert all(first >= second for first, second in pairwise(case.relevance))


def test_texts_have_the_asked_length_share_words_with_the_query_and_come_best_first():
    case = selection.text_case(7, 30, 15)
    assert {len(text) for text in case.texts} == {15}
    assert len(case.texts) == len(case.relevance) + 1 == 31
    assert all(first >= second for first, second in pairwise(case.relevance))
    assert case.relevance[0] > 0.1


def test_a_peer_that_is_not_installed_is_left_out_and_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(selection, "maximal_marginal_relevance", None)
    out = tmp_path / "out.json"
    selection.main([*(f"--{name}={value}" for name, value in SETTINGS.items()), "--json", str(out)])
    printed = capsys.readouterr().out.splitlines()
    assert "one thread" in printed[0]
    mmr = next(line for line in printed if line.startswith("mmr "))
    assert mmr.endswith("not installed")
    rows = json.loads(out.read_text())["rows"]
    assert [row["strategy"] for row in rows] == [pair[0] for pair in selection.PAIRS]
    assert [row["same_picks"] for row in rows if "same_picks" in row] == [2] * 6
    assert all(row["min"] <= row["ms"] <= row["max"] for row in rows)


def test_every_budget_of_the_table_keeps_its_promises(tmp_path, capsys):
    rows = [
        {"id": f"p{i}", "input": f"word{i} " * (i % 9 + 1), "output": str(i), "rationale": f"step{i} " * (i % 7)}
        for i in range(40)
    ]
    for name, some in (("pool", rows), ("queries", [{"id": "q0", "input": "word1"}, {"id": "q1", "input": "word7"}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    options = ["--tokens=300", "--demonstrations=30", "--embedder=latent", "--counter=estimate"]
    assert budget.main([str(tmp_path), *options]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "promises broken: none"
    assert [line for line in printed if line.startswith(tuple(budget.WAYS))] == printed[2 : 2 + len(budget.WAYS)]


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    rows = [{"id": f"p{i}", "input": f"word{i}", "output": str(i), "rationale": f"step{i}"} for i in range(20)]
    with build(rows, tmp_path_factory.mktemp("budget") / "x.index", embedder=embed, weight=0.5) as index:
        return list(index.select_many(["word1", "word2"], k=12, guard="off"))


def broken(monkeypatch, chosen, assemble):
    monkeypatch.setattr(budget, "assemble", assemble)
    row = budget.measure("order", Budget(tokens=200), chosen, Estimate())
    assert not row.kept
    return row.over, row.not_maximal, row.again


def test_the_check_finds_a_prompt_over_its_budget(monkeypatch, chosen):
    sound = budget.assemble

    def generous(*args, budget, **options):
        return sound(*args, budget=replace(budget, tokens=budget.tokens + 100), **options)

    assert broken(monkeypatch, chosen, generous)[0] == 2


def test_the_check_finds_a_prompt_that_has_room_left(monkeypatch, chosen):
    sound = budget.assemble

    def mean(*args, budget, **options):
        return sound(*args, budget=replace(budget, tokens=budget.tokens - 60), **options)

    assert broken(monkeypatch, chosen, mean) == (0, 2, 0)


def test_the_check_finds_texts_that_are_tokenized_again(monkeypatch, chosen):
    sound = budget.assemble

    class Forgetful:
        def __init__(self, counter):
            self.name, self.count = counter.name, counter._count

    def forgetful(*args, counter, **options):
        return sound(*args, counter=Forgetful(counter), **options)

    over, not_maximal, again = broken(monkeypatch, chosen, forgetful)
    assert (over, not_maximal) == (0, 0)
    assert again > 0
