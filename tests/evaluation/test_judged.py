"""The metrics by name: what each looks at and needs, on selections small enough to know every figure."""

from __future__ import annotations

import numpy as np
import pytest

from retriever.errors import InvalidInput
from retriever.evaluation.judged import METRICS, Judged, default_metrics, metric
from retriever.example import Example

TRUTH = Example("q", "flights to rome", output="SELECT a FROM b WHERE c = 'rome'", label=["x", "y"])
CHOSEN = (
    Example("1", "flights to oslo", output="SELECT a FROM b WHERE c = 'oslo'", label="x"),
    Example("2", "pets", output="SELECT d", label="z"),
    Example("3", "cats", output="SELECT d", label=["z", "y"]),
    Example("4", "dogs"),
)


def judged(truth=TRUTH, chosen=CHOSEN, scores=(0.9, 0.5, 0.3, 0.1), grades=None):
    vectors = np.eye(4, dtype=np.float32)[: len(chosen)]
    return Judged(truth, chosen, scores[: len(chosen)], vectors, 4, 123, grades or {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("precision", 0.5),  # 1 and 3
        ("precision@2", 0.5),
        ("precision@1", 1.0),
        ("hit", 1.0),
        ("majority-vote", 0.0),  # z twice
        ("weighted-vote", 1.0),  # x .9, z .8, y .3
        ("weighted-vote@3", 1.0),
        ("label-entropy@1", 0.0),
        ("label-entropy@2", 1.0),
        ("label-coverage", 1.0),
        ("label-coverage@2", 0.5),
        ("best-overlap", 6 / 8 / 1),  # select a from b where c, of which 'rome' and 'oslo' differ
        ("best-overlap@1", 0.75),
        ("union-overlap", 6 / 7),
        ("template-hit", 1.0),
        ("best-template", 1.0),
        ("union-template", 1.0),
        ("redundancy", 0.0),
        ("tokens", 123.0),
    ],
)
def test_each_metric_by_hand(name, value):
    assert metric(name)(judged()) == pytest.approx(value, abs=1e-12)


def test_a_template_differs_where_the_words_differ():
    other = (Example("1", "flights to oslo", output="SELECT z FROM b WHERE c = 'oslo'"),)
    assert metric("template-hit")(judged(chosen=other)) == 0.0
    assert 0.0 < metric("best-template")(judged(chosen=other)) < 1.0


def test_ngrams_are_of_the_outputs_and_diversity_is_of_inputs_and_outputs():
    truth = Example("q", "?", output="a b")
    chosen = (Example("1", "x", output="a"), Example("2", "x", output="b a"))
    # {a, b, a b} against {a} and {b, a, b a}: 1/3 and 2/4; together a and b of three.
    assert metric("best-ngrams")(judged(truth, chosen)) == 0.5
    assert metric("union-ngrams")(judged(truth, chosen)) == pytest.approx(2 / 3)
    # x, a, x a and x, b, a, x b, b a, x b a: 9 in all, of which x and a come twice.
    assert metric("diversity")(judged(truth, chosen)) == pytest.approx(7 / 9)


def test_relevance_judgements_are_looked_up_by_the_ids_of_demonstrations():
    found = judged(grades={"3": 2.0, "9": 1.0})
    assert metric("recall")(found) == 0.5
    assert metric("recall@2")(found) == 0.0
    assert metric("mrr")(found) == pytest.approx(1 / 3)
    assert metric("ndcg")(found) == pytest.approx(2 / np.log2(4) / (2 + 1 / np.log2(3)))
    assert metric("ndcg@2")(found) == 0.0


def test_an_output_of_signs_alone_is_compared_by_its_signs():
    truth = Example("q", "?", output="+ -")
    assert metric("best-overlap")(judged(truth, (Example("1", "x", output="+ *"),))) == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_a_value_where_nothing_was_chosen(name):
    value = metric(name)(judged(chosen=(), grades={"1": 1.0}))
    assert 0.0 <= value <= 123.0


def test_a_metric_judges_only_queries_that_have_what_it_needs():
    bare = Example("q", "?")
    for name, one in METRICS.items():
        assert one.judges(bare, {}) == (one.needs == ""), name
        assert one.judges(TRUTH, {"a": 1.0})
    assert not METRICS["ndcg"].judges(TRUTH, {"a": 0.0})
    assert not METRICS["best-overlap"].judges(Example("q", "?", output="  "), {})


@pytest.mark.parametrize(
    "name", ["", "accuracy", "precision@", "precision@0", "precision@x", "precision@-1", "tokens@2"]
)
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(InvalidInput, match="metric"):
        metric(name)


@pytest.mark.parametrize(
    ("queries", "grades", "names"),
    [
        ([("a", "o"), ("a", "p"), ("b", "o")], {}, ["precision", "hit", "majority-vote"]),
        ([("a", "o"), ("b", "p")], {}, ["best-overlap", "union-ngrams", "template-hit"]),  # no label comes again
        ([(["a", "b"], "o"), ("b", "p")], {}, ["best-overlap", "union-ngrams", "template-hit", "label-coverage"]),
        ([(["a", "b"], None), ("b", None)], {}, ["label-coverage"]),
        ([(None, None)], {"q": {"d": 1.0}}, ["ndcg", "recall", "mrr"]),
        ([(None, None)], {}, []),
    ],
)
def test_the_default_metrics_are_those_that_suit_the_queries(queries, grades, names):
    examples = [Example("q", "?", label=label, output=output) for label, output in queries]
    cost = ["redundancy", "tokens"] if any(output for _, output in queries) else ["redundancy"]
    assert [one.name for one in default_metrics(examples, grades)] == [*names, *cost]
