"""Recipes searched: what is tried, how they are told apart, what is measured again, and when the index changes."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from typer.testing import CliRunner

import cli
from retriever import Example, Recipe, Retriever, tune
from retriever.command_line import improving
from retriever.errors import InvalidInput
from retriever.evaluation.halving import halve, simplest
from retriever.evaluation.intervals import Interval
from retriever.evaluation.search_space import candidates
from retriever.evaluation.tune import TuneSettings
from retriever.evaluation.tuned import Gain
from tests.support import build, embed

WORDS = ("apple", "banana", "cherry", "damson")
POOL = [
    {"id": f"p{i}", "input": f"{WORDS[i % 4]} number {i * 37}", "output": f"eat {WORDS[i % 4]}", "label": WORDS[i % 4]}
    for i in range(48)
]
QUERIES = [
    Example(f"q{i}", f"a {WORDS[i % 4]} please {i}", output=f"eat {WORDS[i % 4]}", label=WORDS[i % 4])
    for i in range(24)
]
QUICK = TuneSettings(resamples=200)
POOR = {"select": {"strategy": "random", "k": 4}}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    with build(POOL, tmp_path_factory.mktemp("tune") / "i", weight=0.5) as made:
        yield made


@pytest.fixture
def poor(tmp_path):
    """An index whose default recipe is a bad one."""
    with build(POOL, tmp_path / "i", weight=0.5, recipe=POOR) as made:
        yield made


def asked_of(matrix):
    """A measure that reads from a matrix, and what it was asked for."""
    calls = []

    def measure(chosen, where):
        calls.append((list(chosen), where.start, where.stop))
        return matrix[list(chosen), where]

    return measure, calls


def test_examples_double_and_candidates_halve():
    matrix = np.repeat(np.linspace(0.0, 0.7, 8)[:, None], 80, axis=1)
    measure, calls = asked_of(matrix)
    values = halve(8, 80, measure)
    assert calls == [
        (list(range(8)), 0, 10),
        ([0, 4, 5, 6, 7], 10, 20),
        ([0, 5, 6, 7], 20, 40),
        ([0, 6, 7], 40, 80),
    ]
    assert (~np.isnan(values)).sum(axis=1).tolist() == [80, 10, 10, 10, 20, 40, 80, 80]


def test_what_the_examples_do_not_tell_from_the_best_stays():
    measure, calls = asked_of(np.ones((6, 16)))
    assert not np.isnan(halve(6, 16, measure)).any()
    assert [len(chosen) for chosen, _, _ in calls] == [6, 6, 6, 6]


def test_few_examples_are_measured_once_each():
    measure, calls = asked_of(np.ones((2, 3)))
    assert not np.isnan(halve(2, 3, measure)).any()
    assert [(start, stop) for _, start, stop in calls] == [(0, 1), (1, 2), (2, 3)]


def test_of_those_within_one_standard_error_of_the_best_the_first_is_chosen():
    best = np.tile([0.0, 1.0, 1.0, 1.0], 25)
    noisy = np.tile([1.0, 1.0, 0.0, 1.0], 25)  # worse by .01 ± .07
    noisy[0] = 0.0
    worse = best - 0.01  # worse by .01 without any doubt
    assert simplest(np.stack([worse, noisy, best])) == 1
    assert simplest(np.stack([worse, best])) == 1
    unfinished = np.where(np.arange(100) < 50, noisy, np.nan)
    assert simplest(np.stack([unfinished, worse, best])) == 2


def test_the_candidates_are_the_own_recipe_changed_each_once():
    own = Recipe.of({"filter": {"where": "x == 1"}, "guard": {"threshold": 0.8}, "order": {"by": "edges"}})
    tried, notes = candidates(own, 0.5)
    assert tried[0].name == "own" and tried[0].recipe == own and notes == []
    assert {(one.recipe.filter, one.recipe.guard, one.recipe.order) for one in tried} == {
        (own.filter, own.guard, own.order)
    }
    names = [one.name for one in tried]
    assert {"lexical", "dense", "weight 0.3", "rrf 0.5", "mmr 0.7", "sift 1, weight 1"} <= set(names)
    assert "weight 0.5" not in names  # the own weight
    assert len({json.dumps(one.recipe.filled().to_dict()) for one in tried}) == len(tried)


def test_each_k_is_tried_with_each_recipe_and_others_are_added():
    few, more = candidates(Recipe(), 0.5)[0], candidates(Recipe(), 0.5, ks=[2, 8])[0]
    assert len(more) == 2 * len(few)
    assert {one.recipe.select.k for one in more} == {2, 8}
    given = {"mine": Recipe.of({"retrieve": {"weight": 0.33}}), "same": Recipe()}
    assert [one.name for one in candidates(Recipe(), 0.5, others=given)[0]][-1] == "mine"


def test_what_does_not_go_together_with_the_own_recipe_is_told():
    own = Recipe.of({"select": {"strategy": "sift"}, "adaptive": {"by": "confidence"}})
    tried, notes = candidates(own, 0.5)
    assert {one.recipe.select.strategy for one in tried} == {"sift"}
    assert any(line.startswith("not tried: dense: ") for line in notes)


def test_selections_by_many_recipes_are_those_of_each_alone(pool):
    recipes = [one.recipe for one in candidates(pool.recipe, 0.5)[0]]
    recipes += [Recipe.of({"guard": {"level": level}, "select": {"k": 3}}) for level in ("off", "near")]
    recipes += [
        Recipe.of({"retrieve": {"mode": "lexical"}, "select": {"strategy": "mmr"}, "filter": {"exclude": ["p4"]}})
    ]
    asked = [*QUERIES[:6], Example("p0", "apple number 0"), Example("unknown", "zzz")]
    each = list(pool.select_each(asked, recipes))
    for place, recipe in enumerate(recipes):
        assert [made[place] for made in each] == list(pool.select_many(asked, recipe=recipe))


def test_a_better_recipe_is_measured_on_other_queries_and_becomes_the_default(poor):
    found = tune(poor, QUERIES, settings=QUICK)
    assert found.gain.sure and found.gain.interval.low > 0
    assert found.settings["queries_to_choose"] == found.settings["queries_to_measure"] == 12
    assert found.written == poor.generation == "gen-000002"
    assert poor.recipe == found.chosen.recipe and poor.recipe.select.k == 4
    with Retriever.open(poor.path, embedder=embed) as again:
        assert again.recipe == found.chosen.recipe
    after = tune(poor, QUERIES, settings=QUICK)
    assert after.chosen.name == "own" and after.written is None


def test_the_gain_is_that_of_selecting_by_hand(poor):
    found = tune(poor, QUERIES, settings=replace(QUICK, metric="hit"), dry_run=True)
    queries = {q.id: q for q in QUERIES}
    means = []
    for recipe in (poor.recipe, found.chosen.recipe):
        hits = {
            q.id: float(
                any(d.example.label == q.label for d in poor.select(replace(q, output=None, label=None), recipe=recipe))
            )
            for q in queries.values()
        }
        means.append(fmean(hits.values()))
    whole = [one for one in found.tried if one.name in ("own", found.chosen.name)]
    by_half = {one.name: (one.mean + (found.gain.own if one.name == "own" else found.gain.chosen)) / 2 for one in whole}
    assert by_half["own"] == pytest.approx(means[0])
    assert by_half[found.chosen.name] == pytest.approx(means[1])


def test_a_dry_run_changes_nothing_and_gives_the_same_bytes_twice(poor):
    once, again = (json.dumps(tune(poor, leave_one_out=24, settings=QUICK, dry_run=True).to_dict()) for _ in range(2))
    assert once == again
    told = json.loads(once)
    assert told["gain"]["sure"] and told["written"] is None and told["asked"] == "leave-one-out"
    assert poor.recipe == Recipe.of(POOR) and poor.generation == "gen-000001"


def test_where_nothing_is_better_nothing_changes(tmp_path):
    with build([{**row, "label": "same"} for row in POOL], tmp_path / "i", weight=0.5) as made:
        found = tune(made, settings=QUICK)
        assert (found.chosen.name, found.gain.difference, found.gain.sure) == ("own", 0.0, False)
        assert {one.verdict for one in found.tried} == {"chosen", "tied"}
        assert found.written is None and made.generation == "gen-000001"


@pytest.mark.parametrize(("interval", "sure"), [((0.0, 0.2), False), ((0.001, 0.2), True), ((-0.1, 0.3), False)])
def test_a_gain_is_sure_when_its_whole_interval_is_above_0(interval, sure):
    assert Gain(20, 0.5, 0.6, 0.1, Interval(*interval)).sure == sure
    assert not Gain(1, 0.5, 0.6, 0.1, None).sure


def test_tables_hold_every_candidate_against_the_chosen_one(poor):
    found = tune(
        poor,
        QUERIES,
        settings=QUICK,
        recipes={"mine": {"select": {"k": 4}, "retrieve": {"weight": 0.33}}},
        dry_run=True,
    )
    assert found.tried[0].name == "own" and found.tried[-1].name == "mine"
    assert [one.verdict for one in found.tried].count("chosen") == 1
    assert found.tried[0].verdict == "worse" and found.tried[0].queries == 12
    for one in found.tried:
        assert one.interval.holds(one.mean) and one.difference_interval.holds(one.difference)
        assert (one.verdict == "worse") == (one.difference_interval.high < 0)


def test_k_is_searched_where_tokens_have_a_price(poor):
    free, dear = (
        tune(
            poor,
            QUERIES[:8],
            settings=replace(QUICK, metric="hit", ks=(1, 12), token_cost=cost),
            dry_run=True,
        )
        for cost in (0.0, 100.0)
    )
    assert dear.chosen.recipe.select.k == 1
    assert dear.objective == "hit - 100 per 1,000 tokens" and free.objective == "hit"
    assert {one.recipe.select.k for one in free.tried} == {1, 4, 12}


def test_less_is_better_where_the_metric_says_so(pool):
    found = tune(pool, QUERIES, settings=replace(QUICK, metric="tokens"), dry_run=True)
    assert found.objective == "-tokens" and all(one.mean < 0 for one in found.tried)


def test_repeated_queries_count_once(pool):
    found = tune(pool, [*QUERIES, *(replace(q, id=f"{q.id}x", input=f"{q.input}!") for q in QUERIES)], settings=QUICK)
    assert found.settings["queries_to_choose"] == 12
    assert found.notes == ("24 queries are few: only a large gain can be told from chance",)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ks": (4,)}, "several k without a token cost"),
        ({"ks": (0,), "token_cost": 0.0}, "k = 0"),
        ({"token_cost": -1.0}, "token_cost = -1.0"),
        ({"metric": "exact"}, "the metric exact"),
        ({"resamples": 5}, "resamples = 5"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(InvalidInput, match=said):
        TuneSettings(**settings)


def test_what_cannot_be_tuned_is_refused(pool):
    with pytest.raises(InvalidInput, match="both queries and leave_one_out"):
        tune(pool, QUERIES, leave_one_out=5)
    with pytest.raises(InvalidInput, match="7 queries with a label"):
        tune(pool, QUERIES[:7])
    with pytest.raises(InvalidInput, match="neither more nor less is better"):
        tune(pool, QUERIES, settings=replace(QUICK, metric="redundancy"))
    with pytest.raises(InvalidInput, match="without labels, outputs or judgements"):
        tune(pool, ["one", "two"], settings=QUICK)
    with pytest.raises(InvalidInput, match="precision@9"):
        tune(pool, QUERIES, settings=replace(QUICK, metric="precision@9"))
    with pytest.raises(InvalidInput, match="names no model"):
        tune(pool, QUERIES, recipes={"m": {"rerank": {"by": "cross-encoder:x"}}})


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(one) for one in arguments])


@pytest.fixture
def files(tmp_path):
    """A folder with an index, whose default is a bad recipe, and queries."""
    (tmp_path / "poor.json").write_text(json.dumps(POOR))
    rows = [{"input": q.input, "output": q.output, "label": q.label} for q in QUERIES]
    for name, given in (("pool", POOL), ("asked", rows)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    made = ("-o", tmp_path / "i", "--embedder", "latent", "--weight", "0.5", "--recipe", tmp_path / "poor.json")
    assert run("build", tmp_path / "pool.jsonl", *made).exit_code == 0
    return tmp_path


def test_the_command_prints_json_and_writes_the_recipe(files):
    arguments = ("tune", files / "i", files / "asked.jsonl", "--resamples", "200")
    dry = [run(*arguments, "--dry-run") for _ in range(2)]
    assert dry[0].exit_code == 0 and dry[0].stdout == dry[1].stdout
    told = json.loads(dry[0].stdout)
    assert told["gain"]["sure"] and told["written"] is None
    done = json.loads(run(*arguments).stdout)
    assert done == {**told, "written": "gen-000002"}
    assert json.loads(run("info", files / "i").stdout)["recipe"] == told["chosen"]["recipe"]


def test_the_table_says_what_became_of_it(files, monkeypatch):
    monkeypatch.setattr(improving, "wants_json", lambda flag: False)
    arguments = ("tune", files / "i", files / "asked.jsonl", "--resamples", "200")
    dry, wet, again = run(*arguments, "--dry-run").stdout, run(*arguments).stdout, run(*arguments)
    assert dry.startswith("precision: 12 queries to choose by, 12 others to measure by, queries\n")
    assert dry.endswith("Nothing was changed.\n") and "gain +" in dry
    assert wet.endswith("It is the default of gen-000002.\n")
    assert again.exit_code == 0 and again.stdout.endswith("as far as the queries tell. Nothing was changed.\n")


def test_the_command_refuses_k_without_a_price(files):
    refused = run("tune", files / "i", "--try-k", "4")
    assert refused.exit_code == 2 and "--token-cost" in refused.stderr
