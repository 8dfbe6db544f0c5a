"""Recipes searched by what a language model answers: order and k, a budget, and no question asked twice."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections import Counter

import pytest

from retriever import Example, Limits, Recipe, Retriever, tune
from retriever.errors import BackendError, InvalidInput
from retriever.evaluation.asking import Asking
from retriever.evaluation.tune import TuneSettings
from retriever.ranking.seeding import permutation
from tests import support
from tests.support import build, embed

COLOURS = ("amber", "blue", "coral", "denim", "ebony", "fawn", "green", "hazel")
THINGS = ("apple", "boat", "chair", "door")
PAIRS = [(colour, thing) for colour in COLOURS for thing in THINGS]
POOL = [
    {"id": f"p{i}", "input": f"where is the {colour} {thing}", "output": f"{colour}-{thing}"}
    for i, (colour, thing) in enumerate(PAIRS)
]
QUERIES = [
    Example(f"q{i}", f"the {colour} {thing} please", output=f"{colour}-{thing}")
    for i, (colour, thing) in enumerate(PAIRS)
]
OWN = {"select": {"k": 4}}
QUICK = TuneSettings(resamples=200)


class Counting:
    """A backend that answers as a function of the prompt says, and counts what it is asked."""

    def __init__(self, answer, fail=lambda number: None):
        self.asked = Counter()
        self.tokens = 0
        self._answer, self._fail = answer, fail
        self._lock = threading.Lock()

    def __call__(self, prompt):
        with self._lock:
            self.asked[json.dumps(prompt.messages)] += 1
            self.tokens += prompt.tokens
            self._fail(self.asked.total())
        return self._answer(prompt)


def reads_the_first(prompt):
    """Repeats what stands first in the prompt."""
    return prompt.demonstrations[0].output


def reads_the_last(prompt):
    """Repeats what stands last in the prompt."""
    return prompt.demonstrations[-1].output


def is_lost_in_many(prompt):
    """Answers right where a right one is among few."""
    wanted = "-".join(prompt.messages[-1]["content"].split()[1:3])
    outputs = [one.output for one in prompt.demonstrations]
    return wanted if wanted in outputs and len(outputs) <= 2 else "lost"


def knows_half(prompt):
    """Knows half of the answers, whatever the prompt shows."""
    question = prompt.messages[-1]["content"]
    known = hashlib.sha256(question.encode()).digest()[0] % 2
    return "-".join(question.split()[1:3]) if known else "?"


def guesses(prompt):
    """Is right half of the time, by chance, with every prompt."""
    lucky = hashlib.sha256(json.dumps(prompt.messages).encode()).digest()[0] % 2
    return "-".join(prompt.messages[-1]["content"].split()[1:3]) if lucky else "?"


@pytest.fixture
def index(tmp_path):
    with build(POOL, tmp_path / "i", weight=0.5, recipe=OWN) as made:
        yield made


def run(index, backend, plans=None, *, settings=QUICK, queries=QUERIES, dry_run=True, recipes=None, **options):
    asking = Asking(backend, "counting", "counting", index.path.parent / "answers.sqlite", **options)
    told = (lambda plan: None) if plans is None else plans.append
    return tune(index, queries, settings=settings, asking=asking, dry_run=dry_run, on_plan=told, recipes=recipes)


def test_the_order_that_a_model_reads_best_is_found_and_kept(index):
    backend = Counting(reads_the_first)
    found = run(index, backend, dry_run=False)
    assert index.recipe.order.by == "best-first" and found.written == index.generation == "gen-000002"
    assert found.gain.sure and found.gain.own < 0.2 < 0.9 < found.gain.chosen
    assert (found.objective, found.settings["backend"]) == ("exact", "counting")
    assert set(backend.asked.values()) == {1}


def test_the_right_order_is_left_as_it_is(index):
    found = run(index, Counting(reads_the_last), dry_run=False)
    assert found.written is None and index.recipe == Recipe.of(OWN)


def test_fewer_demonstrations_are_found_where_many_confuse(index):
    found = run(index, Counting(is_lost_in_many))
    assert found.chosen.recipe.select.k == 2 and found.gain.sure


@pytest.mark.parametrize("model", [knows_half, guesses])
def test_where_nothing_matters_nothing_changes(index, model):
    found = run(index, Counting(model), dry_run=False)
    assert found.written is None and not found.gain.sure and index.generation == "gen-000001"
    if model is knows_half:
        assert found.gain.difference == 0 and found.chosen.name == "own"


def test_no_question_is_asked_twice_and_the_same_command_says_the_same(index):
    backend = Counting(guesses)
    first = run(index, backend)
    asked = backend.asked.total()
    again = run(index, backend, concurrency=1)
    assert backend.asked.total() == asked and set(backend.asked.values()) == {1}
    assert json.dumps(first.to_dict()) == json.dumps(again.to_dict())


def test_an_interrupted_search_goes_on_without_a_repeated_call(index):
    def stop(number):
        if number in (7, 40, 70):
            raise KeyboardInterrupt

    backend, whole = Counting(guesses, stop), Counting(guesses)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run(index, backend, concurrency=1)
    found = run(index, backend, concurrency=1)
    # The three calls that were never answered were made again, and no other.
    assert sorted(backend.asked.values(), reverse=True)[:4] == [2, 2, 2, 1]
    other = Asking(whole, "other", "counting", index.path.parent / "other.sqlite")
    assert tune(index, QUERIES, settings=QUICK, asking=other, dry_run=True) == found
    assert whole.asked.total() == backend.asked.total() - 3


@pytest.mark.parametrize("most", [60, 137])
def test_a_budget_of_calls_is_planned_told_and_never_exceeded(index, most):
    backend, plans = Counting(guesses), []
    found = run(index, backend, plans, max_calls=most)
    [plan] = plans
    assert backend.asked.total() <= plan.calls <= most
    assert plan.queries == found.settings["queries"] < plan.of == 32
    assert f"the budget reaches {plan.queries} of 32 queries" in found.notes
    wider = []
    run(index, Counting(guesses), wider, max_calls=most + 25)
    assert wider[0].queries > plan.queries


@pytest.mark.parametrize("most", [12_000])
def test_a_budget_of_tokens_is_never_exceeded(index, most):
    backend, plans = Counting(guesses), []
    run(index, backend, plans, max_tokens=most, answer_tokens=16)
    assert backend.tokens + 16 * backend.asked.total() <= most
    assert plans[0].prompt_tokens + plans[0].answer_tokens <= most and plans[0].queries < 32


@pytest.mark.parametrize("budget", [{"max_calls": 20}, {"max_tokens": 500}])
def test_a_budget_that_does_not_suffice_is_refused_before_anything_is_asked(index, budget):
    backend, plans = Counting(guesses), []
    with pytest.raises(InvalidInput, match=r"a budget that reaches \d of 32 queries; expected .* calls at least"):
        run(index, backend, plans, **budget)
    assert backend.asked.total() == 0 and plans == []


def is_right(prompt):
    return "-".join(prompt.messages[-1]["content"].split()[1:3])


def tenth_of(prompt):
    """A digit that the query decides."""
    return hashlib.sha256(prompt.messages[-1]["content"].encode()).digest()[0] % 10


def test_a_call_that_failed_where_another_recipe_was_answered_counts_as_wrong(index):
    def fail(number):
        if number % 9 == 0:
            raise BackendError(f"call {number} failed")

    found = run(index, Counting(reads_the_first, fail), concurrency=1)
    assert found.chosen.recipe.order.by == "best-first" and found.gain.queries == 32
    assert any("calls failed, the first: call 9 failed" in line for line in found.notes)
    assert any(line.startswith("recipe own failed on ") for line in found.notes)


def test_a_query_that_is_refused_under_every_recipe_is_left_out_of_both_sides(index):
    first = permutation(16, 0, "", "tuning").tolist()[0]  # the first round of a half asks nothing but this one

    def refuses(prompt):
        if prompt.query.id == QUERIES[first].id:
            raise BackendError("refused")
        return reads_the_last(prompt)

    found = run(index, Counting(refuses), queries=QUERIES[:16], concurrency=1)
    assert found.gain.queries == 15
    assert not any(line.startswith("recipe ") for line in found.notes)


def test_a_recipe_that_fails_on_most_queries_never_becomes_the_default(index):
    # What eight demonstrations are answered on they are right on, but they fit into the model for two queries of five.
    def is_short_of_room(prompt):
        if len(prompt.demonstrations) > 4 and tenth_of(prompt) < 6:
            raise BackendError("the prompt is too long")
        return is_right(prompt) if len(prompt.demonstrations) > 4 or guesses(prompt) != "?" else "?"

    found = run(index, Counting(is_short_of_room), recipes={"eight": {"select": {"k": 8}}}, dry_run=False)
    assert found.written is None and found.chosen.recipe.select.k <= 4
    eight = next(one for one in found.tried if one.name == "eight")
    failed = [line for line in found.notes if line.startswith("recipe eight failed on ")]
    assert len(failed) == 1 and f"of {eight.queries} queries where another was answered" in failed[0]


def test_a_failure_costs_its_tokens_as_a_wrong_answer_does(index):
    def has_room_for_four(prompt):
        if len(prompt.demonstrations) > 4:
            raise BackendError("the prompt is too long")
        return "wrong"

    dear = TuneSettings(resamples=200, token_cost=20.0)
    found = run(index, Counting(has_room_for_four), settings=dear)
    of = {one.name: one for one in found.tried}
    assert of["k 8"].mean < of["own"].mean < 0


def test_a_model_that_is_down_ends_the_search_soon(index):
    def fail(number):
        raise BackendError("down")

    backend = Counting(guesses, fail)
    with pytest.raises(BackendError, match=r"\d+ calls in a row failed, the last: down"):
        run(index, backend, concurrency=1)
    assert backend.asked.total() <= 30


def test_too_few_answers_decide_nothing(index):
    def refuses(prompt):
        if int(prompt.query.id[1:]) >= 5:
            raise BackendError("no")
        return guesses(prompt)

    with pytest.raises(InvalidInput, match=r"answered under both recipes: .*calls failed, the first: no"):
        run(index, Counting(refuses), queries=QUERIES[:10], concurrency=1)


def test_a_k_over_the_limit_is_not_tried_unless_it_is_asked_for(index):
    with Retriever.open(index.path, embedder=embed, limits=Limits(k=6)) as bounded:
        found = run(bounded, Counting(guesses), queries=QUERIES[:16])
        assert "not tried: k 8: a selection may have 6 demonstrations at most" in found.notes
        assert "k 2" in [one.name for one in found.tried]
        with pytest.raises(InvalidInput, match=r"select\.k = 8; expected at most 6"):
            run(bounded, Counting(guesses), settings=TuneSettings(ks=(8,)))


def test_recipes_of_the_callers_own_are_asked_about_and_tokens_can_cost(index):
    found = run(index, Counting(reads_the_last), recipes={"mine": {"select": {"k": 1}}})
    assert "mine" in [one.name for one in found.tried]
    dear = TuneSettings(resamples=200, token_cost=20.0)
    found = run(index, Counting(reads_the_last), settings=dear)
    assert found.chosen.recipe.select.k == 2 and found.objective == "exact - 20 per 1,000 tokens"


def test_what_narrows_the_recipes_is_told(index):
    found = run(index, Counting(guesses))
    assert (found.settings["narrowed_by"], found.settings["narrowed_from"]) == ("best-overlap", 44)
    assert {"order best-first", "k 2", "k 8"} <= {one.name for one in found.tried}
    assert len({one.recipe.select.strategy for one in found.tried}) >= 3


def test_a_metric_of_selections_and_a_model_do_not_go_together(index):
    with pytest.raises(InvalidInput, match="a language model and hit, which is no metric of its answers"):
        run(index, Counting(guesses), settings=TuneSettings(metric="hit"))


def test_the_command_tells_the_plan_first_and_keeps_to_the_budget(tmp_path):
    rows = [{"input": q.input, "output": q.output} for q in QUERIES[:24]]
    for name, given in (("pool", POOL), ("asked", rows)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    assert support.run("build", tmp_path / "pool.jsonl", "-o", tmp_path / "i", "--embedder", "latent").exit_code == 0
    script = tmp_path / "model.py"
    script.write_text(f"open({str(tmp_path / 'calls')!r}, 'a').write('x')\nprint('amber-apple')\n")
    model = ("--backend", f"command:{sys.executable} -S {script}", "--cache", tmp_path / "a.sqlite", "--metric", "f1")
    arguments = ("tune", tmp_path / "i", tmp_path / "asked.jsonl", "--resamples", "100", *model, "--max-calls", "60")
    done = support.run(*arguments)
    assert done.exit_code == 0, done.stderr
    assert "of 24 queries: at most" in done.stderr
    calls = len((tmp_path / "calls").read_text())
    assert 0 < calls <= 60
    assert json.loads(done.stdout)["settings"]["backend"] == f"command:{sys.executable}"
    assert support.run(*arguments).stdout == done.stdout and len((tmp_path / "calls").read_text()) == calls
    assert "--max-calls without --backend" in support.run(*arguments[:5], "--max-calls", "4").stderr
