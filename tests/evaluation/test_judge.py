"""What an answer of a language model is worth, by hand."""

from __future__ import annotations

import sys

import pytest

from retriever.errors import InvalidInput
from retriever.evaluation.judge import ANSWER_METRICS, MOST_CHOICES, answer_metric, chosen, contains, exact, f1
from retriever.example import Example

TRUTH = Example("q", "?", output="card arrival", label="card_arrival")


@pytest.mark.parametrize(
    ("answer", "output", "same", "words", "inside"),
    [
        ("card arrival", "card arrival", 1, 1.0, 1),
        (" card\n arrival ", "card arrival", 1, 1.0, 1),
        ("Card arrival.", "card arrival", 0, 1.0, 1),
        ("It is: CARD ARRIVAL", "card arrival", 0, 2 * 2 / 6, 1),
        ("arrival card", "card arrival", 0, 1.0, 0),
        ("discard arrivals", "card arrival", 0, 0.0, 0),
        ("to be or not to be", "to be", 0, 2 * 2 / 8, 1),
        ("to", "to to", 0, 2 / 3, 0),
        ("", "x", 0, 0.0, 0),
        ("-", "-", 1, 1.0, 1),  # nothing is left but white space: as exact says
        ("-", "*", 0, 0.0, 0),
        ("a <= b", "a >= b", 0, 2 / 3, 0),
    ],
)
def test_exact_f1_and_contains(answer, output, same, words, inside):
    assert exact(answer, output) == same
    assert f1(answer, output) == pytest.approx(words)
    assert contains(answer, output) == inside


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("Card Arrival", "card arrival"),
        ("The label is card arrival, not card.", "card arrival"),  # the longest of those that begin there
        ("top up, then card", "top up"),  # the first
        ("card", "card"),
        ("discard", None),
        ("", None),
    ],
)
def test_the_choice_is_the_whole_answer_or_what_stands_first_in_it(answer, choice):
    assert chosen(answer, {"card", "card arrival", "top up"}) == choice


def test_a_choice_is_right_by_output_or_by_label():
    choice = answer_metric("choice", lambda: ["card arrival", "top up", "card_lost"])
    assert [choice.value(text, TRUTH) for text in ("Card arrival!", "card_arrival", "top up", "I do not know")] == [
        1,
        1,
        0,
        0,
    ]
    assert choice.value("brand new", Example("q", "?", output="brand new")) == 1.0  # one that the pool does not have
    assert choice.judges(TRUTH) and not choice.judges(Example("q", "?"))


def test_outputs_that_are_no_choice_are_refused():
    with pytest.raises(InvalidInput, match="more than 1,000 different outputs"):
        answer_metric("choice", lambda: [f"n{i}" for i in range(MOST_CHOICES + 1)])


def test_choices_are_asked_for_only_by_choice():
    for name in set(ANSWER_METRICS) - {"choice"}:
        metric = answer_metric(name, lambda: pytest.fail("not needed"))
        assert metric.value("card arrival", TRUTH) == 1.0
        assert not metric.judges(Example("q", "?", label="x"))


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_metrics.py").write_text(
        "number = 3\n"
        "def length(answer, query): return len(answer) / len(query.output)\n"
        "def nothing(answer, query): return None\n"
        "def endless(answer, query): return float('inf')\n"
        "def enormous(answer, query): return 10**400\n"
        "def parsed(answer, query): import json; return json.loads(answer)['x']\n"
        "def half(answer, query): import numpy; return numpy.float32(0.5)\n"
        "def one(answer, query): import numpy; return numpy.int64(1)\n"
        "def true(answer, query): import numpy; return numpy.bool_(True)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_metrics", None)


def test_a_function_of_ones_own_gets_answer_and_query(own):
    metric = answer_metric("python:own_metrics.length", list)
    assert metric.value("card", TRUTH) == pytest.approx(1 / 3)
    assert metric.judges(Example("q", "?"))


@pytest.mark.parametrize("name", ["nothing", "endless"])
def test_what_is_no_number_is_refused_by_the_query(own, name):
    with pytest.raises(InvalidInput, match=f"own_metrics.{name} gave .* for the query 'q'"):
        answer_metric(f"python:own_metrics.{name}", list).value("card", TRUTH)


@pytest.mark.parametrize(("name", "value"), [("half", 0.5), ("one", 1.0), ("true", 1.0)])
def test_scalars_of_numpy_are_numbers(own, name, value):
    found = answer_metric(f"python:own_metrics.{name}", list).value("card", TRUTH)
    assert (type(found), found) == (float, value)


@pytest.mark.parametrize(("name", "error"), [("parsed", "JSONDecodeError"), ("enormous", "OverflowError")])
def test_what_a_function_raises_is_told_with_metric_and_query(own, name, error):
    with pytest.raises(InvalidInput, match=f"own_metrics.{name} failed for the query 'q': {error}: .*costs nothing"):
        answer_metric(f"python:own_metrics.{name}", list).value("card", TRUTH)


@pytest.mark.parametrize(
    ("source", "error"),
    [("x = undefined_name", "NameError"), ("import no_such_one", "ModuleNotFoundError"), ("(", "SyntaxError")],
)
def test_a_module_that_cannot_be_imported_is_refused(tmp_path, monkeypatch, source, error):
    (tmp_path / "broken_metrics.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InvalidInput, match=f"python:broken_metrics.f': {error}"):
        answer_metric("python:broken_metrics.f", list)


@pytest.mark.parametrize("name", ["own_metrics.number", "own_metrics.missing", "no_such_module.fn", "length", "", ".x"])
def test_what_is_no_function_is_refused(own, name):
    with pytest.raises(InvalidInput, match="python:"):
        answer_metric(f"python:{name}", list)
