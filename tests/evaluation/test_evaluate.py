"""Recipes compared: what is asked, what is kept from whom, and what the figures say."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import pytest

from retriever import Example, Recipe, evaluate
from retriever.errors import Incompatible, InvalidInput
from retriever.evaluation.comparison import compared
from retriever.evaluation.evaluate import EvalSettings, recipes_of
from retriever.evaluation.intervals import Bootstrap
from retriever.evaluation.metrics import precision
from tests.support import build, embed

WORDS = ("apple", "banana", "cherry", "damson")
POOL = [
    {"id": f"p{i}", "input": f"{WORDS[i % 4]} number {i * 37}", "output": f"eat {WORDS[i % 4]}", "label": WORDS[i % 4]}
    for i in range(48)
]
QUERIES = [
    Example(f"q{i}", f"a {WORDS[i % 4]} please", output=f"eat {WORDS[i % 4]}", label=WORDS[i % 4]) for i in range(40)
]
QUICK = EvalSettings(k=4, resamples=200)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    with build(POOL, tmp_path_factory.mktemp("evaluate") / "i", weight=0.5) as made:
        yield made


def test_figures_are_those_of_selecting_and_counting_by_hand(pool):
    found = evaluate(pool, queries=QUERIES, settings=QUICK)
    for name, mode in (("own (hybrid)", "hybrid"), ("dense", "dense"), ("lexical", "lexical")):
        shares = []
        for query in QUERIES:
            chosen = pool.select(replace(query, output=None, label=None), mode=mode, k=4, guard="near")
            shares.append(precision(query.labels, [d.example.labels for d in chosen]))
        [score] = [score for score in found["precision"].scores if score.recipe == name]
        assert score.mean == pytest.approx(fmean(shares), abs=1e-12)
        assert score.interval.holds(score.mean)


def test_the_metrics_and_recipes_are_told_in_their_order(pool):
    found = evaluate(pool, queries=QUERIES, settings=QUICK)
    assert [one.metric for one in found.metrics] == ["precision", "hit", "majority-vote", "redundancy", "tokens"]
    assert [one.name for one in found.recipes] == ["own (hybrid)", "dense", "lexical"]
    assert found.recipes[0].recipe.retrieve.weight == 0.5  # as calibrated, not left open
    assert (found.asked, found.queries, found.settings["guard"]) == ("queries", 40, "near")
    with pytest.raises(KeyError, match="ndcg"):
        found["ndcg"]


def test_a_recipe_against_itself_is_tied_without_a_doubt(pool):
    found = evaluate(pool, {"one": None, "other": Recipe()}, QUERIES, settings=QUICK)
    for result in found.metrics:
        one, other = result.scores
        assert (one.verdict, other.verdict) == ("best" if result.better else "first", "tied")
        assert (other.difference, other.difference_interval.low, other.difference_interval.high) == (0.0, 0.0, 0.0)


def test_a_recipe_that_is_worse_is_told_apart_with_its_interval(pool):
    recipes = {"random": {"select": {"strategy": "random"}}, "lexical": {"retrieve": {"mode": "lexical"}}}
    worse, best = evaluate(pool, recipes, QUERIES, settings=QUICK)["precision"].scores
    assert (best.recipe, best.mean, best.verdict) == ("lexical", 1.0, "best")
    assert worse.verdict == "worse"
    assert worse.difference == pytest.approx(worse.mean - 1.0)
    assert worse.difference_interval.high < 0.0


def test_what_a_budget_left_out_of_the_prompt_is_no_demonstration_of_the_query(pool):
    small = {"select": {"k": 4}, "budget": {"tokens": 60}}
    settings = EvalSettings(metrics=("precision", "tokens"), resamples=100)
    found = evaluate(pool, {"small": small}, QUERIES, settings=settings)
    for one in found.worst:
        asked = replace(one.query, output=None, label=None)
        shown = {example.id for example in pool.prompt(asked, recipe=small, guard="near").demonstrations}
        chosen = pool.select(asked, recipe=small, guard="near").ids
        assert len(shown) < len(chosen) == 4
        assert one.demonstrations["small"] == tuple(identity for identity in chosen if identity in shown)
    assert not any("got fewer than" in line for line in found.notes)  # of the selection


def compare(better, *rows):
    return compared("hit", better, [*"abc"][: len(rows)], np.array(rows), Bootstrap(200))


def test_less_can_be_better_and_equals_go_to_the_first():
    few, many = [1.0] * 30, [3.0] * 30
    assert [score.verdict for score in compare(-1, many, few).scores] == ["worse", "best"]
    assert [score.verdict for score in compare(1, many, few).scores] == ["best", "worse"]
    assert [score.verdict for score in compare(0, few, many, few).scores] == ["first", "differs", "tied"]
    assert [score.verdict for score in compare(1, few, few).scores] == ["best", "tied"]


def test_queries_that_one_recipe_was_not_judged_on_count_for_none():
    nan = float("nan")
    found = compare(1, [1.0, nan, 0.0], [nan, 1.0, 0.0])
    assert (found.queries, [score.mean for score in found.scores]) == (1, [0.0, 0.0])
    assert found.scores[0].interval is None


def test_held_out_examples_never_meet_themselves_or_their_copies(tmp_path):
    twins = [
        {**row, "id": f"{row['id']}{name}", "input": f"{row['input']}{end}"}
        for row in POOL[:6]
        for name, end in (("", ""), ("x", "!"))
    ]
    with build(twins, tmp_path / "i", weight=0.5) as made:
        recipe = {"guard": {"level": "off"}, "select": {"k": 12}}
        found = evaluate(made, {"open": recipe}, leave_one_out=12, settings=EvalSettings(resamples=100, worst=12))
    assert found.asked == "leave-one-out"
    assert len(found.worst) == 12
    for one in found.worst:
        copies = {one.query.id, f"{one.query.id}x", one.query.id.removesuffix("x")}
        assert not copies & set(one.demonstrations["open"])
        assert len(one.demonstrations["open"]) == 10


def test_what_is_held_out_is_a_seeded_sample_of_what_is_not_removed(tmp_path):
    with build(POOL, tmp_path / "i", weight=0.5) as made:
        made.remove("p0")

        def held(seed, count=20):
            found = evaluate(made, leave_one_out=count, settings=replace(QUICK, seed=seed, worst=100))
            return {one.query.id for one in found.worst}

        assert held(0) == held(0) != held(1)
        assert held(0, 1000) == {row["id"] for row in POOL[1:]}


def test_the_selection_does_not_see_the_answer(pool):
    with pytest.raises(InvalidInput, match="has no 'label' to match"):
        evaluate(pool, {"cheat": {"filter": {"match": ["label"]}}}, QUERIES, settings=QUICK)


def test_the_guard_near_is_on_whatever_the_recipe_says(pool):
    copy = Example("other", "APPLE number 0.", output="eat apple", label="apple")
    near = evaluate(pool, {"r": {"guard": {"level": "off"}}}, [copy, *QUERIES], settings=replace(QUICK, worst=50))
    off = evaluate(pool, {"r": None}, [copy, *QUERIES], settings=replace(QUICK, guard="off", worst=50))
    shown = [next(one.demonstrations["r"] for one in found.worst if one.query == copy) for found in (near, off)]
    assert "p0" not in shown[0] and "p0" in shown[1]


def test_labels_and_worst_queries_are_those_of_the_first_metric(pool):
    settings = replace(QUICK, metrics=("precision@2", "hit"), worst=3)
    odd = Example("odd", "a banana please", output="x", label=["cherry", "nothing"])
    found = evaluate(pool, {"l": {"retrieve": {"mode": "lexical"}}}, [*QUERIES, odd], settings=settings)
    told = [(one.label, one.queries, one.means["l"]) for one in found.labels]
    assert told[:2] == [("nothing", 1, 0.0), ("cherry", 11, pytest.approx(10 / 11))]
    assert told[2:] == [("apple", 10, 1.0), ("banana", 10, 1.0), ("damson", 10, 1.0)]
    assert [(one.query.id, one.values["l"]) for one in found.worst] == [("odd", 0.0), ("q0", 1.0), ("q1", 1.0)]


def test_queries_without_what_a_metric_needs_are_left_out_of_it_alone(pool):
    queries = [*QUERIES, Example("bare", "apple")]
    found = evaluate(pool, queries=queries, settings=replace(QUICK, metrics=("precision", "tokens")))
    assert (found["precision"].queries, found["tokens"].queries) == (40, 41)


def test_relevance_judgements_are_used_where_they_are_given(pool):
    qrels = {"q0": {"p0": 1.0, "p4": 2.0}, "q1": {"p1": 0.0}}
    found = evaluate(pool, queries=QUERIES, qrels=qrels, settings=replace(QUICK, metrics=("ndcg", "recall@1", "mrr")))
    assert [one.queries for one in found.metrics] == [1, 1, 1]
    assert found["mrr"].scores[0].interval is None


def test_relevant_examples_that_the_pool_lacks_are_told_and_refused_when_it_lacks_all(pool):
    settings = replace(QUICK, k=48, metrics=("recall",))
    # d2 is irrelevant, and nobody asks what d4 is judged for: of p0, d1 and d3 the pool lacks two.
    qrels = {"q0": {"p0": 1.0, "d1": 1.0, "d2": 0.0}, "q1": {"d1": 2.0, "d3": 1.0}, "other": {"d4": 1.0}}
    found = evaluate(pool, queries=QUERIES, qrels=qrels, settings=settings)
    assert "2 of 3 relevant examples are not in the pool" in found.notes
    assert found["recall"].scores[0].mean == 0.25  # a half and nothing
    told = []
    foreign = {"q0": {"d1": 1.0, "p0": 0.0}, "q1": {"d2": 1.0}}
    with pytest.raises(InvalidInput, match="2 examples are relevant, the first 'd1', none of them in the pool"):
        evaluate(pool, queries=QUERIES, qrels=foreign, settings=settings, progress=lambda *one: told.append(one))
    assert told == []
    whole = evaluate(pool, queries=QUERIES, qrels={"q0": {"p0": 1.0}}, settings=settings)
    assert not any("relevant" in line for line in whole.notes)


def test_queries_and_documents_that_are_numbered_alike_are_not_the_same(pool):
    settings = replace(QUICK, k=48, metrics=("recall",))
    found = evaluate(pool, queries=[Example("p1", "what?")], qrels={"p1": {"p1": 1.0}}, settings=settings)
    assert found["recall"].scores[0].mean == 1.0


def test_the_same_evaluation_gives_the_same_result(pool):
    once, again = (evaluate(pool, leave_one_out=30, settings=QUICK) for _ in range(2))
    assert once == again
    assert json.dumps(once.to_dict()) == json.dumps(again.to_dict())
    assert once.rows() == again.rows()
    assert "milliseconds" not in json.dumps(once.to_dict())
    assert once.recipes[0].milliseconds > 0
    assert once.rows(times=True)[0]["milliseconds"] == once.to_dict(times=True)["recipes"][0]["milliseconds"]


def test_what_is_loaded_for_the_first_query_is_no_recipes_time(pool, tmp_path, monkeypatch):
    now, loaded = [0.0], []

    def slow_at_first(texts):
        now[0] += 0.001 * len(texts) if loaded else 60.0
        loaded.append(True)
        return embed(texts)

    with build(POOL, tmp_path / "i", weight=0.5, embedder=slow_at_first) as index:
        loaded.clear()
        monkeypatch.setattr("retriever.evaluation.evaluate.time", SimpleNamespace(perf_counter=lambda: now[0]))
        found = evaluate(index, queries=QUERIES, settings=QUICK)
    # Four of the forty texts differ, and none is embedded twice; dense and lexical find them embedded or need none.
    assert [one.milliseconds for one in found.recipes] == pytest.approx([4 / 40, 4 / 40, 0])


def test_blocks_of_queries_change_nothing(pool, monkeypatch):
    whole = evaluate(pool, leave_one_out=30, settings=QUICK)
    monkeypatch.setitem(pool._live.selector.__dict__, "block", 7)
    assert evaluate(pool, leave_one_out=30, settings=QUICK) == whole


def test_progress_tells_each_recipe(pool):
    told = []
    evaluate(pool, {"a": None, "b": None}, QUERIES[:2], settings=QUICK, progress=lambda *one: told.append(one))
    assert told == [("a", 1, 2), ("a", 2, 2), ("b", 1, 2), ("b", 2, 2)]


def test_notes_tell_what_makes_a_figure_doubtful(pool):
    own = Example("p1", "another input", label="apple")
    found = evaluate(pool, {"r": {"select": {"k": 60}}}, [own, QUERIES[0]], settings=EvalSettings(resamples=100))
    assert found.notes == (
        "r: 2 of 2 queries got fewer than 60 demonstrations",
        "2 queries are few: intervals of fewer than 30 are rough",
        "1 queries have ids of examples in the pool, which the guard takes for the queries themselves",
    )


def test_recipes_of_files_stand_beside_the_own_one_under_their_names(pool, tmp_path):
    for folder, name in (("x", "mmr"), ("y", "mmr"), ("x", "rare")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.toml").write_text('[retrieve]\nmode = "dense"\n')
    files = [tmp_path / "x/mmr.toml", tmp_path / "y/mmr.toml", tmp_path / "x/rare.toml"]
    assert list(recipes_of(pool, files)) == ["own (hybrid)", str(files[0]), str(files[1]), "rare"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "neither queries nor leave_one_out"),
        ({"queries": QUERIES, "leave_one_out": 3}, "both queries and leave_one_out"),
        ({"leave_one_out": 0}, "leave_one_out = 0"),
        ({"queries": []}, "no query"),
        ({"queries": QUERIES, "recipes": {}}, "no recipe"),
        ({"queries": ["bare"], "settings": EvalSettings(metrics=("hit",))}, "no query has a label"),
        ({"queries": ["bare"], "settings": EvalSettings(metrics=("template-hit",))}, "no query has an output"),
        ({"queries": QUERIES, "settings": EvalSettings(metrics=("mrr",))}, "no query has a relevance judgement"),
        (
            {"queries": QUERIES, "settings": EvalSettings(metrics=("hit@5",), k=4)},
            "hit@5 .*, which chooses 4; expected no more .*; raise its k",
        ),
        ({"leave_one_out": 5, "settings": EvalSettings(guard="exact")}, "would give its answer away"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(pool, arguments, said):
    with pytest.raises(InvalidInput, match=said):
        evaluate(pool, **arguments)


@pytest.mark.parametrize("wrong", [{"worst": -1}, {"guard": "full"}, {"resamples": 1}, {"level": 2.0}])
def test_settings_that_cannot_be_used_are_refused(wrong):
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        EvalSettings(**wrong)


def test_an_index_that_changes_meanwhile_is_no_result(tmp_path):
    with build(POOL, tmp_path / "i", weight=0.5) as made:

        def change(stage, done, total):
            if (stage, done) == ("a", 1):
                thread = threading.Thread(target=made.add, args=({"input": "new", "output": "x"},))
                thread.start()
                thread.join()

        with pytest.raises(InvalidInput, match="changed while it was evaluated"):
            evaluate(made, {"a": None, "b": None}, QUERIES[:2], settings=QUICK, progress=change)


def test_a_model_that_only_the_index_names_is_not_loaded(pool, monkeypatch):
    stored = Recipe.of({"rerank": {"by": "cross-encoder:evil"}})
    monkeypatch.setitem(pool._live.selector.__dict__, "recipe", stored)
    with pytest.raises(Incompatible, match="cross-encoder"):
        evaluate(pool, queries=QUERIES)
