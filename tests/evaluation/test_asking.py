"""Asking a language model: each question once, within the budget, and on from where it stopped."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

import cli
from retriever import Example, evaluate
from retriever.errors import BackendError, InvalidInput
from retriever.evaluation.asking import Asking
from retriever.evaluation.evaluate import EvalSettings
from retriever.evaluation.outcomes import Outcomes
from tests import support
from tests.support import build

WORDS = ("apple", "banana", "cherry", "damson")
POOL = [
    {"id": f"p{i}", "input": f"{WORDS[i % 4]} number {i * 37}", "output": f"eat {WORDS[i % 4]}", "label": WORDS[i % 4]}
    for i in range(48)
]


def numbered(count):
    """As many different queries."""
    return [Example(f"q{i}", f"a {WORDS[i % 4]} please {i}", output=f"eat {WORDS[i % 4]}") for i in range(count)]


QUERIES = numbered(10)
RECIPES = {"lexical": {"retrieve": {"mode": "lexical"}}, "none": {"select": {"k": 0}}}
ROOT = Path(cli.__file__).parent


class Counting:
    """A backend that repeats the last demonstration's output, and counts what it is asked."""

    def __init__(self, fail=lambda number: False):
        self.asked = Counter()
        self.tokens = 0
        self.at_once = self.most_at_once = 0
        self._fail = fail
        self._lock = threading.Lock()

    def __call__(self, prompt):
        with self._lock:
            self.asked[json.dumps(prompt.messages)] += 1
            self.tokens += prompt.tokens
            number = self.asked.total()
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self._fail(number):
                raise BackendError(f"call {number} failed")
            return prompt.demonstrations[-1].output if prompt.demonstrations else "nothing"
        finally:
            with self._lock:
                self.at_once -= 1


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    with build(POOL, tmp_path_factory.mktemp("asking") / "i", weight=0.5) as made:
        yield made


def run(pool, tmp_path, backend, *, recipes=RECIPES, queries=QUERIES, metrics=("exact",), costs=None, **options):
    asking = Asking(backend, "counting", "counting", tmp_path / "answers.sqlite", **options)
    on_cost = (lambda cost: None) if costs is None else costs.append
    settings = EvalSettings(metrics, k=None, resamples=100)
    return evaluate(pool, recipes, queries, settings=settings, asking=asking, on_cost=on_cost)


def test_answers_are_judged_and_compared_like_any_metric(pool, tmp_path):
    queries, recipes = [*QUERIES, Example("l", "a", label="apple")], {"lexical": RECIPES["lexical"]}
    metrics = ("exact", "precision@1", "tokens")
    found = run(pool, tmp_path, Counting(), metrics=metrics, queries=queries, recipes=recipes)
    assert [(one.metric, one.queries) for one in found.metrics] == [("exact", 10), ("precision@1", 1), ("tokens", 11)]
    found = run(pool, tmp_path, Counting())
    best, worse = found["exact"].scores
    assert (best.mean, best.verdict, worse.mean, worse.verdict) == (1.0, "best", 0.0, "worse")
    assert found.worst[0].answers == {"lexical": "eat apple", "none": "nothing"}
    assert found.settings["backend"] == "counting"


@pytest.mark.parametrize("form", ["text", "messages"])
def test_prompts_are_fitted_in_the_form_that_the_model_reads(pool, tmp_path, form):
    recipe = {"retrieve": {"mode": "lexical"}, "budget": {"tokens": 60}}
    seen = []

    def backend(prompt):
        counted = pool.prompt(pool.select(prompt_query(prompt), recipe=recipe), prompt_options={"form": form})
        seen.append((prompt.tokens, counted.tokens, len(prompt.demonstrations)))
        return "x"

    def prompt_query(prompt):
        return next(query for query in QUERIES if query.input_text == prompt.messages[-1]["content"])

    backend.reads = form
    run(pool, tmp_path, backend, recipes={"lexical": recipe}, concurrency=1)
    assert len(seen) == 10
    assert all(asked == counted <= 60 and demonstrations for asked, counted, demonstrations in seen)


def test_the_default_metrics_with_a_model_begin_with_exact_and_f1(pool, tmp_path):
    found = run(pool, tmp_path, Counting(), metrics=())
    assert [one.metric for one in found.metrics][:3] == ["exact", "f1", "best-overlap"]


def test_no_question_is_asked_twice_neither_in_a_run_nor_in_the_next(pool, tmp_path):
    backend, costs = Counting(), []
    recipes = {**RECIPES, "again": RECIPES["lexical"]}
    first = run(pool, tmp_path, backend, recipes=recipes, costs=costs)
    assert (set(backend.asked.values()), backend.asked.total()) == ({1}, 20)
    second = run(pool, tmp_path, backend, recipes=recipes, costs=costs)
    assert backend.asked.total() == 20
    assert first == second and json.dumps(first.to_dict()) == json.dumps(second.to_dict())
    assert [(cost.prompts, cost.kept, cost.calls, cost.left_out) for cost in costs] == [(20, 0, 20, 0), (20, 20, 0, 0)]
    assert costs[0].prompt_tokens == backend.tokens
    assert costs[0].answer_tokens == 20 * 256
    assert [(cost.all_prompt_tokens, cost.all_answer_tokens) for cost in costs] == [(backend.tokens, 20 * 256), (0, 0)]


def test_another_backend_is_asked_again(pool, tmp_path):
    backend = Counting()
    run(pool, tmp_path, backend)
    asking = Asking(backend, "another", "counting", tmp_path / "answers.sqlite")
    evaluate(pool, RECIPES, QUERIES, settings=EvalSettings(("exact",), resamples=100), asking=asking)
    assert set(backend.asked.values()) == {2}


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_no_more_calls_run_at_once_than_are_allowed_and_the_result_is_the_same(pool, tmp_path, concurrency):
    backend = Counting()
    found = run(pool, tmp_path, backend, concurrency=concurrency)
    assert 1 <= backend.most_at_once <= concurrency
    assert found == run(pool, tmp_path, backend)


@pytest.mark.parametrize("most", [1, 2, 7, 19, 20, 21])
def test_the_calls_stop_exactly_at_the_budget_and_the_next_run_goes_on(pool, tmp_path, most):
    backend, costs = Counting(), []
    if most < 2:
        with pytest.raises(InvalidInput, match="under every recipe: the budget left out 19 prompts"):
            run(pool, tmp_path, backend, max_calls=most)
    else:
        found = run(pool, tmp_path, backend, max_calls=most, costs=costs)
        assert found["exact"].queries == min(most // 2, 10)  # complete pairs alone
        assert costs[0].left_out == max(0, 20 - most)
        assert costs[0].all_answer_tokens == 20 * 256 and costs[0].all_prompt_tokens >= costs[0].prompt_tokens
        notes = " ".join(found.notes)
        assert ("the budget left out" in notes) == (most < 20)
        assert (f"on the {most // 2} of 10 queries" in notes) == (most < 20)
    assert backend.asked.total() == min(most, 20)
    run(pool, tmp_path, backend)
    assert (backend.asked.total(), set(backend.asked.values())) == (20, {1})


@pytest.mark.parametrize("most", [0, 150, 500, 1000, 100_000])
def test_the_tokens_never_exceed_the_budget_and_one_more_call_would(pool, tmp_path, most):
    backend, costs = Counting(), []
    try:
        run(pool, tmp_path, backend, max_tokens=most, answer_tokens=16, costs=costs)
    except InvalidInput as error:
        assert "the budget left out" in str(error)
    [cost] = costs
    assert cost.calls == backend.asked.total()
    assert cost.prompt_tokens == backend.tokens
    assert cost.prompt_tokens + cost.answer_tokens <= most
    if cost.left_out:
        other, more = tmp_path / "other", []
        other.mkdir()
        run(pool, other, Counting(), max_calls=max(2, cost.calls + 1), answer_tokens=16, costs=more)
        assert more[0].prompt_tokens + more[0].answer_tokens > most


def test_what_a_budget_reaches_is_a_sample_of_the_queries_and_not_their_beginning(pool, tmp_path):
    backend = Counting()
    found = run(pool, tmp_path, backend, max_calls=8)
    answered = {one.query.id for one in found.worst}
    assert len(answered) == 4 and answered != {"q0", "q1", "q2", "q3"}
    assert run(pool, tmp_path, backend, max_calls=0).metrics == found.metrics


def test_a_call_that_fails_is_told_left_out_and_asked_again_next_time(pool, tmp_path):
    backend = Counting(fail=lambda number: number in (3, 8))
    found = run(pool, tmp_path, backend, concurrency=1)
    assert found["exact"].queries == 8
    assert found.notes[-2:] == (
        "2 calls failed, the first: call 3 failed",
        "answers are judged on the 8 of 10 queries with one under every recipe",
    )
    assert run(pool, tmp_path, backend)["exact"].queries == 10
    assert sorted(backend.asked.values()) == [1] * 18 + [2] * 2


def test_a_model_that_does_nothing_but_fail_is_given_up(pool, tmp_path):
    backend, more = Counting(fail=lambda number: number > 2), numbered(16)
    with pytest.raises(BackendError, match="10 calls in a row failed, the last: call 12 failed"):
        run(pool, tmp_path, backend, concurrency=1, queries=more, recipes={"lexical": RECIPES["lexical"]})
    assert backend.asked.total() == 12
    with pytest.raises(BackendError, match="call 1 failed"):
        run(pool, tmp_path, Counting(fail=lambda number: True), queries=QUERIES[9:], recipes={"x": None})


def test_a_model_that_never_answered_is_given_up_after_ten_calls(pool, tmp_path):
    backend = Counting(fail=lambda number: True)
    with pytest.raises(BackendError, match="10 calls in a row failed, the last: call 10 failed"):
        run(pool, tmp_path, backend, concurrency=1)
    assert backend.asked.total() == 10


def test_where_ten_questions_fail_for_good_every_run_says_the_same(pool, tmp_path):
    calls = []

    def refuses_every_other(prompt):
        calls.append(prompt)
        if int(prompt.query.id[1:]) % 2:
            raise BackendError("refused")
        return "eat apple"

    def again():
        calls.clear()
        return run(pool, tmp_path, refuses_every_other, queries=numbered(24), concurrency=1)

    first, of_first = again(), len(calls)
    second, of_second = again(), len(calls)
    # The second run asks nothing but what is refused: 24 calls in a row, under two recipes.
    assert (of_first, of_second) == (48, 24)
    assert first == second and first["exact"].queries == 12
    assert first.notes[-2] == "24 calls failed, the first: refused"


@pytest.mark.parametrize("refused", ["q0", "q1"])  # one of them is asked first
def test_one_query_that_is_refused_under_many_recipes_says_nothing_against_the_model(pool, tmp_path, refused):
    def refuses(prompt):
        if prompt.query.id == refused:
            raise BackendError("refused")
        return "eat apple"

    recipes = {f"k {k}": {"select": {"k": k}} for k in range(12)}
    found = run(pool, tmp_path, refuses, queries=QUERIES[:2], recipes=recipes, concurrency=1)
    assert found["exact"].queries == 1 and "12 calls failed, the first: refused" in found.notes


@dataclass
class Shown:
    """As much of a prompt as a row of outcomes looks at."""

    query: Example


def told(row, known=()):
    """Outcomes of a row of letters, one for each prompt: its query, in lower case where its call fails."""
    outcomes = Outcomes()
    prompts = {f"{place}": Shown(Example("", letter.upper())) for place, letter in enumerate(row)}
    outcomes.begin(prompts, {str(place) for place in known})
    for place, letter in enumerate(row):
        if place in known:
            continue
        if letter.islower():
            outcomes.failed(str(place), BackendError("no"))
        else:
            outcomes.answered(str(place))
    return outcomes.given_up


@pytest.mark.parametrize(
    ("row", "known", "given_up"),
    [
        ("Zabcdefghij", (), True),
        ("Zabcdefghi", (), False),
        ("Zaaaabcdefghi", (), False),  # nine queries, whatever the number of their calls
        ("ZabcdeFghijkl", (6,), False),  # what was answered before stands between the failures
        ("ABCabcdefghijkl", (), False),  # three of them were answered under another recipe
        ("ABabcdefghijkl", (), True),
        ("aaaaabbbbb", (), False),  # nothing was ever answered: ten calls, but two queries may both be refused
        ("aaaaabbbbc", (), True),
    ],
)
def test_queries_in_a_row_are_what_a_model_is_given_up_by(row, known, given_up):
    assert (told(row, known) is not None) == given_up


@pytest.mark.parametrize("answer", [None, b"x", "\ud800"])
def test_what_is_no_text_is_a_failure(pool, tmp_path, answer):
    with pytest.raises(BackendError, match="returned"):
        run(pool, tmp_path, lambda prompt: answer, queries=QUERIES[:1], recipes={"x": None})


@pytest.mark.parametrize(
    ("metrics", "asking", "said"),
    [
        (("exact",), False, "the metric exact without a language model"),
        (("python:os.getcwd",), False, "python:os.getcwd without a language model"),
        (("tokens",), True, "a language model and no metric of its answers"),
        (("choice",), True, "no query has a true answer"),
    ],
)
def test_a_metric_of_answers_and_a_model_need_each_other(pool, tmp_path, metrics, asking, said):
    model = Asking(Counting(), "c", "c", tmp_path / "a.sqlite") if asking else None
    with pytest.raises(InvalidInput, match=said):
        evaluate(pool, queries=["bare"], settings=EvalSettings(metrics), asking=model)
    assert not (tmp_path / "a.sqlite").exists()


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"max_calls": -1}, {"max_tokens": -1}, {"answer_tokens": 0}])
def test_a_budget_that_cannot_be_used_is_refused(tmp_path, wrong):
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        Asking(str, "", "", tmp_path / "a", **wrong)


KILLED = """
import json, os, signal, sys
from pathlib import Path
from retriever import Example, Retriever, evaluate
from retriever.evaluation.asking import Asking
from retriever.evaluation.evaluate import EvalSettings
from tests.evaluation.test_asking import QUERIES, RECIPES
from tests.support import embed

folder, die_at = Path(sys.argv[1]), int(sys.argv[2])

def backend(prompt):
    with open(folder / "calls", "a") as calls:
        calls.write(json.dumps(prompt.messages) + "\\n")
    if len((folder / "calls").read_text().splitlines()) == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return "eat apple"

with Retriever.open(folder / "i", embedder=embed) as retriever:
    asking = Asking(backend, "b", "b", folder / "answers.sqlite", concurrency=1)
    found = evaluate(retriever, RECIPES, QUERIES, settings=EvalSettings(("exact",), resamples=100), asking=asking)
print(json.dumps(found.to_dict()))
"""


def test_a_run_that_was_killed_goes_on_without_a_repeated_call(tmp_path):
    build(POOL, tmp_path / "i", weight=0.5).close()

    def attempt(die_at):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(die_at)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    for die_at in (6, 13):
        assert attempt(die_at).returncode == -9
    done = attempt(0)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    # Two calls died before they were answered; those two alone were made again.
    assert (len(calls), len(set(calls))) == (22, 20)
    assert [calls.count(calls[place]) for place in (5, 12)] == [2, 2]
    before = done.stdout
    assert attempt(0).stdout == before
    assert len((tmp_path / "calls").read_text().splitlines()) == 22


INTERRUPTED = """
import json, sys, time
from pathlib import Path
from retriever import Retriever, evaluate
from retriever.command_line.interrupt import insisting
from retriever.evaluation.asking import Asking
from retriever.evaluation.evaluate import EvalSettings
from tests.evaluation.test_asking import QUERIES, RECIPES
from tests.support import embed

folder = Path(sys.argv[1])

def backend(prompt):
    with open(folder / "calls", "a") as calls:
        calls.write(json.dumps(prompt.messages) + "\\n")
    while not (folder / "answering").exists():
        time.sleep(0.01)
    return "eat apple"

with insisting(), Retriever.open(folder / "i", embedder=embed) as retriever:
    asking = Asking(backend, "b", "b", folder / "answers.sqlite", concurrency=3)
    evaluate(retriever, RECIPES, QUERIES, settings=EvalSettings(("exact",), resamples=100), asking=asking)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_is_on_its_way_and_no_call_is_ever_repeated(tmp_path, number):
    build(POOL, tmp_path / "i", weight=0.5).close()
    calls = tmp_path / "calls"

    def started():
        command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    with started() as process:
        for _ in range(600):
            if calls.exists() and len(calls.read_text().splitlines()) >= 3:
                break
            time.sleep(0.05)
        process.send_signal(number)
        time.sleep(2.5)  # longer than it takes until an interrupt comes again
        (tmp_path / "answering").touch()
        said = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and "KeyboardInterrupt" in said
    assert len(calls.read_text().splitlines()) == 3
    with closing(sqlite3.connect(tmp_path / "answers.sqlite")) as answers:
        assert answers.execute("SELECT count(*) FROM answers").fetchone() == (3,)
    with started() as process:
        assert process.wait(timeout=60) == 0
    made = calls.read_text().splitlines()
    assert (len(made), len(set(made))) == (20, 20)


def test_the_command_tells_the_cost_first_and_keeps_to_the_budget(tmp_path):
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in POOL))
    assert support.run("build", tmp_path / "pool.jsonl", "-o", tmp_path / "i", "--embedder", "latent").exit_code == 0
    script = tmp_path / "model.py"
    script.write_text(f"open({str(tmp_path / 'calls')!r}, 'a').write('x')\nprint('eat apple')\n")
    model = ("--backend", f"command:{sys.executable} {script}", "--cache", tmp_path / "a.sqlite", "--metric", "choice")
    arguments = ("eval", tmp_path / "i", "--leave-one-out", "6", "--resamples", "100", *model)
    none = support.run(*arguments, "--max-calls", "0")
    assert (none.exit_code, none.stdout, (tmp_path / "calls").exists()) == (0, "", False)
    whole_cost = re.search(r"without a budget ([\d,]+) and ([\d,]+)\n", none.stderr).groups()
    assert "0 answered before, 0 calls, " in none.stderr
    few = support.run(*arguments, "--max-calls", "4")
    assert (tmp_path / "calls").read_text() == "x" * 4
    assert "0 answered before, 4 calls, " in few.stderr and "left out by the budget" in few.stderr
    assert whole_cost == re.search(r"without a budget ([\d,]+) and ([\d,]+)\n", few.stderr).groups()
    whole = support.run(*arguments, "--as", "json")
    assert "4 answered before" in whole.stderr
    assert json.loads(whole.stdout)["metrics"][0]["queries"] == 6
    assert json.loads(whole.stdout)["settings"]["backend"] == f"command:{sys.executable}"
    calls = (tmp_path / "calls").read_text()
    assert support.run(*arguments, "--as", "json").stdout == whole.stdout
    assert (tmp_path / "calls").read_text() == calls
    assert "--max-calls without --backend" in support.run(*arguments[:6], "--max-calls", "4").stderr
