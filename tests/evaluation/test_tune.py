"""Recipes searched: what is tried, how they are told apart, what is measured again, and when the index changes."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from retriever import Example, Recipe, Retriever, tune
from retriever.adaptation.validation import Compared
from retriever.command_line import improving
from retriever.command_line.terminal import inert_json
from retriever.errors import InvalidInput
from retriever.evaluation.crossing import Measured, crossed
from retriever.evaluation.halving import halve, ranked, schedule
from retriever.evaluation.intervals import Bootstrap, Interval, intervals
from retriever.evaluation.search_space import Candidate, around, candidates, combined
from retriever.evaluation.tune import TuneSettings
from retriever.evaluation.tuned import Gain, Tried
from tests.support import build, embed, run

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
    assert halve(8, 80, measure, strict=True) == [7, 0]
    # The first one stays, whatever it is worth, and of the others the better half.
    assert calls == [
        (list(range(8)), 0, 10),
        ([0, 4, 5, 6, 7], 10, 20),
        ([0, 6, 7], 20, 40),
        ([0, 7], 40, 80),
    ]


def test_what_the_examples_do_not_tell_from_the_best_stays_where_measuring_is_cheap():
    measure, calls = asked_of(np.ones((6, 16)))
    assert halve(6, 16, measure) == list(range(6))
    assert [len(chosen) for chosen, _, _ in calls] == [6, 6, 6, 6]
    measure, calls = asked_of(np.ones((6, 16)))
    assert halve(6, 16, measure, strict=True) == [0, 1]
    assert [len(chosen) for chosen, _, _ in calls] == [6, 4, 3, 2]


def test_few_examples_are_measured_once_each():
    measure, calls = asked_of(np.ones((2, 3)))
    assert halve(2, 3, measure) == [0, 1]
    assert [(start, stop) for _, start, stop in calls] == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 54])
def test_a_search_measures_as_often_as_its_schedule_says(count):
    measure, calls = asked_of(np.random.default_rng(count).random((count, 40)))
    halve(count, 40, measure, strict=True)
    told = [(one.candidates, one.start, one.stop) for one in schedule(count, 40)]
    assert [(len(chosen), start, stop) for chosen, start, stop in calls] == told


def test_of_equals_the_first_is_the_best_and_what_is_not_known_of_one_counts_for_none():
    assert ranked(np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.2, 0.2, 0.3]])) == [2, 0, 1]
    assert ranked(np.array([[0.0, 1.0], [1.0, np.nan]])) == [1, 0]


def test_candidates_of_which_little_or_nothing_is_known_come_last_and_hide_nothing_of_the_others():
    nothing, little = [np.nan] * 3, [1.0, np.nan, np.nan]
    rows = np.array([[0.1, 0.2, 0.3], nothing, little, [0.3, 0.3, 0.3]])
    assert ranked(rows) == [3, 0, 1, 2]
    assert ranked(np.full((2, 3), np.nan)) == [0, 1]
    for strict in (True, False):
        values = np.full((10, 40), 0.1)
        values[7], values[9] = 0.9, np.nan
        measure, calls = asked_of(values)
        assert halve(10, 40, measure, strict=strict)[0] == 7
        assert all(9 not in chosen for chosen, _, _ in calls[1:])


def test_a_failure_counts_where_another_candidate_was_answered():
    unknown = np.nan
    values = np.array([[1, unknown, unknown, 1, unknown], [unknown, 1, unknown, 1, 1]])
    failures = np.array([[unknown, 0, 0, unknown, unknown], [0, unknown, 0, unknown, unknown]])
    tried = [Candidate(str(number), Recipe.of({"select": {"k": number + 1}})) for number in range(2)]

    def row(one):
        return one.recipe.select.k - 1

    measured = Measured(
        lambda tried, places: values[np.ix_([row(one) for one in tried], places)],
        5,
        tried,
        lambda one, places: failures[row(one), places],
    )
    found = measured([0, 1], np.arange(5))
    # Nobody was answered on the third; on the last the own one was left out by a budget, which nobody is to blame for.
    assert np.array_equal(found, [[1, 0, unknown, 1, unknown], [0, 1, unknown, 1, 1]], equal_nan=True)
    assert [measured.held_against(number).tolist() for number in (0, 1)] == [[1], [0]]


def test_what_is_no_number_is_none_in_json():
    bare = Tried("x", Recipe(), "input", 0, np.nan, None, np.nan, None, "tied").to_dict()
    assert (bare["mean"], bare["difference"]) == (None, None)
    assert Gain(0, np.nan, np.nan, np.inf, None).to_dict()["difference"] is None
    compared = Compared("m", np.nan, np.nan, np.inf).to_dict()
    assert compared == {"metric": "m", "before": None, "after": None, "error": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        inert_json({"mean": np.nan})


def by_matrix(matrix):
    """Candidates whose values stand in a matrix, and how often each was asked for."""
    tried = [Candidate(str(number), Recipe.of({"select": {"k": number + 1}})) for number in range(len(matrix))]
    asked = np.zeros(matrix.shape)

    def score(tried, places):
        rows = [one.recipe.select.k - 1 for one in tried]
        asked[np.ix_(rows, places)] += 1
        return matrix[np.ix_(rows, places)]

    return Measured(score, matrix.shape[1], tried), asked


def test_every_query_is_measured_with_what_the_others_chose():
    # Candidate 1 is the best on even queries and 2 on odd ones, so that each half chooses what fails on the other.
    even = np.arange(8) % 2 == 0
    measured, asked = by_matrix(np.stack([np.full(8, 0.5), np.where(even, 1.0, 0.0), np.where(even, 0.0, 0.9)]))

    def best(places):
        return ranked(measured(range(3), places))[0]

    found = crossed(measured, best, 2)
    assert found.own.tolist() == [0.5] * 8 and found.other.tolist() == [0.0] * 8
    assert found.chosen == 0
    assert asked.max() == 1


def test_without_a_better_recipe_a_gain_is_sure_as_rarely_as_is_said():
    random, bootstrap, sure = np.random.default_rng(0), Bootstrap(resamples=200, level=0.8), 0
    for _ in range(200):
        values = random.random((10, 60))
        measured, _ = by_matrix(values)
        found = crossed(measured, lambda places, values=values: ranked(values[:, places])[0], 5, deals=5)
        sure += intervals((found.other - found.own)[:, None], bootstrap)[0].low > 0
    assert 0.05 <= sure / 200 <= 0.2


def test_the_candidates_are_the_own_recipe_changed_each_once():
    own = Recipe.of({"filter": {"where": "x == 1"}, "guard": {"threshold": 0.8}, "order": {"by": "edges"}})
    tried, notes = candidates(own, {None: 0.5})
    assert tried[0].name == "own" and tried[0].recipe == own and notes == []
    assert {(one.recipe.filter, one.recipe.guard, one.recipe.order) for one in tried} == {
        (own.filter, own.guard, own.order)
    }
    names = [one.name for one in tried]
    assert {"lexical", "dense", "weight 0.3", "rrf 0.5", "mmr 0.7", "sift 1, weight 1"} <= set(names)
    assert "weight 0.5" not in names  # the own weight
    assert len({json.dumps(one.recipe.filled().to_dict()) for one in tried}) == len(tried)


def test_each_k_is_tried_with_each_recipe_and_others_are_added():
    few, more = candidates(Recipe(), {None: 0.5})[0], candidates(Recipe(), {None: 0.5}, ks=[2, 8])[0]
    assert len(more) == 2 * len(few)
    assert {one.recipe.select.k for one in more} == {2, 8}
    given = {"mine": Recipe.of({"retrieve": {"weight": 0.33}}), "same": Recipe()}
    assert [one.name for one in candidates(Recipe(), {None: 0.5}, others=given)[0]][-1] == "mine"


def test_what_does_not_go_together_with_the_own_recipe_is_told():
    own = Recipe.of({"select": {"strategy": "sift"}, "adaptive": {"by": "confidence"}})
    tried, notes = candidates(own, {None: 0.5})
    assert {one.recipe.select.strategy for one in tried} == {"sift"}
    assert any(line.startswith("not tried: dense: ") for line in notes)


def test_a_model_is_asked_about_one_change_at_a_time():
    own = Recipe.of({"order": {"by": "edges"}, "select": {"k": 6}})
    other = Candidate("mmr 0.7", own.with_options({"strategy": "mmr", "options": {"weight": 0.7}}))
    tried, notes = around(own, {None: 0.5}, [other], most=100)
    assert notes == []
    names = ["own", "mmr 0.7", *(f"order {name}" for name in ("best-last", "best-first", "complexity"))]
    assert [one.name for one in tried] == [*names, "order label-interleaved", "k 3", "k 12"]
    assert [one.recipe.select.k for one in around(own, {None: 0.5}, [], most=100, ks=[2])[0]] == [6, 6, 6, 6, 6, 2]


def test_what_is_better_by_itself_is_put_together():
    own = Recipe()
    changed = {
        "mmr": {"strategy": "mmr"}, "dense": {"mode": "dense"}, "k 4": {"k": 4}, "edges": {"order": "edges"}
    }  # fmt: skip
    of = {name: Candidate(name, own.with_options(options)) for name, options in changed.items()}
    both = combined(own, [of["edges"], of["mmr"], of["dense"], of["k 4"]])
    assert both.name == "edges, mmr, k 4"
    assert both.recipe == own.with_options({"strategy": "mmr", "k": 4, "order": "edges"})
    assert combined(own, [of["mmr"], of["dense"]]) is None and combined(own, []) is None


def test_selections_by_many_recipes_are_those_of_each_alone(pool):
    recipes = [one.recipe for one in candidates(pool.recipe, {None: 0.5})[0]]
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
    assert found.settings["queries"] == found.gain.queries == 24
    assert found.written == poor.generation == "gen-000002"
    assert poor.recipe == found.chosen.recipe and poor.recipe.select.k == 4
    with Retriever.open(poor.path, embedder=embed) as again:
        assert again.recipe == found.chosen.recipe
    after = tune(poor, QUERIES, settings=QUICK)
    assert after.chosen.name == "own" and after.written is None


def test_the_figures_are_those_of_selecting_by_hand(poor):
    found = tune(poor, QUERIES, settings=replace(QUICK, metric="hit"), dry_run=True)
    for one in (found.tried[0], found.chosen):
        hits = [
            float(
                any(
                    d.example.label == q.label
                    for d in poor.select(replace(q, output=None, label=None), recipe=one.recipe)
                )
            )
            for q in QUERIES
        ]
        assert one.mean == pytest.approx(fmean(hits)) and one.queries == 24
    assert found.gain.own == pytest.approx(found.tried[0].mean)
    assert found.gain.difference == pytest.approx(found.gain.chosen - found.gain.own)


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
    assert found.tried[0].verdict == "worse" and found.tried[0].queries == 24
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
    assert found.settings["queries"] == 24
    assert found.notes == ("24 queries are few: only a large gain can be told from chance",)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ks": (0,), "token_cost": 0.0}, "k = 0"),
        ({"token_cost": -1.0}, "token_cost = -1.0"),
        ({"resamples": 5}, "resamples = 5"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(InvalidInput, match=said):
        TuneSettings(**settings)


def test_what_cannot_be_tuned_is_refused(pool):
    with pytest.raises(InvalidInput, match="both queries and leave_one_out"):
        tune(pool, QUERIES, leave_one_out=5)
    with pytest.raises(InvalidInput, match="several k without a token cost"):
        tune(pool, QUERIES, settings=TuneSettings(ks=(4,)))
    with pytest.raises(InvalidInput, match="the metric exact without a language model"):
        tune(pool, QUERIES, settings=TuneSettings(metric="exact"))
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
    assert dry.startswith("precision: 24 queries\n")
    assert dry.endswith("Nothing was changed.\n") and "gain +" in dry
    assert wet.endswith("It is the default of gen-000002.\n")
    assert again.exit_code == 0 and again.stdout.endswith("as far as the queries tell. Nothing was changed.\n")


def test_the_command_refuses_k_without_a_price(files):
    refused = run("tune", files / "i", "--try-k", "4")
    assert refused.exit_code == 2 and "--token-cost" in refused.stderr
