"""Selections from a FAISS index: what it proposes is no bound of what may be chosen.

It is asked for 20 rows of 400, so that whatever looks only at those is found out; the exact index is the oracle.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from support import build

from indexes.channels import Query
from indexes.dense import DenseIndex
from retriever import Example, IndexSettings
from retriever.ranking import pipeline
from retriever.ranking.strategies.base import Candidates
from retriever.rescoring import Rescorer

COUNT, PROPOSALS = 400, 20
FACTORIES = [
    "HNSW16",
    "IVF40,Flat",
    "PQ8x4fs",
]  # a graph; cells, most of which are not looked into; one without filters
MODES = ["dense", "hybrid", "lexical"]
WORDS = ["amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty"]
ROWS = [
    {
        "id": f"e{i}",
        "input": f"{WORDS[i % 10]} {WORDS[i // 10 % 10]} {WORDS[i // 100]} {i * 7919 % 1000}",
        "output": f"o{i % 5}",
        "meta": {"half": i % 2, "few": i % 50},
    }
    for i in range(COUNT)
]
QUERY = "cedar delta amber 42"
FAR = [f"e{i}" for i in range(0, COUNT, 40)]
REMOVED = [f"e{i}" for i in range(3, COUNT, 7)]


@pytest.fixture(autouse=True)
def few_proposals(monkeypatch):
    monkeypatch.setattr("indexes.hybrid.PROPOSALS", PROPOSALS)
    monkeypatch.setattr("indexes.ann.PROPOSALS", PROPOSALS)
    monkeypatch.setattr("indexes.ann._FEW_ELIGIBLE", 10)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    return build(ROWS, tmp_path_factory.mktemp("exact") / "ix", weight=0.5)


@pytest.fixture(scope="module", params=FACTORIES)
def proposing(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("indexes.ann.PROPOSALS", PROPOSALS)  # else it is built to look everywhere
        path = tmp_path_factory.mktemp("proposing") / "ix"
        return build(ROWS, path, weight=0.5, settings=IndexSettings(ann=request.param))


def ids(selection):
    return [one.example.id for one in selection]


def parts(*some, **select):
    return {"select": {"k": 8, **select, "parts": list(some)}}


def test_the_oracle_is_exact_and_the_other_one_proposes_few(exact, proposing):
    assert exact._live.selector.snapshot.index.dense.ann is None
    index = proposing._live.selector.snapshot.index
    vectors = proposing._live.selector.query_vectors([Example(id="q", input=QUERY)])
    [scores] = index.score([Query(vectors[0])], mode="dense")
    assert PROPOSALS / 2 <= len(scores.rows) <= PROPOSALS
    assert (len(scores.eligible), scores.depth) == (COUNT, PROPOSALS)


NAMED = [
    pytest.param({"strategy": "fixed", "fixed": FAR, "k": 10}, id="fixed"),
    pytest.param({"strategy": "fixed", "fixed": [*FAR, "e3"], "k": 11, "where": "half == 0"}, id="fixed-where"),
    pytest.param({"strategy": "fixed", "fixed": FAR, "k": 10, "exclude": ["e0", "e80"]}, id="fixed-exclude"),
    pytest.param({"strategy": "random", "k": 9}, id="random"),
    pytest.param({"strategy": "random", "k": 9, "seed": 5, "where": "half == 1"}, id="random-where"),
    pytest.param({"strategy": "random", "k": 300, "guard": "near"}, id="random-most"),
    pytest.param({"strategy": "random", "k": 9, "options": {"stratified": True}}, id="random-stratified"),
    pytest.param({"recipe": parts({"strategy": "random", "k": 8, "shared": True})}, id="shared"),
    pytest.param(
        {"recipe": parts({"strategy": "cluster", "k": 8, "shared": True}), "exclude": ["e1"]}, id="shared-cluster"
    ),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", NAMED)
def test_what_is_named_shared_or_drawn_comes_from_all_eligible_examples(exact, proposing, options, mode):
    wanted, found = (index.select(QUERY, mode=mode, **options) for index in (exact, proposing))
    assert ids(found) == ids(wanted)
    assert (found.eligible, found.notes) == (wanted.eligible, wanted.notes)
    for one, other in zip(found, wanted, strict=True):
        assert one.channels["fused"] == pytest.approx(other.channels["fused"], abs=0.05)  # of maxima that were found
        assert one.channels.get("dense") == other.channels.get("dense")
        assert one.channels.get("lexical") == other.channels.get("lexical")


def test_a_match_and_the_guard_keep_out_what_is_named_although_it_was_not_proposed(exact, proposing):
    query = {"id": "e0", "input": ROWS[40]["input"], "meta": {"half": 0}}  # e0 is the query itself, e40 its copy
    options = {"strategy": "fixed", "fixed": [*FAR, "e1"], "k": 11, "match": ["half"], "guard": "exact"}
    wanted, found = (index.select(query, **options) for index in (exact, proposing))
    assert ids(found) == ids(wanted) == [one for one in FAR if one not in ("e0", "e40")]
    assert [one.id for one in found.dropped] == ["e0", "e40"]
    assert found.eligible == wanted.eligible == COUNT // 2 - 1


def test_shared_parts_are_the_same_for_every_query(proposing):
    recipe = parts({"strategy": "random", "k": 5, "shared": True})
    queries = [QUERY, "jetty 7", "nothing known", ""]
    shared = [[d.example.id for d in s if d.shared] for s in proposing.select_many(queries, recipe=recipe)]
    assert [len(block) for block in shared] == [5] * 4
    assert shared[1:] == shared[:-1]


DEEP = [
    pytest.param({"k": 150}, id="k"),
    pytest.param({"k": COUNT + 5}, id="k-beyond-the-pool"),
    pytest.param({"k": 100, "where": "half == 0"}, id="k-where"),
    pytest.param({"k": 190, "where": "half == 0", "fixed": FAR}, id="k-where-fixed"),
    pytest.param({"k": 390, "strategy": "mmr"}, id="mmr"),
    pytest.param({"k": 30, "fusion": "rrf", "guard": "near"}, id="rrf"),
    pytest.param({"k": 7, "where": "few == 3"}, id="fewer-than-proposals"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", DEEP)
def test_k_is_filled_and_the_count_of_the_eligible_is_right(exact, proposing, options, mode):
    wanted, found = (index.select(QUERY, mode=mode, **options) for index in (exact, proposing))
    assert len(found) == len(set(ids(found))) == len(wanted) == min(options["k"], wanted.eligible)
    assert (found.eligible, found.notes) == (wanted.eligible, wanted.notes)
    if options.get("fusion") != "rrf":
        # What FAISS misses of the best is made up for by the next ones.
        assert len(set(ids(found)) & set(ids(wanted))) >= 0.8 * len(wanted)


def test_a_whole_pool_asked_for_comes_in_the_exact_order(exact, proposing):
    for mode in MODES:
        wanted, found = (index.select(QUERY, mode=mode, k=COUNT) for index in (exact, proposing))
        assert ids(found) == ids(wanted)
        assert [one.channels for one in found] == [one.channels for one in wanted]


@pytest.mark.parametrize("rule", ["convex", "rrf"])
def test_a_guard_that_blocks_more_than_is_proposed_leaves_k_filled(tmp_path, rule):
    copies = [{"id": f"c{i}", "input": QUERY, "output": "o"} for i in range(3 * PROPOSALS)]
    index = build([*copies, *ROWS], tmp_path / "ix", weight=0.5, settings=IndexSettings(ann="HNSW16"))
    for mode in MODES:
        found = index.select(QUERY, mode=mode, fusion=rule, guard="exact", k=30)
        assert len(found) == 30
        assert not any(one.startswith("c") for one in ids(found))
        assert {one.id for one in found.dropped} <= {one["id"] for one in copies}
        assert (found.eligible, found.notes) == (len(copies) + COUNT, ())


def test_removed_examples_are_neither_drawn_nor_named_nor_counted(exact, tmp_path):
    there = build(ROWS, tmp_path / "exact", weight=0.5)
    here = build(ROWS, tmp_path / "ann", weight=0.5, settings=IndexSettings(ann="IVF40,Flat"))
    for index in (there, here):
        index.remove(REMOVED)
        index.add([{"id": f"n{i}", "input": f"{WORDS[i]} new", "output": "o"} for i in range(3)])
    left = COUNT - len(REMOVED) + 3
    for options in ({"strategy": "random", "k": 60}, {"strategy": "random", "k": left}, {"k": left, "mode": "dense"}):
        wanted, found = (index.select(QUERY, **options) for index in (there, here))
        assert ids(found) == ids(wanted)
        assert found.eligible == wanted.eligible == left
        assert not set(ids(found)) & set(REMOVED)


def test_as_many_candidates_are_looked_at_as_the_recipe_asks_for(proposing, monkeypatch):
    seen: list[int] = []

    def counted(rows, *more, **named):
        seen.append(len(rows))
        return Candidates(rows, *more, **named)

    monkeypatch.setattr(pipeline, "Candidates", counted)
    for mode in MODES:
        proposing.select(QUERY, strategy="mmr", k=3, candidates=150, mode=mode)
    assert seen == [150] * 3


@pytest.mark.parametrize("mode", MODES)
def test_a_reranker_scores_as_many_as_its_depth(proposing, monkeypatch, mode):
    seen: list[int] = []

    def scored(self, settings, query, rows):
        seen.append(len(rows))
        return rows.astype(np.float64)

    monkeypatch.setattr(Rescorer, "scores", scored)
    recipe = {"rerank": {"by": "cross-encoder:none", "depth": 150, "weight": 1.0}, "select": {"k": 3}}
    assert len(proposing.select(QUERY, recipe=recipe, mode=mode)) == 3
    assert seen == [150]


def test_select_each_gives_what_select_gives_whatever_the_depths(proposing):
    recipes = [
        {"select": {"k": 3}},
        {"select": {"k": 250}},
        {"select": {"k": 4, "strategy": "random"}},
        {"select": {"k": 3, "strategy": "mmr", "candidates": 300}},
        {"select": {"k": 90, "fixed": FAR}, "guard": {"level": "near"}},
    ]
    [together] = proposing.select_each([QUERY], recipes)
    for selection, recipe in zip(together, recipes, strict=True):
        alone = proposing.select(QUERY, recipe=recipe)
        assert json.dumps(selection.to_dict()) == json.dumps(alone.to_dict())


def test_the_usual_selection_proposes_once(proposing, monkeypatch):
    asked: list[int] = []
    propose = DenseIndex.propose
    monkeypatch.setattr(
        DenseIndex, "propose", lambda self, query, count, mask: asked.append(count) or propose(self, query, count, mask)
    )
    for mode in ("dense", "hybrid"):
        assert len(proposing.select(QUERY, mode=mode, k=8, fixed=FAR[:2])) == 8
    assert asked == [PROPOSALS] * 2


def test_an_empty_index_that_was_added_to_answers_with_every_kind_of_filter(tmp_path):
    index = build([], tmp_path / "ix", settings=IndexSettings(ann="HNSW16"), weight=0.5)
    index.add([{"id": f"z{i}", "input": f"amber {i}", "output": "o", "meta": {"t": 1}} for i in range(3)])
    assert len(index.select("amber 1")) == 3
    assert len(index.select("amber 1", where={"t": 1})) == 3
    assert sorted(ids(index.select("amber 1", exclude=["z1"], mode="dense"))) == ["z0", "z2"]
    assert sorted(ids(index.select({"id": "z1", "input": "amber 1"}))) == ["z0", "z2"]
